"""The front end's side: an engine in another process, as requests of this one use it.

A thread reads what the engine sends: the tokens of each step become pieces of streams here, and readers of streams are
told of them once a step, as the inference thread does where there is one process.
"""

import logging
import socket
import threading
from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from scoring.config import AdapterRef
from scoring.engine.job import Job
from scoring.engine.outbox import Outbox
from scoring.engine.row import SLOTS, Row
from scoring.front_ends.channel import Channel
from scoring.front_ends.messages import State, pack_rows, unpack_error
from scoring.lora.served import AdapterChange, ServedAdapters
from scoring.telemetry.statistics import Statistics

logger = logging.getLogger("mii_azure.front_ends")

_CHANGE_S = 600.0  # to read adapters and to find places for them
_ANSWER_S = 10.0  # for metadata: an engine that hangs must not hold its callers for ever


class TextStream(Protocol):
    """Makes pieces of one row's tokens as they come."""

    row: Row

    def push(self, token: int, chance: Any = None) -> bool:
        """Take the next token, and its log-probabilities if the row asks for them."""


class Texts(Protocol):
    """Makes texts of tokens."""

    def stream(self, row: Row) -> TextStream:
        """Return the stream of a row's texts."""

    def end(self, row: Row, output: Any) -> None:
        """Send a stream the text that was held back until its row's output is whole."""


class RemoteEngine:
    """Queue of the engine at the other end of a connection; `gone` is called when that closes."""

    def __init__(self, connection: socket.socket, gone: Callable[[], None]) -> None:
        self.statistics: Statistics = _Forwarded(self)
        self.outbox = Outbox()
        self.texts: Texts  # set before the first row comes
        self.state = State()
        self.on_state: Callable[[State], None] = lambda state: None
        self.adapters = ServedAdapters()
        self.facts: Future[bytes] = Future()
        self._gone = gone
        self._channel = Channel(connection, waits=True)
        self._jobs: dict[int, RemoteJob] = {}
        self._streams: dict[int, TextStream] = {}  # by their rows' numbers
        self._rows: dict[int, Row] = {}  # those whose pieces the engine makes
        self._asked: dict[int, Future[Any]] = {}
        self._lock = threading.Lock()
        self._next = 0
        self._kinds: dict[str, Callable[..., None]] = {
            "facts": self.facts.set_result,
            "state": self._in_state,
            "accepted": self._accepted,
            "refused": self._refused,
            "tokens": self._tokens,
            "event": self._event,
            "done": self._done,
            "failed": self._failed,
            "told": lambda number, value: self._asked.pop(number).set_result(value),
            "untold": lambda number, error: self._asked.pop(number).set_exception(unpack_error(error)),
            "adapters": self._adapted,
        }
        threading.Thread(target=self._read, name="engine", daemon=True).start()

    def submit(self, rows: Sequence[Row], patience_s: float = 0.0) -> "RemoteJob":
        """Queue the rows of one request there, waiting so long for room; raises Overloaded, or NotReady while draining.

        It returns as soon as the engine has taken them, so that a refusal has a status of its own.
        """
        job = RemoteJob(rows, self._number(len(rows)), self._cancel)
        for number, row in enumerate(rows, job.number):
            row.queued = job.since
            if row.emit is not None and row.key == SLOTS:
                self._streams[number] = self.texts.stream(row)
            elif row.emit is not None:
                self._rows[number] = row
        self._jobs[job.number] = job
        self._channel.send("submit", job.number, pack_rows(rows), patience_s)
        job.accepted.result()
        return job

    def ask(self, name: str) -> Any:
        """Call a method of the engine's service and return its result; raises TimeoutError."""
        return self._answered("ask", name, _ANSWER_S)

    def change_adapters(self, change: AdapterChange) -> None:
        """Have the engine change its adapters; this process and the others know them by then. Raises as it does."""
        self._answered("change", change, _CHANGE_S)

    def _answered(self, kind: str, what: Any, seconds: float) -> Any:
        answer: Future[Any] = Future()
        number = self._number(1)
        self._asked[number] = answer
        self._channel.send(kind, number, what)
        return answer.result(seconds)

    def _adapted(self, number: int, adapters: tuple[AdapterRef, ...]) -> None:
        self.adapters.refs = adapters
        if number:
            self._channel.send("adapted", number)

    def timed(self, stage: str, seconds: float) -> None:
        """Have the engine count the time of a stage, with the next message."""
        self._channel.post("timed", stage, seconds)

    def flush(self) -> None:
        """Send everything that waits for the next message."""
        self._channel.flush()

    def _number(self, count: int) -> int:
        """The first of `count` new numbers."""
        with self._lock:
            number, self._next = self._next, self._next + count
        return number

    def _cancel(self, job: "RemoteJob") -> None:
        if job.number in self._jobs:
            self._channel.send("cancel", job.number)

    def _read(self) -> None:
        while (messages := self._channel.receive()) is not None:
            for message in messages:
                try:
                    self._kinds[message[0]](*message[1:])
                except Exception:  # must not end the thread that serves all others
                    logger.exception("a message of the engine could not be read")
            if messages:
                self.outbox.hand_over()
        self._gone()

    def _in_state(self, state: State) -> None:
        self.state = state
        self.on_state(state)

    def _accepted(self, number: int) -> None:
        if job := self._jobs.get(number):
            job.accepted.set_result(None)

    def _ended(self, number: int) -> "RemoteJob":
        job = self._jobs.pop(number)
        if not job.accepted.done():  # it ended at once
            job.accepted.set_result(None)
        return job

    def _forget(self, job: "RemoteJob") -> None:
        """Drop the state of the job's streams."""
        for own in range(job.number, job.number + len(job.rows)):
            self._rows.pop(own, None)
            self._streams.pop(own, None)

    def _refused(self, number: int, error: Any) -> None:
        job = self._jobs.pop(number)
        self._forget(job)
        job.accepted.set_exception(unpack_error(error))

    def _tokens(self, numbers: bytes, tokens: bytes, chances: list[tuple[int, Any]]) -> None:
        told = dict(chances)
        rows, values = array("Q"), array("q")
        rows.frombytes(numbers)
        values.frombytes(tokens)
        for at, (number, token) in enumerate(zip(rows, values, strict=True)):
            if (stream := self._streams.get(number)) is not None:
                try:
                    stream.push(token, told.get(at))
                except Exception as error:
                    self._streams.pop(number)
                    self._fail(stream.row, error)

    def _fail(self, row: Row, error: Exception) -> None:
        """End the job of a row whose text cannot be made."""
        job = next(each for each in self._jobs.values() if any(own is row for own in each.rows))
        job.future.set_exception(error)
        job.cancel()

    def _event(self, number: int, event: Any) -> None:
        if (row := self._rows.get(number)) is not None and row.emit is not None:
            row.emit(event)

    def _done(self, number: int, outputs: list[Any], cached: list[int], times: tuple[float, float]) -> None:
        job = self._ended(number)
        job.began, job.ended = times
        for own, (row, output, count) in enumerate(zip(job.rows, outputs, cached, strict=True), number):
            row.cached = count
            if own in self._streams and not job.future.done():
                try:
                    self.texts.end(row, output)
                except Exception as error:
                    job.future.set_exception(error)
        self._forget(job)
        if not job.future.done():
            job.future.set_result(outputs)

    def _failed(self, number: int, error: Any, times: tuple[float, float]) -> None:
        job = self._ended(number)
        job.began, job.ended = times
        self._forget(job)
        if job.future.done():
            return
        if error is None:
            job.future.cancel()
        else:
            job.future.set_exception(unpack_error(error))


class RemoteJob(Job):
    """Rows of one request in the engine of another process."""

    def __init__(self, rows: Sequence[Row], number: int, stop: "Callable[[RemoteJob], None]") -> None:
        super().__init__(rows)
        self.number = number  # of its first row; the others' follow
        self.accepted: Future[None] = Future()
        self._stop = stop

    def cancel(self) -> None:
        """Cancel the job: drop its waiting rows, and stop its running ones at their next step."""
        super().cancel()
        self._stop(self)


class _Forwarded(Statistics):
    """Statistics whose times of stages the engine counts."""

    def __init__(self, engine: RemoteEngine) -> None:
        super().__init__()
        self._engine = engine

    def took(self, stage: str, seconds: float) -> None:
        self._engine.timed(stage, seconds)
