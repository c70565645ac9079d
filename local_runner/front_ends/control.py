"""Connection between a front end and the process that started it: messages as lines of JSON."""

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

_VARIABLE = "MII_AZURE_FRONT_END"
LONGEST = 1 << 24  # bytes of a message; the longest are metrics


@dataclass(frozen=True)
class Place:
    """Place of a front end among its server's processes: its index, and the descriptors that it has inherited."""

    index: int
    count: int
    engine: int  # connection to the engine
    control: int  # connection to the process that started it
    board: int
    http_port: int
    grpc_port: int
    late: bool  # the others are ready

    @classmethod
    def taken(cls) -> "Place | None":
        """Place that the environment names, once; None in any process but a front end."""
        told = os.environ.pop(_VARIABLE, "")
        return cls(**json.loads(told)) if told else None

    def environment(self) -> Mapping[str, str]:
        """Environment that names it."""
        return {_VARIABLE: json.dumps(asdict(self))}

    @property
    def descriptors(self) -> tuple[int, ...]:
        return self.engine, self.control, self.board


class Control:
    """One end of the connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def over(cls, connection: socket.socket) -> "Control":
        """Use a connected socket."""
        return cls(*await asyncio.open_unix_connection(sock=connection, limit=LONGEST))

    def send(self, **fields: Any) -> None:
        """Send a message, or nothing if the other side is gone."""
        if not self._writer.is_closing():
            self._writer.write(json.dumps(fields).encode() + b"\n")

    async def flushed(self) -> None:
        """Wait until what was sent has left this process."""
        with contextlib.suppress(OSError):
            await self._writer.drain()

    async def receive(self) -> dict[str, Any] | None:
        """The next message; None once the other side is gone."""
        try:
            line = await self._reader.readline()
        except (OSError, ValueError):
            return None
        fields: dict[str, Any] | None = json.loads(line) if line.endswith(b"\n") else None
        return fields

    def close(self) -> None:
        """Close this end."""
        self._writer.close()
