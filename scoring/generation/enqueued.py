"""Tokens that a decoder is computing for rows, and in which order they are read."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from scoring.decoder.decoder import Pending
from scoring.decoder.logprobs import TokenLogprob
from scoring.generation.sequence import RunningSequence

SLOW_MS = 10.0  # of pieces of prompts, from which on other rows' tokens do not wait for their first ones


class Some:
    """Some of the tokens that a step computes, by their rows."""

    def __init__(self, pending: Pending, rows: Sequence[int]) -> None:
        self._pending, self._rows = pending, rows

    def tokens(self) -> list[int]:
        """The tokens of these rows; waits for them."""
        every = self._pending.tokens()
        return [every[row] for row in self._rows]


class Enqueued(NamedTuple):
    """Tokens being computed, with logprobs for rows that ask for them; `slow` ones come after a long piece."""

    batch: list[RunningSequence]
    tokens: Pending
    logprobs: Callable[[], dict[RunningSequence, TokenLogprob]]
    slow: bool = False


class UnderWay:
    """Tokens that are read a step after they were enqueued; slow ones one step later, if others were with them."""

    def __init__(self) -> None:
        self.pending: list[Enqueued] = []
        self._held: list[Enqueued] = []

    def due(self) -> list[Enqueued]:
        """Take what is to be read now, in the order in which it is computed."""
        fast = [each for each in self.pending if not each.slow]
        slow = [each for each in self.pending if each.slow]
        due, self._held = ([*self._held, *fast], slow) if fast else ([*self._held, *slow], [])
        self.pending = []
        return due

    def holds(self, running: RunningSequence) -> bool:
        """Return True if a token of a row waits longer."""
        return any(running in each.batch for each in self._held)
