"""What the clients of the benchmarks over HTTP count as an event of a stream."""

import asyncio
from collections.abc import Sequence

from benchmarks.http_clients import ask

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"


def _stamps(parts: Sequence[bytes]) -> tuple[bool, list[float]]:
    """What `ask` finds of an answer that comes in these parts, each read before the next is sent."""

    async def run() -> tuple[bool, list[float]]:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\n")
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0.01)  # most likely read alone; what is counted is the same if it is not
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            return await ask(server.sockets[0].getsockname()[1], b"GET /\n")

    return asyncio.run(run())


def test_the_head_of_an_answer_is_no_event() -> None:
    good, stamps = _stamps([_HEAD, b'data: {"token":{}}\n\n', b'data: {"answer":[]}\n\n'])
    assert good
    assert len(stamps) == 2 + 1  # and the end


def test_an_event_that_comes_in_two_parts_is_one() -> None:
    _, stamps = _stamps([_HEAD + b"da", b'ta: {"token":{}}\n\ndata: ', b'{"answer":[]}\n\n'])
    assert len(stamps) == 2 + 1
