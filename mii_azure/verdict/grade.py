"""Compares two replies, and two environments."""

import json
import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

from scoring.passes.base import BOUNDS, TOLERANCE

Reply = tuple[int, bytes]  # status and body
FIRST_ERROR = 400  # of the statuses
Grade = Literal["bytes", "values", "scores", "different"]

GRADES: tuple[Grade, ...] = get_args(Grade)  # from the best to the worst
ALIKE: tuple[Grade, ...] = GRADES[:2]  # that a verdict agrees with

#: What a start lets each format cost against float32, as a relative 2-norm: a finer tolerance would call sound
#: deployments different. It holds a vector as a whole: one of a unit vector's 768 numbers is about 0.036, so that a
#: tolerance of each by itself would let pass what has nothing in common.
TOLERANCES = {**BOUNDS, "float16": TOLERANCE}
#: Most that one number may be off, whatever the format: a share of it, or of 1 where it is less.
NUMBER = 5e-2
_SCORES = "scores"  # the field that holds a list of numbers that stand each for itself


def grade(reference: Reply, other: Reply, tolerance: float) -> tuple[Grade, str]:
    """Grade a reply against the reference; returns (grade, difference).

    bytes: identical. values: same status, same texts, labels and structure, every vector (a list of numbers, but of
    scores) within `tolerance` of the other by the 2-norm of their difference over the reference's, and every number
    within `tolerance`, at most NUMBER (absolute and relative; of a vector's relative to its length). scores: texts and
    labels agree, a number or a vector does not. different: anything else.
    """
    if reference == other:
        return "bytes", ""
    if reference[0] != other[0]:
        return "different", f"status {reference[0]} against {other[0]}"
    try:
        left, right = json.loads(reference[1]), json.loads(other[1])
    except (ValueError, RecursionError):
        return "different", "the bodies differ and are not JSON"
    worst = _Worst(tolerance)
    place = _walk(left, right, "$", worst)
    if place:
        return "different", place
    if worst.gap > 0:
        return "scores", f"{worst.place} is off by {worst.error:.2e}, more than {worst.allowed:g}"
    return "values", ""


def worst(graded: Sequence[tuple[int, Grade, str]]) -> tuple[int, Grade, str]:
    """Worst of several graded replies, each (status, grade, difference)."""
    return max(graded, key=lambda entry: GRADES.index(entry[1]))


IMAGE = "generated_image"  # the field that holds a PNG in base64
_ROUNDING = 1  # of 255: sums in another order may round a half the other way


class _Worst:
    """Numbers and vectors that are further off than they may be, the worst of them kept."""

    def __init__(self, tolerance: float) -> None:
        self.tolerance = tolerance
        self.gap = 0.0
        self.error = 0.0
        self.allowed = 0.0
        self.place = ""

    def note(self, left: float, right: float, place: str, length: float = 0.0) -> None:
        """Note two numbers; `length` is that of the vector to which they belong."""
        allowed = min(self.tolerance, NUMBER)
        gap = abs(left - right) - allowed * max(1.0, abs(left), length)
        if not math.isfinite(gap):  # infinities and NaN are alike only to themselves
            gap = 0.0 if left == right or (math.isnan(left) and math.isnan(right)) else math.inf
        self._keep(gap, abs(left - right), allowed, place)

    def note_vectors(self, left: Sequence[float], right: Sequence[float], place: str) -> None:
        """Note two vectors: their numbers, and where those are alike the vectors as a whole."""
        before, length = self.gap, math.hypot(*left)
        for number, pair in enumerate(zip(left, right, strict=True)):
            self.note(*pair, f"{place}[{number}]", length if math.isfinite(length) else 0.0)
        pairs = [pair for pair in zip(left, right, strict=True) if math.isfinite(pair[0] - pair[1])]
        if self.gap > before or not pairs:
            return
        apart, length = math.dist(*zip(*pairs, strict=True)), math.hypot(*(one for one, _ in pairs))
        error = apart / length if length else (math.inf if apart else 0.0)
        self._keep(error - self.tolerance, error, self.tolerance, f"{place}, as a vector,")

    def _keep(self, gap: float, error: float, allowed: float, place: str) -> None:
        if gap > self.gap:
            self.gap, self.error, self.allowed, self.place = gap, error, allowed, place


def _is_vector(value: Any, place: str) -> bool:
    """Return True for a vector: a list of two or more numbers, not all of them whole, that are one answer."""
    return (
        isinstance(value, list)
        and len(value) > 1
        and not place.endswith(f".{_SCORES}")
        and all(type(each) in (int, float) for each in value)
        and any(type(each) is float for each in value)
    )


def _walk(left: Any, right: Any, place: str, worst: _Worst) -> str:
    """Find the first place where texts, labels or structure differ, or an empty string."""
    if isinstance(left, float) and isinstance(right, int | float) and not isinstance(right, bool):
        worst.note(left, _float(right), place)
        return ""
    if type(left) is not type(right):
        return f"{place} is {_brief(left)} against {_brief(right)}"
    if place.endswith(f".{IMAGE}") and isinstance(left, str) and left != right:
        return _images(left, right, place, worst)
    if isinstance(left, dict):
        if left.keys() != right.keys():
            return f"{place} has the fields {sorted(left)} against {sorted(right)}"
        return next(filter(None, (_walk(left[k], right[k], f"{place}.{k}", worst) for k in left)), "")
    if isinstance(left, list):
        if len(left) != len(right):
            return f"{place} has {len(left)} entries against {len(right)}"
        if _is_vector(left, place) and all(type(each) in (int, float) for each in right):
            worst.note_vectors([_float(each) for each in left], [_float(each) for each in right], place)
            return ""
        return next(
            filter(
                None, (_walk(a, b, f"{place}[{i}]", worst) for i, (a, b) in enumerate(zip(left, right, strict=True)))
            ),
            "",
        )
    return "" if left == right else f"{place} is {_brief(left)} against {_brief(right)}"


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # JSON's integers have no end
        return math.inf if value > 0 else -math.inf


def _images(left: str, right: str, place: str, worst: _Worst) -> str:
    """Compare two PNG files in base64 by their pixels; a difference in size is reported, one in colour is noted."""
    import base64
    import io

    try:
        from PIL import Image, ImageChops

        one, two = (Image.open(io.BytesIO(base64.b64decode(each))).convert("RGB") for each in (left, right))
    except (ImportError, OSError, ValueError) as error:
        return f"{place} differs, and its pixels cannot be compared: {error}"
    if one.size != two.size:
        return f"{place} is {one.width} x {one.height} pixels against {two.width} x {two.height}"
    bands: Any = ImageChops.difference(one, two).getextrema()
    most = max(high for _, high in bands)
    worst.note(0.0, max(0, most - _ROUNDING) / 255, place)
    return ""


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


#: Possible explanations of a difference, most likely first.
EXPLANATIONS = (
    "versions",
    "dtype",
    "precision",
    "device",
    "optimisations",
    "attention",
    "threads",
    "omp_num_threads",
    "architecture",
    "revision",
)


def environment_difference(reference: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Differences between two targets' metadata, the likeliest explanation first."""
    found = []
    for field in EXPLANATIONS:
        left, right = reference.get(field), other.get(field)
        if isinstance(left, dict) and isinstance(right, dict):
            found += [
                f"{k} {left.get(k)} against {right.get(k)}" for k in {**left, **right} if left.get(k) != right.get(k)
            ]
        elif left != right:
            found.append(f"{field} {left} against {right}")
    return found
