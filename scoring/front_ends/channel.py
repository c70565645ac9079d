"""One end of the connection between the engine's process and a front end: messages in order, in both directions.

A frame is its length and a pickled list of messages, each a tuple that begins with its kind. Both ends are processes of
one user that run the same code, over a socket that has no name: neither can be sent what it must not unpickle.
"""

import pickle
import socket
import struct
import threading
from typing import Any

_LENGTH = struct.Struct("<Q")
_PIECE = 1 << 18  # bytes read at once

Message = tuple[Any, ...]


class Channel:
    """Sends and receives messages; `post` and `flush` from any thread, `receive` from one."""

    def __init__(self, connection: socket.socket, waits: bool) -> None:
        self.connection = connection
        self.open = True
        self._flags = 0 if waits else socket.MSG_DONTWAIT
        self._lock = threading.Lock()
        self._posted: list[Message] = []
        self._unsent = b""
        self._received = bytearray()

    def post(self, *message: Any) -> None:
        """Append a message to those that the next `flush` sends."""
        with self._lock:
            self._posted.append(message)

    def send(self, *message: Any) -> bool:
        """Post a message and flush."""
        self.post(*message)
        return self.flush()

    def flush(self) -> bool:
        """Send posted messages, or as much as goes without waiting; False if something is left. Never raises."""
        with self._lock:
            if self._posted:
                data = pickle.dumps(self._posted, pickle.HIGHEST_PROTOCOL)
                self._posted = []
                self._unsent += _LENGTH.pack(len(data)) + data
            while self._unsent and self.open:
                try:
                    sent = self.connection.send(self._unsent, self._flags | socket.MSG_NOSIGNAL)
                except (BlockingIOError, InterruptedError):
                    return False
                except OSError:  # the other side is gone, which its reader finds too
                    self.open = False
                    break
                self._unsent = self._unsent[sent:]
            self._unsent = self._unsent if self.open else b""
            return True

    def receive(self) -> list[Message] | None:
        """The messages of the next bytes that arrive, perhaps none; None once the other side is gone."""
        try:
            data = self.connection.recv(_PIECE, self._flags)
        except (BlockingIOError, InterruptedError):
            return []
        except OSError:
            data = b""
        if not data:
            self.open = False
            return None
        self._received += data
        found: list[Message] = []
        at = 0
        while len(self._received) - at >= _LENGTH.size:
            end = at + _LENGTH.size + _LENGTH.unpack_from(self._received, at)[0]
            if end > len(self._received):
                break
            found += pickle.loads(memoryview(self._received)[at + _LENGTH.size : end])  # noqa: S301  # see above
            at = end
        if at:
            self._received = self._received[at:]
        return found

    def close(self) -> None:
        """Close the connection."""
        self.open = False
        self.connection.close()
