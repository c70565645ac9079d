"""The engine's side: rows of front ends join the queue like those of this process, and their tokens go back.

One thread reads what front ends send. The inference thread sends each of them one message a step, with the tokens of
all its streams as two arrays; texts are made there, not here.
"""

import contextlib
import logging
import queue
import selectors
import socket
import threading
import time
from array import array
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from scoring.config import AdapterRef
from scoring.engine.job import Job
from scoring.engine.row import SLOTS
from scoring.front_ends.channel import Channel, Message
from scoring.front_ends.messages import State, facts_of, pack_error, parameters_of, unpack_row
from scoring.lora.served import AdapterChange

if TYPE_CHECKING:
    from scoring.api.service import Service

logger = logging.getLogger("mii_azure.front_ends")

_LOOK_S = 0.02  # between two looks at the state of the engine
_TELL_S = 10.0  # for front ends to say that they know of adapters
_SETTLE_S = 0.5  # for what front ends have sent to be read


class EngineServer:
    """Front ends of this process's service, which may be there later than they; everything from any thread.

    `state` returns the condition that they are told whenever it changes.
    """

    def __init__(self, state: Callable[[], State]) -> None:
        self._state = state
        self._service: Service | None = None
        self._selector = selectors.DefaultSelector()
        self._links: list[_Link] = []
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()  # for the reading thread
        self._woken, self._wakes = socket.socketpair()
        self._wakes.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ)
        threading.Thread(target=self._run, name="front-ends", daemon=True).start()

    def attach(self, connection: socket.socket) -> None:
        """Answer the front end at the other end, until that closes."""
        self._soon(partial(self._add, connection))

    def serve(self, service: "Service") -> None:
        """Take rows for the service, which is ready."""

        def begin() -> None:
            self._service = service
            for link in self._links:
                link.begin(service)

        self._soon(begin)

    def tell_adapters(self, adapters: tuple[AdapterRef, ...]) -> None:
        """Tell every front end of the adapters that are served now, and wait until each knows them."""
        told: list[threading.Event] = []
        posted = threading.Event()

        def post() -> None:
            told.extend(link.tell_adapters(adapters) for link in self._links)
            posted.set()

        self._soon(post)
        posted.wait()
        deadline = time.monotonic() + _TELL_S
        if not all(each.wait(max(0.0, deadline - time.monotonic())) for each in told):
            logger.warning("a front end has not said that it knows of the adapters")

    def settle(self) -> None:
        """Wait until everything that front ends have sent by now is read."""
        if self._links:
            settled = threading.Event()
            self._soon(lambda: self._soon(settled.set))  # after one more round
            settled.wait(_SETTLE_S)

    def _soon(self, call: Callable[[], None]) -> None:
        self._calls.put(call)
        self.wake()

    def wake(self) -> None:
        """Have the reading thread look around."""
        with contextlib.suppress(BlockingIOError):  # it is awake enough
            self._wakes.send(b"\0")

    def _run(self) -> None:
        while True:
            try:
                self._round()
            except Exception:  # one front end's fault must not end the others' answers
                logger.exception("a message of a front end could not be read")

    def _round(self) -> None:
        asked: list[Callable[[], None]] = []
        for key, _ in self._selector.select(0 if self._calls.qsize() else _LOOK_S):
            if key.data is None:
                self._woken.recv(1 << 10)
            else:
                asked += self._read(key.data)
        # Taken only now: a message that cannot be read ends the round, and whoever called may wait for ever.
        calls = [self._calls.get() for _ in range(self._calls.qsize())]
        for call in (*calls, *asked):  # what is asked is answered after all that came before it has been read
            call()
        state = self._state()
        for link in self._links:
            link.tell(state)
            if link.more == link.channel.flush():
                link.more = not link.more
                events = selectors.EVENT_READ | link.more * selectors.EVENT_WRITE
                self._selector.modify(link.channel.connection, events, link)

    def _add(self, connection: socket.socket) -> None:
        link = _Link(connection, self)
        self._links.append(link)
        self._selector.register(connection, selectors.EVENT_READ, link)
        if self._service is not None:
            link.begin(self._service)

    def _read(self, link: "_Link") -> list[Callable[[], None]]:
        messages = link.channel.receive()
        if messages is None:
            self._selector.unregister(link.channel.connection)
            self._links.remove(link)
            link.end()
            return []
        return [asked for message in messages if (asked := link.take(message)) is not None]


class _Link:
    """One front end: its jobs, and what is on its way to it."""

    def __init__(self, connection: socket.socket, server: EngineServer) -> None:
        self.channel = Channel(connection, waits=False)
        self.more = False  # something waits for the connection to take it
        self._server = server
        self._service: Service | None = None
        self._told = State(began=-1.0)
        self._adapters: dict[int, threading.Event] = {}  # told of, until the front end says so
        self._jobs: dict[int, Job] = {}
        # Of this step; inference thread only.
        self._numbers, self._tokens = array("Q"), array("q")
        self._chances: list[Any] = []
        self._kinds: dict[str, Callable[..., Callable[[], None] | None]] = {
            "submit": self._submit,
            "cancel": self._cancel,
            "timed": self._timed,
            "ask": lambda number, name: partial(self._answer, number, name),
            "change": self._change,
            "adapted": lambda number: self._adapters.pop(number).set(),
        }

    def begin(self, service: "Service") -> None:
        """Take rows for a service that is ready."""
        self._service = service
        service.engine.outbox.attach(self._hand_over)
        self.channel.post("adapters", 0, service.adapters)
        self.channel.post("facts", facts_of(service.deployment, service.task))

    def tell_adapters(self, adapters: tuple[AdapterRef, ...]) -> threading.Event:
        """Tell the front end of the adapters that are served now; return what is set once it knows, or is gone."""
        known = threading.Event()
        if self._service is None:  # it is told of them first of all
            known.set()
        else:
            number = max(self._adapters, default=0) + 1
            self._adapters[number] = known
            self.channel.post("adapters", number, adapters)
        return known

    def tell(self, state: State) -> None:
        """Tell the front end of another state."""
        if state != self._told:
            self._told = state
            self.channel.post("state", state)

    def end(self) -> None:
        """Cancel all jobs of a front end that is gone."""
        self.channel.close()
        for known in self._adapters.values():
            known.set()
        if self._service is not None:
            self._service.engine.outbox.detach(self._hand_over)
        for job in list(self._jobs.values()):
            job.cancel()

    def take(self, message: Message) -> Callable[[], None] | None:
        """Carry a message out, or return the answer to it."""
        return self._kinds[message[0]](*message[1:])

    def _submit(self, number: int, packed: list[Any], patience_s: float) -> None:
        if patience_s > 0 or _constraint(packed):  # waiting, and compiling grammars, is for a thread of its own
            threading.Thread(target=self._queue, args=(number, packed, patience_s), daemon=True).start()
        else:
            self._queue(number, packed, 0.0)

    def _queue(self, number: int, packed: list[Any], patience_s: float) -> None:
        assert self._service is not None  # a front end sends rows after the facts
        try:
            rows = []
            for own, (row, streamed) in enumerate(map(unpack_row, packed), number):
                if streamed and row.key == SLOTS:
                    row.on_token = partial(self._put, own)
                elif streamed:
                    row.emit = partial(self.channel.post, "event", own)
                rows.append(row)
            if constraint := _constraint(packed):  # before the inference thread needs it
                task: Any = self._service.task  # one that generates
                task.grammars.start(constraint)
            job = self._service.engine.submit(rows, patience_s, partial(self._done, number))
        except Exception as error:
            self._send("refused", number, pack_error(error))
            return
        self._jobs[number] = job
        if job.future.done():
            self._jobs.pop(number, None)
        self._send("accepted", number)
        if not self.channel.open:
            job.cancel()

    def _cancel(self, number: int) -> None:
        if job := self._jobs.get(number):
            job.cancel()

    def _timed(self, stage: str, seconds: float) -> None:
        if self._service is not None:
            self._service.engine.statistics.took(stage, seconds)

    def _answer(self, number: int, name: str) -> None:
        assert self._service is not None  # as above
        self.channel.post("told", number, getattr(self._service, name)())

    def _change(self, number: int, change: AdapterChange) -> None:
        threading.Thread(target=self._changed, args=(number, change), daemon=True).start()

    def _changed(self, number: int, change: AdapterChange) -> None:
        assert self._service is not None  # as above
        try:
            self._service.change_adapters(change)
        except Exception as error:
            self._send("untold", number, pack_error(error))
        else:
            self._send("told", number, None)

    def _put(self, number: int, token: int, chance: Any) -> None:
        self._numbers.append(number)
        self._tokens.append(token)
        if chance is not None:
            self._chances.append((len(self._tokens) - 1, chance))

    def _hand_over(self) -> None:
        """Send the streams' new events of this step; inference thread only."""
        self._seal()
        if not self.channel.flush():
            self._server.wake()

    def _seal(self) -> None:
        if self._tokens:
            self.channel.post("tokens", self._numbers.tobytes(), self._tokens.tobytes(), self._chances)
            self._numbers, self._tokens, self._chances = array("Q"), array("q"), []

    def _done(self, number: int, job: Job) -> None:
        """Send how a job ended; its tokens go before. On the inference thread unless it was cancelled."""
        self._jobs.pop(number, None)
        times = (job.began, job.ended)
        if job.future.cancelled():
            self._send("failed", number, None, times)
            return
        self._seal()
        if error := job.future.exception():
            self._send("failed", number, pack_error(error), times)
        else:
            self._send("done", number, job.future.result(), [row.cached for row in job.rows], times)

    def _send(self, *message: Any) -> None:
        if not self.channel.send(*message):
            self._server.wake()


def _constraint(packed: list[Any]) -> Any:
    """Constraint on the answers of a request, if it has one."""
    return next((getattr(parameters_of(each), "constraint", None) for each in packed), None)
