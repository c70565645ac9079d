"""Search for the suspect that explains a target's tokens: the one in whose place the reference picks them.

Margins are never negative, so that a suspect's sum over some answers is the least that all of them leave: a suspect is
given up once that is more than another leaves in all.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

from mii_azure.verdict.tokens.suspects import Suspect, suspects

if TYPE_CHECKING:
    from mii_azure.verdict.tokens.reference import ReferenceModel, Scored

UNEXPLAINED = "other weights or other code: another revision, a fine-tune, or a change that no suspect stands for"
_EXPLAINED = 0.5  # of the margins; a suspect that leaves more does not name the cause
_WHOLLY = 0.1  # of the margins; one that leaves less, and no more than a sound target may, ends the search
_MOST = 12  # answers that each suspect is asked to explain


def find_cause(
    reference: "ReferenceModel",
    scored: Sequence["Scored"],
    bound: float,
    named: Sequence[Suspect],
    progress: Callable[[str], None],
) -> tuple[str, dict[str, float]]:
    """Find the cause of margins beyond a bound, and what each suspect leaves as a mean in nats.

    Of a suspect that was given up it is what it leaves at least.
    """
    worst = sorted(scored, key=lambda one: -one.total)[:_MOST]
    search = _Search(reference, worst, bound)
    for suspect in suspects(reference.task, named):
        progress(f"is it {suspect.cause}?")
        if search.begin(suspect):
            break
    else:
        search.finish(progress)
    means = {cause: left / search.tokens for cause, left in search.left.items()}
    return search.cause, means


class _Search:
    """Suspects, and the margins that remain of some answers under each, in nats."""

    def __init__(self, reference: "ReferenceModel", worst: Sequence["Scored"], bound: float) -> None:
        self._reference = reference
        self.tokens = sum(len(one.margins) for one in worst)
        self.before = sum(one.total for one in worst)
        self._sound = min(_WHOLLY * self.before, bound * self.tokens)
        # The answer that says most for what it costs comes first: every suspect is asked to explain it.
        self._first, *self._rest = sorted(worst, key=lambda one: -one.total / one.length)
        self.left: dict[str, float] = {}
        self._best = (_EXPLAINED * self.before, UNEXPLAINED)  # of those that were asked to explain every answer
        self._open: list[Suspect] = []

    @property
    def cause(self) -> str:
        """Suspect that explains the answers best, if one does."""
        return self._best[1]

    def begin(self, suspect: Suspect) -> bool:
        """Try a suspect on the first answer, and on all where that explains it; True if nothing is left to explain."""
        self.left[suspect.cause] = self._left(suspect, [self._first], math.inf)
        if self.left[suspect.cause] > _WHOLLY * self._first.total:
            self._open.append(suspect)
        else:
            self._complete(suspect)
        return self._best[0] <= self._sound

    def finish(self, progress: Callable[[str], None]) -> None:
        """Try every suspect on the other answers, the likeliest first, until it leaves more than another."""
        for suspect in sorted(self._open, key=lambda each: self.left[each.cause]):
            if self.left[suspect.cause] < min(self._best[0], self._first.total):
                progress(f"is it really {suspect.cause}?")
                self._complete(suspect)

    def _complete(self, suspect: Suspect) -> None:
        """Try a suspect on the other answers."""
        left = self.left[suspect.cause]
        left += self._left(suspect, self._rest, self._best[0] - left)
        self.left[suspect.cause] = left
        self._best = min(self._best, (left, suspect.cause))

    def _left(self, suspect: Suspect, answers: Sequence["Scored"], most: float) -> float:
        """Sum of the margins that a suspect leaves of answers, at least where it is more than `most`."""
        reference, left = self._reference, 0.0
        with reference.changed(suspect.model) if suspect.model else nullcontext():
            for one in answers:
                prompt = suspect.prompt(reference, one.probe.value)
                if suspect.model is None and prompt == reference.prompt(one.probe.value):
                    left += one.total  # of this answer it changes nothing
                else:
                    left += reference.score(one.probe, one.answer, prompt).total
                if left > most:
                    break
        return left
