"""uvicorn's HTTP protocol with an end to waiting: for a request that stalls half-way, and for a reader that does.

A connection that has sent nothing may stay as long as an idle one; a request's head has to be whole within a time, a
body may take long but must go on, and so must whoever is sent an answer. What is no HTTP is told so in JSON.
"""

import asyncio
import json

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from local_runner.errors import RequestStalled
from scoring.errors import MiiAzureError, RequestError

HEAD_S = 30.0  # for a whole head, from its first byte
BODY_S = 30.0  # between two pieces of a body
READER_S = 60.0  # between two pieces that a client takes of an answer


class Protocol(HttpToolsProtocol):
    """One connection; all on the event loop, and all times by its monotonic clock."""

    _waiting: asyncio.TimerHandle | None = None  # for the client to send
    _reading: asyncio.TimerHandle | None = None  # for the client to read
    _unread = 0  # bytes that the client had not taken when last looked at

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait(self.timeout_keep_alive)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self._stop_reading()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._waiting is None and self.timeout_keep_alive_task is None and self._idle():
            self._wait(self.timeout_keep_alive)  # blank lines end uvicorn's own patience for good

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._wait(HEAD_S)

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._wait(BODY_S)

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        self._wait(BODY_S)

    def on_message_complete(self) -> None:
        self._stop_waiting()
        super().on_message_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        self._stop_reading()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        self._refuse("400 Bad Request", RequestError(msg, "Send HTTP/1.1."))

    def _idle(self) -> bool:
        return (self.cycle is None or self.cycle.response_complete) and not self.transport.is_closing()

    def _wait(self, seconds: float) -> None:
        self._stop_waiting()
        self._waiting = self.loop.call_later(seconds, self._stalled)

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _stalled(self) -> None:
        self._waiting = None
        if self.flow.read_paused:  # it is this side that does not read on
            self._wait(BODY_S)
        elif self.headers is None:
            self.transport.close()  # not one byte of a request came
        elif self.cycle is not None and self.cycle.response_started:
            self.transport.abort()
        else:
            self._refuse("408 Request Timeout", RequestStalled("The request stopped half-way.", "Send all of it."))

    def _watch_reader(self) -> None:
        self._stop_reading()
        self._unread = self._buffered()
        self._reading = self.loop.call_later(READER_S, self._look_at_reader)

    def _look_at_reader(self) -> None:
        if self._buffered() < self._unread:
            self._watch_reader()
        else:
            self.transport.abort()

    def _stop_reading(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _buffered(self) -> int:
        return int(self.transport.get_write_buffer_size())

    def _refuse(self, status: str, error: MiiAzureError) -> None:
        body = json.dumps(error.to_dict()).encode()
        head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        self.transport.write(f"{head}connection: close\r\n\r\n".encode() + body)
        self.transport.close()
