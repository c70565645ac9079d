"""One inference thread behind a bounded queue; rows that wait together run together."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from scoring.config import Limits
from scoring.errors import NotReady, Overloaded
from scoring.tasks.base import Row, Task

logger = logging.getLogger("mii_azure.engine")


@dataclass(eq=False)
class Job:
    """The rows of one request and where their outputs go."""

    rows: Sequence[Row]
    future: "Future[list[Any]]" = field(default_factory=Future)
    outputs: dict[int, Any] = field(default_factory=dict)  # by position in rows

    def cancel(self) -> None:
        """Nobody waits for this job any more: drop its waiting rows, stop its running ones at their next step."""
        for row in self.rows:
            row.cancelled.set()


Waiting = tuple[Job, int, Row]


class Engine:
    """Batches rows by a budget of padded tokens and runs them on its own thread.

    All model calls happen on that one thread, because CUDA-graph state is thread-local.
    """

    def __init__(self, task: Task, limits: Limits) -> None:
        self._task = task
        self._limits = limits
        self._waiting: deque[Waiting] = deque()
        self._changed = threading.Condition()
        self._running = 0
        self._draining = False
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
        self._started: Future[None] = Future()

    def start(self, prepare: Callable[[], None] = lambda: None) -> None:
        """Start the thread, and on it prepare the model and warm it up; raises what either raised."""
        self._prepare = prepare
        self._thread.start()
        self._started.result()

    def submit(self, rows: Sequence[Row]) -> Job:
        """Queue the rows of one request; raises Overloaded when the queue is full, NotReady while draining."""
        job = Job(rows)
        with self._changed:
            if self._draining:
                raise NotReady("The server is shutting down.", "Send the request again; another instance will take it.")
            self._drop_cancelled()
            if self._waiting and len(self._waiting) + len(rows) > self._limits.queue_size:
                raise Overloaded(
                    f"{len(self._waiting)} rows are waiting already.",
                    "Try again in a second, or send less at once.",
                )
            self._waiting.extend((job, position, row) for position, row in enumerate(rows))
            self._changed.notify_all()
        return job

    def depth(self) -> int:
        """Rows waiting or running."""
        with self._changed:
            return len(self._waiting) + self._running

    def drain(self, timeout_s: float) -> bool:
        """Take no more work and wait until what was accepted is done; False when the time ran out."""
        with self._changed:
            self._draining = True
            self._changed.notify_all()
            return self._changed.wait_for(lambda: not self._waiting and not self._running, timeout_s)

    def _run(self) -> None:
        try:
            self._prepare()
            self._task.warm_up()
        except BaseException as error:
            self._started.set_exception(error)
            return
        self._started.set_result(None)
        while True:
            batch = self._next_batch()
            self._execute(batch)
            with self._changed:
                self._running = 0
                self._changed.notify_all()

    def _next_batch(self) -> list[Waiting]:
        """The oldest row and every waiting row that may share its forward, within the budget of padded tokens."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._waiting)
                self._drop_cancelled()
                if self._waiting:
                    break
                self._changed.notify_all()
            batch: list[Waiting] = []
            left, longest = deque[Waiting](), 0
            key = self._waiting[0][2].key
            while self._waiting:
                entry = self._waiting.popleft()
                width = max(longest, entry[2].footprint)
                fits = width * (len(batch) + 1) <= self._limits.max_batch_tokens
                if not batch or (entry[2].key == key and fits and len(batch) < self._limits.max_batch_size):
                    batch.append(entry)
                    longest = width
                else:
                    left.append(entry)
            self._waiting = left
            self._running = len(batch)
            return batch

    def _drop_cancelled(self) -> None:
        for job, _, row in self._waiting:
            if row.cancelled.is_set():
                job.future.cancel()
        self._waiting = deque(entry for entry in self._waiting if not entry[2].cancelled.is_set())

    def _execute(self, batch: list[Waiting]) -> None:
        try:
            outputs = self._task.forward([row for _, _, row in batch])
            answered = list(zip(batch, outputs, strict=True))
        except Exception as error:
            self._isolate(batch, error)
            return
        for (job, position, _), output in answered:
            job.outputs[position] = output
            if len(job.outputs) == len(job.rows) and not job.future.done():
                job.future.set_result([job.outputs[i] for i in range(len(job.rows))])

    def _isolate(self, batch: list[Waiting], error: Exception) -> None:
        """A batch failed: find the requests that fail on their own, so that the others are still answered."""
        jobs = list(dict.fromkeys(job for job, _, _ in batch))
        if len(jobs) > 1:
            logger.warning(
                "a batch of %d requests failed (%s); running them one by one", len(jobs), type(error).__name__
            )
            for job in jobs:
                self._execute([entry for entry in batch if entry[0] is job])
        elif len(batch) > 1 and "out of memory" in str(error).lower():
            half = len(batch) // 2
            self._execute(batch[:half])
            self._execute(batch[half:])
        else:
            jobs[0].cancel()  # its other rows need not run
            if not jobs[0].future.done():
                jobs[0].future.set_exception(error)
