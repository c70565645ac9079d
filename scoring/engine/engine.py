"""One inference thread behind a bounded queue; rows that wait together run together.

The queue is in the order of priorities, of equal ones in that of arrival.

Rows with the key SLOTS join and leave a running batch between its steps; other rows run in separate batches, each
to its end. Both kinds take turns: after every batch, and between the steps of a batch that generates, the slots advance
one step; after every step of the slots the oldest waiting batch starts. So neither waits for more than one batch
step or one slot step of the other kind.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, Protocol, TypeVar

from scoring.config import Limits
from scoring.engine.job import Job
from scoring.engine.oom import LargestServed, free_memory, is_out_of_memory
from scoring.engine.outbox import Outbox
from scoring.engine.row import SLOTS, ModelRunner, Row, Slots, generated
from scoring.errors import MiiAzureError, NotReady, Overloaded

logger = logging.getLogger("mii_azure.engine")

Waiting = tuple[Job, int, Row]
Called = TypeVar("Called")


class Fallback(Protocol):
    """Withdraws passes under which the model fails."""

    def withdraw(self, failure: Exception, again: bool = False) -> bool:
        """Withdraw the last pass; False if there is none, or none that could be to blame.

        `again`: the same rows failed after the previous call too.
        """

    def reinstate(self) -> None:
        """Reapply the passes withdrawn for the rows that failed last: they were not to blame."""


class Engine:
    """Batches rows by a budget of padded tokens and runs them on its own thread.

    All model calls happen on that one thread, because CUDA-graph state is thread-local.
    """

    def __init__(self, task: ModelRunner, limits: Limits) -> None:
        self._task = task
        self._limits = limits
        self._waiting: deque[Waiting] = deque()
        self._changed = threading.Condition()
        self.statistics = task.statistics
        self.outbox = Outbox()
        self._largest = LargestServed(task.unit)
        self._running = 0  # rows of the batch
        self._batch: list[Waiting] = []  # the same
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()  # work between steps
        self._on_slots = 0
        self._held: dict[int, Waiting] = {}  # entries on slots, by their rows' identity
        self._failed: list[tuple[Waiting, Exception]] = []  # entries that failed on slots in this step
        self._draining = False
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
        self._started: Future[None] = Future()

    def change(self, limits: Limits) -> None:
        """Change the limits for later requests."""
        self._limits = limits

    def start(self, prepare: Callable[[], None] = lambda: None, fallback: "Fallback | None" = None) -> None:
        """Start the thread, and on it prepare and warm up the model; raises whatever either raised."""
        self._prepare, self._fallback = prepare, fallback
        self._thread.start()
        self._started.result()

    def submit(self, rows: Sequence[Row], patience_s: float = 0.0, then: Callable[[Job], None] | None = None) -> Job:
        """Queue the rows of one request, waiting so long for room in the queue; `then` takes the job when it has ended.

        Raises Overloaded when the queue stays full, NotReady while draining.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._draining or not self._full(rows), patience_s)
            job = Job(rows)
            for row in rows:
                row.queued = job.since
            if self._draining:
                raise NotReady("The server is shutting down.", "Send the request again; another instance will take it.")
            self._drop_cancelled()
            if self._full(rows):
                raise Overloaded(
                    f"{len(self._waiting)} rows are waiting already.",
                    "Try again in a second, or send less at once.",
                )
            if then is not None:
                job.future.add_done_callback(lambda _: then(job))
            self._enqueue([(job, position, row) for position, row in enumerate(rows)])
            self.statistics.count("prompt_tokens", sum(row.prompt_tokens for row in rows if not row.answer))
            self._changed.notify_all()
        return job

    def call(self, work: Callable[[], Called]) -> Called:
        """Run work on the inference thread between two steps; return what it returns, or raise what it raises."""
        done: Future[Called] = Future()
        with self._changed:
            self._calls.append((work, done))
            self._changed.notify_all()
        return done.result()

    def rows(self) -> list[Row]:
        """Rows that wait or run; within a call."""
        with self._changed:
            return [row for _, _, row in (*self._waiting, *self._batch, *self._held.values())]

    def _answer_calls(self) -> None:
        while self._calls:
            work, done = self._calls.popleft()
            try:
                done.set_result(work())
            except BaseException as error:
                done.set_exception(error)

    def _enqueue(self, entries: Sequence[Waiting]) -> None:
        """Append entries to the queue, behind all of no higher priority."""
        urgent = entries[0][2].priority if entries else 0
        if not self._waiting or self._waiting[-1][2].priority <= urgent:  # nearly every request
            self._waiting.extend(entries)
        else:
            self._waiting = deque(sorted([*self._waiting, *entries], key=lambda entry: entry[2].priority))

    def _full(self, rows: Sequence[Row]) -> bool:
        return bool(self._waiting) and len(self._waiting) + len(rows) > self._limits.queue_size

    def depth(self) -> int:
        """Rows waiting or running."""
        with self._changed:
            return len(self._waiting) + self._running + self._on_slots

    def waiting(self) -> int:
        """Rows that no batch has taken yet."""
        return len(self._waiting)

    def drain(self, timeout_s: float) -> bool:
        """Take no more work and wait until accepted work is done; False if the time ran out."""
        with self._changed:
            self._draining = True
            self._changed.notify_all()
            return self._changed.wait_for(
                lambda: not self._waiting and not self._running and not self._on_slots, timeout_s
            )

    def _run(self) -> None:
        try:
            self._prepare()
            self._warm_up()
        except BaseException as error:
            self._started.set_exception(error)
            return
        if (slots := self._slots()) is not None:
            self.statistics.cache = slots.cache
        self._started.set_result(None)
        while True:
            batch = self._next_batch()
            if batch:
                self._execute(batch)
                with self._changed:
                    self._running, self._batch = 0, []
                    self._changed.notify_all()
            self._step_slots()

    def _warm_up(self) -> None:
        while True:
            try:
                self._task.warm_up()
            except Exception as failure:
                if self._fallback is None or not self._fallback.withdraw(failure):
                    raise
            else:
                return

    def _next_batch(self) -> list[Waiting]:
        """The oldest row and every waiting row that may share its forward, within the budget of padded tokens.

        Waits for work; rows for slots stay in the queue, and if there are only such rows there is no batch.
        """
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._waiting or self._on_slots or self._calls)
                self._drop_cancelled()
                if self._waiting or self._on_slots or self._calls:
                    break
                self._changed.notify_all()
            slots = self._slots()
            batch: list[Waiting] = []
            left, longest = deque[Waiting](), 0
            while self._waiting:
                entry = self._waiting.popleft()
                row = entry[2]
                if slots is None and row.key == SLOTS:  # made for slots that are gone since
                    row.key = object()
                width = max(longest, row.footprint)
                fits = width * (len(batch) + 1) <= self._limits.max_batch_tokens
                if slots is not None and row.key == SLOTS:
                    left.append(entry)
                elif not batch or (row.key == batch[0][2].key and fits and len(batch) < self._limits.max_batch_size):
                    batch.append(entry)
                    longest = width
                else:
                    left.append(entry)
            self._waiting = left
            self._running, self._batch = len(batch), batch
        self._left_queue(batch)
        return batch

    def _left_queue(self, entries: Sequence[Waiting]) -> None:
        now = time.perf_counter()
        for job, _, _ in entries:
            job.began = job.began or now
            self.statistics.stages["queue"].add(now - job.since)

    def _slots(self) -> Slots | None:
        return self._task.slots(self._limits)

    def _step_slots(self) -> None:
        """Give free slots to rows that wait for one, and advance all rows on slots by one step.

        Pieces of streams, of a batch's last step and of this one, are handed over.
        """
        self.outbox.hand_over()
        self._answer_calls()
        slots = self._slots()
        if slots is None:
            return
        with self._changed:
            self._drop_cancelled()
            while (entry := self._first_for(slots)) is not None:
                self._waiting.remove(entry)
                self._left_queue([entry])
                self._held[id(entry[2])] = entry
                slots.add(entry[2], partial(self._from_slots, entry))
            self._on_slots = slots.active
            self._changed.notify_all()
        if slots.active:
            self.statistics.batch.add(slots.active)
            with self.statistics.timed("forward"):
                slots.step()
            self.outbox.hand_over()
            self.statistics.cache = slots.cache
            self._rescue()
            with self._changed:
                self._on_slots = slots.active if self._held else 0
                self._changed.notify_all()

    def _from_slots(self, entry: Waiting, output: Any) -> None:
        """Take a row's output from the slots; a failure that may be the slots' own is looked into after the step."""
        job, position, row = entry
        self._held.pop(id(row), None)
        own = isinstance(output, Exception) and not isinstance(output, MiiAzureError) and not is_out_of_memory(output)
        if own and self._fallback is not None:
            self._failed.append((entry, output))
        else:
            self._deliver(job, position, output)

    def _rescue(self) -> None:
        """Run rows that failed on slots without them; where that answers, the slots are to blame, and are withdrawn."""
        while self._failed:
            (job, position, row), error = self._failed.pop(0)
            logger.warning("a row failed on the slots (%s); running it without them", type(error).__name__)
            row.key = object()
            try:
                [output] = self._task.forward([row])
            except Exception:  # the row itself is to blame
                self._deliver(job, position, error)
                continue
            self._leave_slots(error)
            self._deliver(job, position, output)

    def _leave_slots(self, error: Exception) -> None:
        """Withdraw the slots, and run again without them the rows that were on them."""
        withdrawn = False
        while self._slots() is not None:
            if self._fallback is None or not self._fallback.withdraw(error, again=withdrawn):
                return
            withdrawn = True
        entries = [*(entry for entry, _ in self._failed), *self._held.values()]
        self._failed, self._held = [], {}
        with self._changed:
            for entry in reversed(entries):
                entry[2].key = object()
                self._waiting.appendleft(entry)

    def _first_for(self, slots: Slots) -> Waiting | None:
        """The oldest row that waits for a slot, if it fits; shorter rows never overtake it."""
        first = next((entry for entry in self._waiting if entry[2].key == SLOTS), None)
        return first if first is not None and slots.fits(first[2]) else None

    def _drop_cancelled(self) -> None:
        for job, _, row in self._waiting:
            if row.cancelled.is_set():
                job.future.cancel()
        self._waiting = deque(entry for entry in self._waiting if not entry[2].cancelled.is_set())

    def _execute(self, batch: list[Waiting]) -> None:
        failed: Exception | None = None
        try:
            self.statistics.batch.add(len(batch))
            with self.statistics.timed("forward"):
                outputs = self._task.forward([row for _, _, row in batch], self._step_slots)
            answered = list(zip(batch, outputs, strict=True))
        except Exception as error:
            failed = error
        if failed is not None:  # outside the handler, which would keep the failed call's memory alive
            self._isolate(batch, failed)
            return
        for (job, position, _), output in answered:
            self._deliver(job, position, output)

    def _deliver(self, job: Job, position: int, output: Any) -> None:
        """Take a row's output or error; the last output of a request completes it."""
        job.ended = time.perf_counter()
        row = job.rows[position]
        if isinstance(output, Exception):
            job.cancel()  # its other rows need not run
            if not job.future.done():
                job.future.set_exception(self._largest.refusal(row.footprint) if is_out_of_memory(output) else output)
            return
        if not row.cancelled.is_set():
            self._largest.note(row.footprint)
        if row.new_tokens:
            self.statistics.count("generated_tokens", generated(output))
        job.outputs[position] = output
        if len(job.outputs) == len(job.rows) and not job.future.done():
            job.future.set_result([job.outputs[i] for i in range(len(job.rows))])

    def _isolate(self, batch: list[Waiting], error: Exception) -> None:
        """Find the requests of a failed batch that fail on their own, so that the others are still answered."""
        jobs = list(dict.fromkeys(job for job, _, _ in batch))
        short = is_out_of_memory(error)
        if short:
            free_memory(error)
        if short and len(batch) > 1:
            logger.warning("a batch of %d rows ran out of memory; running its halves", len(batch))
            half = len(batch) // 2
            self._execute(batch[:half])
            self._execute(batch[half:])
        elif len(jobs) > 1:
            logger.warning(
                "a batch of %d requests failed (%s); running them one by one", len(jobs), type(error).__name__
            )
            for job in jobs:
                self._execute([entry for entry in batch if entry[0] is job])
        elif short or not self._answered_without(batch, error):
            self._deliver(*batch[0][:2], error)

    def _answered_without(self, batch: list[Waiting], error: Exception) -> bool:
        """Return True if failed rows are answered once passes are withdrawn; if not, the rows are to blame."""
        if self._fallback is None or self._slots() is not None:  # rows on slots depend on the applied passes
            return False
        withdrawn = False
        while self._fallback.withdraw(error, again=withdrawn):
            withdrawn = True
            try:
                outputs = self._task.forward([row for _, _, row in batch], self._step_slots)
            except Exception as again:
                error = again
                continue
            for (job, position, _), output in zip(batch, outputs, strict=True):
                self._deliver(job, position, output)
            return True
        if withdrawn:
            self._fallback.reinstate()
        return False
