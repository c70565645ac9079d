"""Rows, and what runs them: all that the engine, the scheduler of slots and the tasks know of each other."""

import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from scoring.config import Limits
from scoring.telemetry.statistics import Statistics

#: The key of rows that join and leave a batch between its steps.
SLOTS = "slots"

#: Takes a row's output, or the exception that it failed with.
Done = Callable[[Any], None]
#: Called after each step of a forward that has several.
Between = Callable[[], None]


def nothing() -> None:
    """Do nothing between two steps."""


@dataclass
class Row:
    """One sequence for one forward."""

    features: dict[str, list[int]]  # e.g. input_ids, token_type_ids: each [S]
    item: int  # which input of the request it belongs to
    key: Hashable = None  # only rows with equal keys share a batch
    parameters: Any = None
    extra: Any = None  # the task's own: offsets, spans
    emit: Callable[[Any], None] | None = None  # takes partial results, for streams
    cancelled: threading.Event = field(default_factory=threading.Event)
    new_tokens: int = 0  # that the forward may add
    copies: int = 1  # of the sequence that run at once: beams, answers
    answer: int = 0  # which of its input's answers is its first
    answers: int = 1  # of its input, its own and other rows'
    cached: int = 0  # tokens that a slot held already
    queued: float = 0.0  # when, by perf_counter; 0: it runs outside the engine
    token_at: float = 0.0  # when its last token came

    @property
    def tokens(self) -> int:
        return len(self.features["input_ids"])

    @property
    def footprint(self) -> int:
        """Tokens that the row may take of a batch's budget."""
        return (self.tokens + self.new_tokens) * self.copies


class Slots(Protocol):
    """Runs rows whose key is SLOTS, a step at a time; inference thread only."""

    @property
    def active(self) -> int:
        """Rows on slots."""

    @property
    def cache(self) -> dict[str, int]:
        """Tokens whose keys and values are held for rows, and most that may be: kv_tokens, kv_capacity."""

    def fits(self, row: Row) -> bool:
        """Whether a row can be added now; always true when there is none."""

    def add(self, row: Row, done: Done) -> None:
        """Give a row that fits a slot; `done` is called when it ends, in a later `step`."""

    def step(self) -> None:
        """Advance every row; never raises."""


class ModelRunner(Protocol):
    """Computes rows for the engine: a task over its model. Inference thread only."""

    unit: ClassVar[str]  # of a row's footprint
    statistics: Statistics

    def warm_up(self) -> None:
        """Run once, so that the first request does not pay for lazy initialisation."""

    def forward(self, rows: Sequence[Row], between: Between = nothing) -> list[Any]:
        """Compute rows with equal keys; one output per row. Calls `between` after each step where there are several."""

    def slots(self, limits: Limits) -> Slots | None:
        """What runs rows with the key SLOTS, where there is such a thing."""


def generated(output: Any) -> int:
    """Tokens in the output of one row: a generative task's is a list of token lists; an image has none."""
    return sum(len(tokens) for tokens in output if isinstance(tokens, list)) if isinstance(output, list) else 0
