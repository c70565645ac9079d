"""The load generator, a process of its own: `python -m benchmarks.peers.load` obeys commands on standard input.

A command names a protocol, a port, bodies, a number of clients and seconds; a client sends its next request when it has
the whole answer to its last. HTTP is written to raw sockets and gRPC goes through grpc.aio, both on uvloop. The answer
tells latencies, and the processor time that this process itself took.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import uvloop

from local_runner.process.launch import LOOPBACK
from local_runner.protos import scoring_pb2, scoring_pb2_grpc

Send = Callable[[str], Awaitable[str]]


class Refused(Exception):
    """An answer, but not the one that was asked for."""


class Connection:
    """One keep-alive connection; opened again when the server has closed it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, body: str) -> str:
        data = body.encode()
        head = f"POST /score HTTP/1.1\r\nHost: {LOOPBACK}\r\nContent-Type: application/json\r\n"
        if self._streams is None:
            self._streams = await asyncio.open_connection(LOOPBACK, self._port)
        reader, writer = self._streams
        writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines if line)
        answer = (await reader.readexactly(int(headers["content-length"]))).decode()
        if headers.get("connection") == "close":
            self.close()
        if status.split()[1] != "200":
            raise Refused(f"{status}: {answer[:200]}")
        return answer

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def run(protocol: str, port: int, bodies: list[str], clients: int, seconds: float) -> dict[str, Any]:
    """One load; latencies in seconds, in no order, and what the requests were told that got no answer."""
    latencies: list[float] = []
    refused: list[str] = []
    deadline = time.perf_counter() + seconds

    async def client(number: int, send: Send) -> None:
        at = number
        while (began := time.perf_counter()) < deadline:
            try:
                await send(bodies[at % len(bodies)])
                latencies.append(time.perf_counter() - began)
            except (Refused, grpc.RpcError) as error:
                refused.append(str(error))
            at += clients

    began, used = time.perf_counter(), sum(os.times()[:2])
    if protocol == "grpc":
        async with grpc.aio.insecure_channel(f"{LOOPBACK}:{port}") as channel:
            stub = scoring_pb2_grpc.ScoringStub(channel)

            async def send(body: str) -> str:
                return (await stub.Score(scoring_pb2.ScoreRequest(json=body))).json

            await asyncio.gather(*(client(number, send) for number in range(clients)))
    else:
        connections = [Connection(port) for _ in range(clients)]
        await asyncio.gather(*(client(number, each.send) for number, each in enumerate(connections)))
        for each in connections:
            each.close()
    return {
        "latencies": latencies,
        "refused": refused,
        "elapsed": time.perf_counter() - began,
        "processor": sum(os.times()[:2]) - used,
    }


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(uvloop.run(run(**json.loads(line)))), flush=True)
