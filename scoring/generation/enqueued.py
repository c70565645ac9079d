"""Tokens that a decoder is computing for rows, and in which order they are read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from typing import TYPE_CHECKING

from scoring.decoder.logprobs import TokenLogprob, copy_to_host, indices, measure_logprobs, read_logprobs
from scoring.decoder.pending import Pending
from scoring.generation.sequence import RunningSequence, advance_open, append_token
from scoring.generation.text_generator import TextGenerator

if TYPE_CHECKING:
    from torch import Tensor

SLOW_MS = 10.0  # of pieces of prompts, from which on other rows' tokens do not wait for their first ones

#: Waits for the next tokens of each row, one or several; may be called again.
Tokens = Callable[[], Sequence[Sequence[int]]]
#: Rows of the logits whose logprobs a sequence asks for.
Asking = Mapping[RunningSequence, Sequence[int]]
Chances = dict[RunningSequence, list[TokenLogprob]]


@dataclass(eq=False)
class Enqueued:
    """Tokens being computed, one or several of each row, with logprobs for rows that ask for them."""

    batch: list[RunningSequence]
    tokens: Tokens
    logprobs: Callable[[], Chances]
    slow: bool = False  # they come after a long piece
    unsettled: bool = False  # a step with drafts, of which it is not known yet how many were right
    read: bool = False  # its tokens are there
    advanced: bool = False  # open rows have taken theirs

    def settle(self, task: TextGenerator) -> None:
        """Wait for the tokens of a step with drafts, and count those that are kept; raises if they cannot be read."""
        if not self.unsettled:
            return
        self.unsettled = False
        runs, self.read = self.tokens(), True
        for running, run in zip(self.batch, runs, strict=True):
            task.statistics.count("drafted_tokens", running.drafted)
            task.statistics.count("accepted_tokens", len(run) - 1)
            running.enqueued += len(run) - 1
            running.drafted = 0

    def advance(self, task: TextGenerator) -> None:
        """Have open rows take their tokens; raises if none of them can be read."""
        self.settle(task)
        if not self.advanced:
            advance_open(task, self.batch, [run[0] for run in self.tokens()])  # no drafts beside open rows
            self.advanced = True

    def append(self, task: TextGenerator) -> None:
        """Append the tokens to their rows, which fail alone; raises if none of them can be read."""
        self.advance(task)
        runs, chances = self.tokens(), self.logprobs()
        before = [len(running.tokens) for running in self.batch]
        for running, run in zip(self.batch, runs, strict=True):
            try:
                for token, chance in zip_longest(run, chances.get(running, [])[: len(run)]):
                    append_token(task, running, token, chance)
            except Exception as error:
                running.failure = error
        grown = zip(self.batch, before, strict=True)
        task.statistics.tokens(running.row for running, held in grown for _ in running.tokens[held:])


class UnderWay:
    """Tokens that are read a step after they were enqueued; slow ones one step later, if others were with them."""

    def __init__(self) -> None:
        self.pending: list[Enqueued] = []
        self.read: list[Enqueued] = []  # but not appended yet
        self._held: list[Enqueued] = []

    def due(self) -> list[Enqueued]:
        """Take what is to be read now, in the order in which it is computed."""
        fast = [each for each in self.pending if not each.slow]
        slow = [each for each in self.pending if each.slow]
        due, self._held = ([*self._held, *fast], slow) if fast else ([*self._held, *slow], [])
        self.pending = []
        return due

    def holds(self, running: RunningSequence) -> bool:
        """Return True if a token of a row waits longer than for the next step."""
        return any(running in each.batch for each in (*self._held, *self.read))

    @property
    def there(self) -> bool:
        """True if all tokens are there, so that nobody waits for them."""
        return all(each.read for each in self.pending)

    def newest(self, rows: Sequence[RunningSequence]) -> dict[RunningSequence, Sequence[int]] | None:
        """Wait for the tokens of rows that are under way; None if they are slow, or cannot be read."""
        wanted = set(rows)
        if any(
            wanted.intersection(each.batch) for each in [*self._held, *(each for each in self.pending if each.slow)]
        ):
            return None
        try:
            pairs = [(each.batch, each.tokens()) for each in self.pending if not each.slow]
        except Exception:  # told where they are appended
            return None
        return {running: run for batch, runs in pairs for running, run in zip(batch, runs, strict=True)}


def single(pending: Pending, rows: Sequence[int] | None = None) -> Tokens:
    """Tokens of a step that gives each row one; of all its rows, or of some."""

    def read() -> Sequence[Sequence[int]]:
        every = pending.tokens()
        return [[token] for token in every] if rows is None else [[every[row]] for row in rows]

    return read


def measured(asking: Asking, logits: "Tensor", picked: "Tensor") -> Callable[[], Chances]:
    """Logprobs that sequences ask for, of rows of logits and the tokens picked of each."""
    rows = indices([row for own in asking.values() for row in own], logits.device)
    most = [running.details or 0 for running, own in asking.items() for _ in own]
    numbers = copy_to_host(measure_logprobs(logits[rows], picked[rows], max(most)))

    def read() -> Chances:
        every = iter(read_logprobs(numbers(), most))
        return {running: list(islice(every, len(own))) for running, own in asking.items()}

    return read
