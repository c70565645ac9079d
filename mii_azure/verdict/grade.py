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

#: What a start lets each format cost against float32: a finer tolerance would call sound deployments different.
TOLERANCES = {**BOUNDS, "float16": TOLERANCE}


def grade(reference: Reply, other: Reply, tolerance: float) -> tuple[Grade, str]:
    """Grade a reply against the reference; returns (grade, difference).

    bytes: identical. values: same status, same texts, labels and structure, every number within `tolerance`
    (absolute and relative). scores: texts and labels agree, a number does not. different: anything else.
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
        return "scores", f"{worst.place} is off by {worst.error:.2e}, more than {tolerance:g}"
    return "values", ""


def worst(graded: Sequence[tuple[int, Grade, str]]) -> tuple[int, Grade, str]:
    """Worst of several graded replies, each (status, grade, difference)."""
    return max(graded, key=lambda entry: GRADES.index(entry[1]))


IMAGE = "generated_image"  # the field that holds a PNG in base64
_ROUNDING = 1  # of 255: sums in another order may round a half the other way


class _Worst:
    def __init__(self, tolerance: float) -> None:
        self.tolerance = tolerance
        self.gap = 0.0
        self.error = 0.0
        self.place = ""

    def note(self, left: float, right: float, place: str) -> None:
        error = abs(left - right)
        gap = error - self.tolerance * max(1.0, abs(left))
        if not math.isfinite(gap):  # infinities and NaN are alike only to themselves
            gap = 0.0 if left == right or (math.isnan(left) and math.isnan(right)) else math.inf
        if gap > self.gap:
            self.gap, self.error, self.place = gap, error, place


def _walk(left: Any, right: Any, place: str, worst: _Worst) -> str:
    """Find the first place where texts, labels or structure differ, or an empty string."""
    if isinstance(left, float) and isinstance(right, int | float) and not isinstance(right, bool):
        worst.note(left, float(right), place)
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
        return next(
            filter(
                None, (_walk(a, b, f"{place}[{i}]", worst) for i, (a, b) in enumerate(zip(left, right, strict=True)))
            ),
            "",
        )
    return "" if left == right else f"{place} is {_brief(left)} against {_brief(right)}"


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
