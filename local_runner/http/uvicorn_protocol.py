"""uvicorn's HTTP protocol with a limit on everything that a client may make it hold or wait for.

Requests are parsed one at a time: bytes that a client sends before it has its answer wait unparsed, and few of them. A
request's head is limited in bytes, fields and time; the framing around a body's pieces in bytes; a body in its
pauses, its rate and its time; a client that reads its answer, in its rate. Refusals are answered in JSON.
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
from local_runner.host.departures import WaitingClient, client
from scoring.errors import MiiAzureError, RequestError

# All limits of a connection; docs/serving.md lists them.
HEAD_BYTES = 64 << 10  # of request line and headers; of trailers and other framing between two pieces of a body
HEAD_FIELDS = 256
HEAD_S = 30.0  # for a complete head, from its first byte
BODY_S = 30.0  # between two pieces of a body
BODY_TOTAL_S = 600.0  # for a complete body
READER_S = 60.0  # interval at which a client that is slow to read its answer is checked again
LEAST_RATE = 512.0  # bytes per second of a body after its first BODY_S, and of an answer that waits to be read
HELD_BYTES = 64 << 10  # sent ahead of an answer; beyond it reading pauses

_PIECE = 1 << 10  # parsed at once after a body's end; bounds how many requests can be found in it


class _Flow(FlowControl):
    """uvicorn's flow control, which stays paused while enough waits to be parsed, even if uvicorn resumes it."""

    full = False

    def resume_reading(self) -> None:
        if not self.full:
            super().resume_reading()


class Protocol(HttpToolsProtocol):
    """Protocol of one connection; runs on the event loop, with all times by its monotonic clock."""

    _flow: _Flow
    _running: RequestResponseCycle | None = None  # the request being answered now, or the last one
    _client: WaitingClient | None = None  # whoever waits for its answer
    _part = "none"  # part of a request that is arriving now: none, head or body
    _left = 0  # bytes left of a body of known length
    _overhead = 0  # bytes since the first of a head, or since the last piece of a body
    _began = 0.0  # time at which the current wait for the client began
    _latest = 0.0  # time at which its last bytes arrived
    _received = 0  # bytes received during it
    _due: Callable[[], float]
    _late: Callable[[], None]
    _waiting: asyncio.TimerHandle | None = None  # waits for the client to send
    _reading: asyncio.TimerHandle | None = None  # waits for the client to read
    _untaken = 0  # bytes that the client had not read at the last check

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
        if self._running is not None:  # uvicorn keeps the newest request, which may be queued behind this one
            self._running.disconnected = True
            self._running.message_event.set()
        if self._client is not None:
            self._client.leave()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running, self._client = cycle, WaitingClient()
        token = client.set(self._client)  # in the context that the task copies
        super()._start_asgi_task(cycle, app)
        client.reset(token)

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
        if self._part == "head":  # a trailer must not be taken for a header
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
        """Do nothing: the request is answered over HTTP/1.1, as a server may choose."""

    def _parse(self) -> None:
        """Parse, a little at a time, until a request is complete."""
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
            self._wait_for_a_request()  # blank lines would end uvicorn's own keep-alive timeout for good

    def _bound_what_is_held(self) -> None:
        was_full, self._flow.full = self._flow.full, len(self._held) > HELD_BYTES
        if self._flow.full:
            self._flow.pause_reading()
        elif was_full:
            self._flow.resume_reading()

    def _answering(self) -> bool:
        """True if a request is complete and its answer is not."""
        cycle = self.cycle
        return bool(self.pipeline) or (cycle is not None and not cycle.more_body and not cycle.response_complete)

    def _idle(self) -> bool:
        return (self.cycle is None or self.cycle.response_complete) and not self.transport.is_closing()

    def _wait_for_a_request(self) -> None:
        self._wait(lambda: self._began + self.timeout_keep_alive, self.transport.close)

    def _wait(self, due: Callable[[], float], late: Callable[[], None]) -> None:
        """Call `late` once the clock reaches `due()`, which data from the client may postpone."""
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
        if self._answering() or self.flow.read_paused:  # it is this side that has stopped reading
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
        """Bytes not yet read, here and in the kernel, which reports free space only after much has been read."""
        descriptor = self.transport.get_extra_info("socket").fileno()
        try:
            waiting = fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4))
        except (OSError, ValueError):  # the connection has just closed
            return 0
        return int(self.transport.get_write_buffer_size()) + int(struct.unpack("i", waiting)[0])

    def _refuse(self, error: MiiAzureError) -> None:
        """Answer the client with the error, unless it is being answered, and close."""
        if self.transport.is_closing():
            return
        self._held.clear()
        if self._answering():
            self.cycle.keep_alive = False  # requests that arrived complete before are still answered
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
