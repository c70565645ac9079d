"""What the clients of the benchmarks over HTTP count as an event of a stream."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from benchmarks.http_clients import ask
from benchmarks.waits import explained

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"


class _Connection:
    """A connection whose answer is read in these parts."""

    def __init__(self, parts: Sequence[bytes]) -> None:
        self._parts = [*parts, b""]

    async def read(self, most: int) -> bytes:
        return self._parts.pop(0)

    def write(self, data: bytes) -> None:
        """Take a request."""

    def close(self) -> None:
        """End."""


def _stamps(parts: Sequence[bytes], monkeypatch: pytest.MonkeyPatch) -> tuple[bool, list[float]]:
    async def connect(*address: Any) -> tuple[Any, Any]:
        connection = _Connection(parts)
        return connection, connection

    monkeypatch.setattr(asyncio, "open_connection", connect)
    return asyncio.run(ask(0, b"GET /\n"))


def test_the_head_of_an_answer_is_no_event(monkeypatch: pytest.MonkeyPatch) -> None:
    good, stamps = _stamps([_HEAD, b'data: {"token":{}}\n\n', b'data: {"answer":[]}\n\n'], monkeypatch)
    assert good
    assert len(stamps) == 2 + 1  # and the end


def test_an_event_that_comes_in_two_parts_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [_HEAD + b"da", b'ta: {"token":{}}\n\ndata: ', b'{"answer":[]}\n\n']
    _, stamps = _stamps(parts, monkeypatch)
    assert len(stamps) == 2 + 1


def test_waits_that_overlap_are_told_together_with_what_lasted_within_them() -> None:
    def span(name: str, begin: float, end: float) -> dict[str, Any]:
        return {"name": name, "begin": begin, "end": end, "thread": "inference"}

    found = {"began": 100.0, "waits": [(101.0, 101.1), (101.05, 101.2), (103.0, 103.06)]}
    spans = [span("step", 100.9, 101.08), span("short", 101.1, 101.105), span("before", 99.0, 101.0)]
    [longest, other] = explained(found, [{"kind": "engine", "pid": 1, "spans": spans}])
    assert (round(longest["ms"]), longest["waits"], other["waits"], other["within"]) == (200, 2, 1, [])
    [step] = longest["within"]
    assert (step["name"], round(step["at ms"]), round(step["ms"])) == ("step", -100, 180)
