"""uvicorn's HTTP protocol with an end to everything that a client may make it hold or wait for.

Requests are parsed one at a time: what a client sends before it has its answer waits as bytes, and little of it. A
request's head is bounded in bytes, fields and time, what is around a body's pieces in bytes, a body in its pauses, its
rate and its time, and so is whoever is sent an answer. What is refused is told so in JSON.
"""

import asyncio
import fcntl
import json
import struct
import termios
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from local_runner.errors import HeadTooLarge, RequestStalled
from scoring.errors import MiiAzureError, RequestError

# All limits of a connection; docs/serving.md tells them.
HEAD_BYTES = 64 << 10  # of request line and headers; of trailers and what else is between two pieces of a body
HEAD_FIELDS = 256
HEAD_S = 30.0  # for a whole head, from its first byte
BODY_S = 30.0  # between two pieces of a body
BODY_TOTAL_S = 600.0  # for a whole body
READER_S = 60.0  # after which a client that has been slow to take its answer is looked at again
LEAST_RATE = 512.0  # bytes a second of a body past its first BODY_S, and of an answer that waits to be taken
HELD_BYTES = 64 << 10  # sent ahead of an answer; past them no more is read

_PIECE = 1 << 10  # parsed at once past a body's end; bounds how many requests can be found in it


class _Flow(FlowControl):
    """uvicorn's, which reads no further while enough waits to be parsed, whoever wants to."""

    full = False

    def resume_reading(self) -> None:
        if not self.full:
            super().resume_reading()


class Protocol(HttpToolsProtocol):
    """One connection; all on the event loop, and all times by its monotonic clock."""

    _flow: _Flow
    _running: RequestResponseCycle | None = None  # what is answered now, or was last
    _part = "none"  # of a request, that comes now: none, head or body
    _left = 0  # bytes of a body whose length was told
    _overhead = 0  # bytes since a head's first, or since the last piece of a body
    _began = 0.0  # to wait for what the client sends now
    _latest = 0.0  # something of it came
    _received = 0  # bytes of it
    _due: Callable[[], float]
    _late: Callable[[], None]
    _waiting: asyncio.TimerHandle | None = None  # for the client to send
    _reading: asyncio.TimerHandle | None = None  # for the client to read
    _untaken = 0  # bytes that the client had not taken when last looked at

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = self._flow = _Flow(transport)
        self._held = bytearray()
        self._wait_for_a_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self._stop_reading()
        self._held.clear()
        super().connection_lost(exc)
        if self._running is not None:  # uvicorn tells the last that came, which may wait behind this one
            self._running.disconnected = True
            self._running.message_event.set()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def data_received(self, data: bytes) -> None:
        self._held += data
        self._parse()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._held:
            self.loop.call_soon(self._parse)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._part, self._overhead = "head", 0
        self._wait(lambda: self._began + HEAD_S, self._stalled)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._part == "head":  # a trailer must not pass for a header
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if len(self.headers) > HEAD_FIELDS:
            raise _fields_too_many()
        super().on_headers_complete()
        self._part, self._overhead = "body", 0
        self._left = next((int(value) for name, value in self.headers if name == b"content-length"), 0)
        self._wait(self._body_due, self._stalled)

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        self._overhead = 0
        self._latest = self.loop.time()
        self._received += len(body)
        self._left -= len(body)

    def on_message_complete(self) -> None:
        self._stop_waiting()
        self._part, self._overhead, self._left = "none", 0, 0
        super().on_message_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        self._stop_reading()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        many = self.headers is not None and len(self.headers) > HEAD_FIELDS
        self._refuse(_fields_too_many() if many else RequestError(msg, "Send HTTP/1.1."))

    def _unsupported_upgrade_warning(self) -> None:
        """Nothing: the request is answered over HTTP/1.1, which is a server's to choose."""

    def _parse(self) -> None:
        """Parse, a little at a time, until a request is whole."""
        while self._held and not self._answering() and not self.transport.is_closing():
            size = max(_PIECE, self._left)
            piece = bytes(self._held[:size])
            del self._held[:size]
            self._overhead += len(piece)
            super().data_received(piece)
            if self._overhead > HEAD_BYTES:
                self._refuse(HeadTooLarge(f"The head is larger than {HEAD_BYTES} bytes.", "Send fewer headers."))
        self._bound_what_is_held()
        if self._waiting is None and self.timeout_keep_alive_task is None and self._idle():
            self._wait_for_a_request()  # blank lines end uvicorn's own patience for good

    def _bound_what_is_held(self) -> None:
        was_full, self._flow.full = self._flow.full, len(self._held) > HELD_BYTES
        if self._flow.full:
            self._flow.pause_reading()
        elif was_full:
            self._flow.resume_reading()

    def _answering(self) -> bool:
        """Whether a request is whole, and its answer is not."""
        cycle = self.cycle
        return bool(self.pipeline) or (cycle is not None and not cycle.more_body and not cycle.response_complete)

    def _idle(self) -> bool:
        return (self.cycle is None or self.cycle.response_complete) and not self.transport.is_closing()

    def _wait_for_a_request(self) -> None:
        self._wait(lambda: self._began + self.timeout_keep_alive, self.transport.close)

    def _wait(self, due: Callable[[], float], late: Callable[[], None]) -> None:
        """Call `late` once the clock has reached what `due` gives, which what is sent until then may put off."""
        self._stop_waiting()
        self._due, self._late = due, late
        self._began = self._latest = self.loop.time()
        self._received = 0
        self._waiting = self.loop.call_at(due(), self._look_at_sender)

    def _body_due(self) -> float:
        steady = self._began + BODY_S + self._received / LEAST_RATE
        return min(self._latest + BODY_S, steady, self._began + BODY_TOTAL_S)

    def _look_at_sender(self) -> None:
        self._waiting = None
        if self._answering() or self.flow.read_paused:  # it is this side that does not read on
            self._wait(self._due, self._late)
        elif self.loop.time() < self._due():
            self._waiting = self.loop.call_at(self._due(), self._look_at_sender)
        else:
            self._late()

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _stalled(self) -> None:
        self._refuse(RequestStalled("The request stopped half-way.", "Send all of it."))

    def _watch_reader(self) -> None:
        self._stop_reading()
        self._untaken = self._not_taken()
        self._reading = self.loop.call_later(READER_S, self._look_at_reader)

    def _look_at_reader(self) -> None:
        if self._untaken - self._not_taken() >= READER_S * LEAST_RATE:
            self._watch_reader()
        else:
            self.transport.abort()

    def _stop_reading(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _not_taken(self) -> int:
        """Bytes that wait here and in the kernel, which tells of room for more only once much has been taken."""
        descriptor = self.transport.get_extra_info("socket").fileno()
        try:
            waiting = fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4))
        except (OSError, ValueError):  # it has just gone
            return 0
        return int(self.transport.get_write_buffer_size()) + int(struct.unpack("i", waiting)[0])

    def _refuse(self, error: MiiAzureError) -> None:
        """Tell the client, unless it is being answered, and close."""
        if self.transport.is_closing():
            return
        self._held.clear()
        if self._answering():
            self.cycle.keep_alive = False  # what came whole before is answered
        elif self._part == "body" and self.cycle.response_started:
            self.transport.abort()
        else:
            self.transport.write(_told(error))
            self.transport.close()


def _fields_too_many() -> HeadTooLarge:
    return HeadTooLarge(f"The head has more than {HEAD_FIELDS} fields.", "Send fewer headers.")


def _told(error: MiiAzureError) -> bytes:
    body = json.dumps(error.to_dict()).encode()
    status = f"{error.http_status} {HTTPStatus(error.http_status).phrase}"
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
    return f"{head}connection: close\r\n\r\n".encode() + body
