"""Rows and the protocols that run them: all that the engine, the scheduler and the tasks know of each other."""

import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from scoring.config import Limits
from scoring.telemetry.statistics import Statistics

#: The key of rows that join and leave a batch between its steps.
SLOTS = "slots"

#: Takes a row's output, or the exception with which it failed.
Done = Callable[[Any], None]
#: Takes a row's next token, and its log-probabilities if the row asks for them.
OnToken = Callable[[int, Any], None]
#: Called after each step of a forward of several steps.
Between = Callable[[], None]


def nothing() -> None:
    """Do nothing between two steps."""


@dataclass
class Row:
    """One sequence for one forward."""

    features: dict[str, list[int]]  # e.g. input_ids, token_type_ids: each [S]
    item: int  # index of its input in the request
    key: Hashable = None  # only rows with equal keys share a batch
    parameters: Any = None
    extra: Any = None  # the task's own: offsets, spans
    emit: Callable[[Any], None] | None = None  # takes partial results, for streams
    on_token: OnToken | None = None  # takes the tokens of a row on slots, for streams of another process
    cancelled: threading.Event = field(default_factory=threading.Event)
    new_tokens: int = 0  # most tokens that the forward may add
    cut: bool = False  # truncation left tokens of its input out
    windows: int = 1  # of its input that are taken one after another, each as long as the row
    copies: int = 1  # of the sequence that run at once (beams, answers)
    answer: int = 0  # index of its first among its input's answers
    answers: int = 1  # of its input, over all of that input's rows
    priority: int = 0  # rows with lower ones are taken first
    cached: int = 0  # prompt tokens found in a slot's KV cache
    queued: float = 0.0  # time by perf_counter; 0: it runs outside the engine
    token_at: float = 0.0  # time of its last token

    @property
    def tokens(self) -> int:
        return len(self.features["input_ids"])

    @property
    def prompt_tokens(self) -> int:
        """Tokens of its input, over all its windows."""
        return self.tokens * self.windows

    @property
    def footprint(self) -> int:
        """Most tokens that the row may take from a batch's budget."""
        return (self.tokens + self.new_tokens) * self.copies


class Slots(Protocol):
    """Runs rows whose key is SLOTS, a step at a time; inference thread only."""

    @property
    def active(self) -> int:
        """Number of rows on slots."""

    @property
    def cache(self) -> dict[str, int]:
        """Tokens in the KV cache held for rows, and their upper bound: kv_tokens, kv_capacity."""

    def fits(self, row: Row) -> bool:
        """Return True if a row can be added now; always if no row is active."""

    def add(self, row: Row, done: Done) -> None:
        """Assign a slot to a row that fits; a later `step` calls `done` when the row ends."""

    def step(self) -> None:
        """Advance every row; never raises."""


class ModelRunner(Protocol):
    """Computes rows for the engine: a task over its model. Inference thread only."""

    unit: ClassVar[str]  # unit of a row's footprint
    statistics: Statistics

    def warm_up(self) -> None:
        """Run once, so that the first request does not pay for lazy initialisation."""

    def forward(self, rows: Sequence[Row], between: Between = nothing) -> list[Any]:
        """Compute rows with equal keys; one output per row. Calls `between` after each step if there are several."""

    def slots(self, limits: Limits) -> Slots | None:
        """Runner of rows with the key SLOTS, or None."""


def generated(output: Any) -> int:
    """Number of tokens in one row's output: its own count `new_tokens`, else those of a list of token lists, else 0."""
    if (told := getattr(output, "new_tokens", None)) is not None:
        return int(told)
    return sum(len(tokens) for tokens in output if isinstance(tokens, list)) if isinstance(output, list) else 0
