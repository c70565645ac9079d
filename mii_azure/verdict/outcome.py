"""Verdict of a parity run, and how it follows from the targets' replies."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict

from mii_azure import notebook
from mii_azure.errors import SpecError
from mii_azure.verdict.cases import Request
from mii_azure.verdict.grade import ALIKE, FIRST_ERROR, TOLERANCES, Grade, Reply, environment_difference, grade, worst
from mii_azure.verdict.sides import Side
from mii_azure.verdict.tokens.judge import TokenVerdict

_MOST_SHOWN = 20_000  # bytes of a reply that a verdict repeats


class Comparison(BaseModel):
    """Comparison of one target's answer to one request with the reference target's."""

    model_config = ConfigDict(frozen=True)

    request: str
    target: str
    status: int
    grade: Grade
    difference: str
    bodies: tuple[str, str] | None = None  # where they differ: the reference's and the target's, as far as is shown
    under_load: bool = False  # asked while other requests were in flight, and compared with the answer alone


class Verdict(BaseModel):
    """Verdict of a parity run; `agree` only if every target answered every request alike, and with sound tokens."""

    model_config = ConfigDict(frozen=True)

    agree: bool
    bundle: str
    bundle_hash: str
    reference: str
    targets: tuple[str, ...]
    tolerance: float  # the widest that two replies were compared with
    requests: int
    load: int  # requests in flight during the second pass; 0: there was none
    comparisons: tuple[Comparison, ...]
    environment: dict[str, list[str]]  # per target: differences from the reference, likeliest cause first
    tokens: tuple[TokenVerdict, ...] = ()
    sides: tuple[Side, ...] = ()

    def __repr__(self) -> str:
        return f"Verdict({self.headline()})"

    __str__ = __repr__

    def headline(self) -> str:
        """Verdict in one line: whether the targets agree."""
        told = []
        if len(self.targets) > 1:
            alike = "alike" if all(entry.grade in ALIKE for entry in self.comparisons) else "differently"
            fewer = [f"{name} {count}" for name, count in self.compared.items() if count < self.requests]
            form = f", of which have a form there: {', '.join(fewer)}" if fewer else ""
            told.append(f"{', '.join(self.targets)} answered {self.requests} requests {alike}{form}")
        if self.tokens:
            other = ", ".join(judged.target for judged in self.tokens if not judged.agree)
            told.append(f"the tokens of {other} are not the model's" if other else "their tokens are the model's")
        return f"{'agree' if self.agree else 'disagree'}: {'; '.join(told)}"

    def _repr_html_(self) -> str:
        grades = ("bytes", "values", "scores", "different")
        counts = [
            (name, *(self.counts[name].get(grade, "") for grade in grades), "; ".join(self.environment.get(name, [])))
            for name in self.targets
        ]
        other = [each for each in self.comparisons if each.grade not in ALIKE]
        made = notebook.table(("target", *grades, "environment"), counts)
        told = notebook.table(
            ("target", "request", "difference"), [(each.target, each.request, each.difference) for each in other]
        )
        return notebook.page(self.headline(), made, told if other else "")

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Number of replies with each grade, per target."""
        table: dict[str, dict[str, int]] = {target: {} for target in self.targets}
        for entry in (entry for entry in self.comparisons if not entry.under_load):
            table[entry.target][entry.grade] = table[entry.target].get(entry.grade, 0) + 1
        return table

    @property
    def compared(self) -> dict[str, int]:
        """Number of requests, per target but the reference, that were compared."""
        return {name: sum(self.counts[name].values()) for name in self.targets[1:]}

    @property
    def moved(self) -> dict[str, int]:
        """Number of requests, per target, that were answered otherwise under load than alone."""
        moved = [entry.target for entry in self.comparisons if entry.under_load and entry.grade not in ALIKE]
        return {target: moved.count(target) for target in self.targets}


@dataclass
class TargetRun:
    """Replies of one target; None for a request that has no form there."""

    replies: list[Reply | None]
    metadata: dict[str, Any]
    side: Side
    own_form: bool = True  # errors have the form of score.py
    invariant: bool = False  # it says that its answers do not depend on their company
    loaded: list[list[Reply]] = field(default_factory=list)  # each request's replies under load

    def tolerance(self, asked: str) -> float:
        """Tolerance of the less exact of the format that the bundle asks for and the one that the target tells."""
        told = str(self.metadata.get("precision", asked))
        return max(TOLERANCES[asked], TOLERANCES.get(told, 0.0))


def compare(sent: Sequence[Request], runs: Mapping[str, TargetRun], asked: str) -> list[Comparison]:
    """Grade each target's replies against the first one's, and those under load against the target's own alone.

    `asked` is the format that the bundle asks for; the formats of two targets loosen no other pair's tolerance.
    """
    (_, reference), *others = runs.items()
    own = reference.tolerance(asked)
    found = [
        entry for name, run in others for entry in _against(reference, name, run, sent, max(own, run.tolerance(asked)))
    ]
    found += [entry for name, run in runs.items() for entry in _under_load(name, run, sent, run.tolerance(asked))]
    return found


def require_compared(runs: Mapping[str, TargetRun], requests: int) -> None:
    """Raise SpecError if no request was compared with a target: there is nothing to say then."""
    (first, reference), *others = runs.items()
    for name, run in others:
        both = [pair for pair in zip(reference.replies, run.replies, strict=True) if None not in pair]
        if not both:
            raise SpecError(
                f"None of {requests} requests has a form at both {first} and {name}.",
                "Give the URL of its /score or /v2/models/NAME, or requests of your own.",
            )


def differences(runs: Mapping[str, TargetRun]) -> dict[str, list[str]]:
    """Differences of each target's environment from the first one's; a target may tell nothing of itself."""
    (_, reference), *others = runs.items()
    return {
        name: environment_difference(reference.metadata, run.metadata)
        if run.metadata and reference.metadata
        else ["it tells nothing of its environment"]
        for name, run in others
    }


def _against(
    reference: TargetRun, name: str, run: TargetRun, sent: Sequence[Request], tolerance: float
) -> Iterator[Comparison]:
    given: Grade
    for request, expected, reply in zip(sent, reference.replies, run.replies, strict=True):
        if expected is None or reply is None:
            continue
        if min(expected[0], reply[0]) >= FIRST_ERROR and not (reference.own_form and run.own_form):
            given, difference = "values", ""  # each protocol words its refusals in its own way
        else:
            given, difference = grade(expected, reply, tolerance)
        yield Comparison(
            request=request.name,
            target=name,
            status=reply[0],
            grade=given,
            difference=difference,
            bodies=None if given in ALIKE else (_shown(expected[1]), _shown(reply[1])),
        )


def _shown(body: bytes) -> str:
    """Beginning of a reply, as text."""
    return body[:_MOST_SHOWN].decode(errors="replace")


def _under_load(name: str, run: TargetRun, sent: Sequence[Request], tolerance: float) -> Iterator[Comparison]:
    """Compare what a target answered under load with what it answered alone: of each request, the worst."""
    tolerance = 0.0 if run.invariant else tolerance  # then no number may move, whatever the format
    taken = [pair for pair in zip(sent, run.replies, strict=True) if pair[1] is not None]
    for (request, alone), replies in zip(taken, run.loaded, strict=bool(run.loaded)):
        assert alone is not None
        status, given, difference = worst([(reply[0], *grade(alone, reply, tolerance)) for reply in replies])
        yield Comparison(
            request=request.name, target=name, status=status, grade=given, difference=difference, under_load=True
        )
