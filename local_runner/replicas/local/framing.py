"""Framing between a front and its replicas over a Unix socket: frames of bytes, each preceded by its length.

A request is two frames, a head as JSON and the body; an answer is a head and the body, or, if the head says
`"stream"`, a frame per piece and an empty one at the end. A connection carries one request at a time, so that a slow
reader slows the writer down, and a closed connection means that the client went away.

grpc.aio over the same socket would do all of this for ten times the front's time: 300 to 500 µs of CPU a request where
this takes 30, and one front serves every replica.
"""

import asyncio
import json
import struct
from typing import Any

_LENGTH = struct.Struct(">I")
BUFFER = 64 << 10  # bytes that wait on either side of the socket

# Errors raised if the peer has gone.
GONE = (asyncio.IncompleteReadError, ConnectionError, BrokenPipeError, OSError)


def frame(data: bytes) -> bytes:
    """Prefix `data` with its length."""
    return _LENGTH.pack(len(data)) + data


def head(fields: dict[str, Any]) -> bytes:
    """Encode a head as a frame."""
    return frame(json.dumps(fields).encode())


class Connection:
    """One end of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._early = b""
        self.life = 0  # ordinal of the process at the other end, as its front counts
        writer.transport.set_write_buffer_limits(high=BUFFER)

    async def send(self, *frames: bytes) -> None:
        """Write frames; returns once the other side keeps up."""
        if self._writer.is_closing():  # uvloop would raise another error
            raise ConnectionResetError
        self._writer.write(b"".join(frames))
        await self._writer.drain()

    async def receive(self) -> bytes:
        """Receive the next frame."""
        prefix = self._early + await self._reader.readexactly(_LENGTH.size - len(self._early))
        self._early = b""
        return await self._reader.readexactly(_LENGTH.unpack(prefix)[0])

    async def receive_head(self) -> dict[str, Any]:
        """Receive the next frame, a head."""
        fields: dict[str, Any] = json.loads(await self.receive())
        return fields

    async def closed(self) -> None:
        """Return when the other side closes; cancel it before `receive`. Data that arrives meanwhile is kept."""
        while not self._early:
            self._early = await self._reader.read(1)
            if not self._early:
                return
        await asyncio.Event().wait()

    def close(self) -> None:
        """Close this end."""
        self._writer.close()


async def connect(path: str) -> Connection:
    """Connect to the replica that listens at `path`; raises one of GONE."""
    return Connection(*await asyncio.open_unix_connection(path, limit=BUFFER))
