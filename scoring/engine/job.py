"""A request's rows on their way through an engine, and what requests see of an engine, wherever it runs."""

import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from scoring.engine.outbox import Outbox
from scoring.engine.row import Row
from scoring.telemetry.spans import note
from scoring.telemetry.statistics import Statistics


@dataclass(eq=False)
class Job:
    """The rows of one request and where their outputs go."""

    rows: Sequence[Row]
    future: "Future[list[Any]]" = field(default_factory=Future)
    outputs: dict[int, Any] = field(default_factory=dict)  # by position in rows
    since: float = field(default_factory=time.perf_counter)
    began: float = 0.0  # when its first row left the queue
    ended: float = 0.0

    def finished(self, timeout_s: float | None = None) -> list[Any]:
        """Wait for the outputs; raises the job's error, CancelledError, or TimeoutError."""
        try:
            return self.future.result(timeout_s)
        finally:
            note("queue", self.since, self.began)
            note("forward", self.began, self.ended)

    def cancel(self) -> None:
        """Cancel the job: drop its waiting rows, and stop its running ones at their next step."""
        for row in self.rows:
            row.cancelled.set()


class RowQueue(Protocol):
    """Takes the rows of requests: the engine of this process, or that of another."""

    statistics: Statistics
    outbox: Outbox

    def submit(self, rows: Sequence[Row], patience_s: float = 0.0) -> Job:
        """Queue the rows of one request, waiting so long for room; raises Overloaded, or NotReady while draining."""
