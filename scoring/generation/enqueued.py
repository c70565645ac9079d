"""Tokens of one step or sampling, from when they are enqueued until they are read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from typing import TYPE_CHECKING

from scoring.decoder.decoder import Pending
from scoring.decoder.logprobs import TokenLogprob, copy_to_host, indices, measure_logprobs, read_logprobs
from scoring.generation.sequence import RunningSequence, append_token
from scoring.generation.text_generator import TextGenerator

if TYPE_CHECKING:
    from torch import Tensor

#: Waits for the next tokens of each row, one or several; may be called again.
Runs = Callable[[], Sequence[Sequence[int]]]
#: Rows of the logits whose logprobs a sequence asks for.
Asking = Mapping[RunningSequence, Sequence[int]]
Chances = dict[RunningSequence, list[TokenLogprob]]


@dataclass(eq=False)
class Enqueued:
    """Tokens being computed, one or several of each row, with logprobs for rows that ask for them."""

    batch: list[RunningSequence]
    runs: Runs
    logprobs: Callable[[], Chances]
    unsettled: bool = False  # a step with drafts, of which it is not known yet how many were right

    def settle(self, task: TextGenerator) -> None:
        """Wait for the tokens of a step with drafts, and count those that are kept; raises if they cannot be read."""
        if not self.unsettled:
            return
        self.unsettled = False
        for running, run in zip(self.batch, self.runs(), strict=True):
            task.statistics.count("drafted_tokens", running.drafted)
            task.statistics.count("accepted_tokens", len(run) - 1)
            running.enqueued += len(run) - 1
            running.drafted = 0

    def append(self, task: TextGenerator) -> None:
        """Append the tokens to their rows, which fail alone; raises if none of them can be read."""
        self.settle(task)
        runs, chances = self.runs(), self.logprobs()
        before = [len(running.tokens) for running in self.batch]
        for running, run in zip(self.batch, runs, strict=True):
            try:
                for token, chance in zip_longest(run, chances.get(running, [])[: len(run)]):
                    append_token(task, running, token, chance)
            except Exception as error:
                running.failure = error
        grown = zip(self.batch, before, strict=True)
        task.statistics.tokens(running.row for running, held in grown for _ in running.tokens[held:])


def single(pending: Pending) -> Runs:
    """Tokens of a step that gives each row one."""
    return lambda: [[token] for token in pending.tokens()]


def logprobs_of(asking: Asking, logits: "Tensor", picked: "Tensor") -> Callable[[], Chances]:
    """Logprobs that sequences ask for, of rows of logits and the tokens picked of each."""
    rows = indices([row for own in asking.values() for row in own], logits.device)
    most = [running.details or 0 for running, own in asking.items() for _ in own]
    numbers = copy_to_host(measure_logprobs(logits[rows], picked[rows], max(most)))

    def read() -> Chances:
        every = iter(read_logprobs(numbers(), most))
        return {running: list(islice(every, len(own))) for running, own in asking.items()}

    return read
