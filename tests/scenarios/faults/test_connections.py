"""Clients that stall: half a request, or an answer that nobody reads. Memory is bounded, and others are served."""

import asyncio
import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from local_runner.grpc import services as grpc_services
from local_runner.host.host import ScriptHost
from local_runner.http import server as http_server
from local_runner.http import uvicorn_protocol
from local_runner.process.launch import Runner
from local_runner.protos import scoring_pb2, scoring_pb2_grpc
from scoring.api.answers import Reply
from scoring.limits.departure import stopping
from tests.scenarios.faults.conftest import HOST, connect, lines, resident, served, until
from tests.scenarios.fuzz.apps import ServiceScript, serving

pytestmark = pytest.mark.usefixtures("forked")

HALVES = {
    "nothing": b"",
    "half a line": b"POST /sco",
    "half a head": b"POST /score HTTP/1.1\r\ncontent-length: 100\r\nhos",
    "half a body": b'POST /score HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\n{"inputs"',
    "half a chunk": b"POST /score HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n40\r\nabc",
}
WORD = "ΐ" * 20  # in capitals, and escaped as JSON does it, nine times as long
WORDS = 12_000  # as events, some 4 MB: much more than is buffered on the way


class Talker:
    """A service that answers at once, or streams without an end."""

    ready = True

    def __init__(self) -> None:
        self.sent = 0
        self.closed = False

    def drain(self, timeout_s: float) -> bool:
        return True

    def answer(self, raw: str) -> Reply:
        return Reply(200, self if json.loads(raw).get("stream") else b'"here"')  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        self.sent += 1
        return b"data: " + b"x" * 1000 + b"\n\n"

    def close(self) -> None:
        self.closed = True


def heard(connection: socket.socket) -> bytes:
    """What comes until the other side closes."""
    parts = []
    while part := connection.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


class Thinker:
    """A service that answers once its caller has gone, or after half a minute."""

    ready = True

    def __init__(self) -> None:
        self.asked, self.left = threading.Event(), threading.Event()

    def drain(self, timeout_s: float) -> bool:
        return True

    def answer(self, raw: str) -> Reply:
        if json.loads(raw).get("inputs") == "quick":
            return Reply(200, b'"here"')
        with stopping(self.left.set):
            self.asked.set()
            self.left.wait(30)
        return Reply(200, b'"late"')


@pytest.mark.parametrize("behind", [b"", b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n"], ids=["alone", "with another"])
def test_work_ends_with_the_client_that_waits_for_it(behind: bytes, bundle: Path) -> None:
    thinker = Thinker()
    with serving(bundle, thinker) as base:
        connection = connect(httpx.URL(base).port or 0)
        body = b'{"inputs": "slow"}'
        head = b"POST /score HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(body)
        connection.sendall(head + body + behind)
        assert thinker.asked.wait(20)
        assert httpx.post(f"{base}/score", json={"inputs": "quick"}, trust_env=False).json() == "here"
        assert not thinker.left.is_set()
        connection.close()
        assert thinker.left.wait(10)
        until(lambda: 'requests_total{code="499"} 1.0' in httpx.get(f"{base}/metrics", trust_env=False).text)


def test_work_ends_with_the_deadline_of_a_grpc_call(bundle: Path) -> None:
    thinker = Thinker()

    async def run() -> None:
        host = ScriptHost(bundle, ServiceScript(bundle, thinker))
        await host.load()
        server = grpc_services.build(host, grpc_services.Health(host))
        port = server.add_insecure_port(f"{HOST}:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"{HOST}:{port}") as channel:
            call = scoring_pb2_grpc.ScoringStub(channel)
            with pytest.raises(grpc.aio.AioRpcError, match="DEADLINE_EXCEEDED"):
                await call.Score(scoring_pb2.ScoreRequest(json='{"inputs": "slow"}'), timeout=0.5)
            assert await asyncio.to_thread(thinker.left.wait, 10)
        await server.stop(None)

    asyncio.run(run())


@pytest.mark.parametrize("sent", HALVES.values(), ids=HALVES)
def test_half_a_request_is_ended_in_time(sent: bytes, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uvicorn_protocol, "HEAD_S", 0.4)
    monkeypatch.setattr(uvicorn_protocol, "BODY_S", 0.4)
    monkeypatch.setattr(http_server, "KEEP_ALIVE_S", 0.4)
    with serving(bundle, Talker()) as base, connect(httpx.URL(base).port or 0) as connection:
        connection.sendall(sent)
        assert httpx.post(f"{base}/score", json={}, trust_env=False).json() == "here"
        reply = heard(connection)
        if not sent:
            assert reply == b""
            return
        head, _, body = reply.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408 Request Timeout\r\n"), reply
        assert json.loads(body)["error"] == {
            "code": "request_stalled",
            "message": "The request stopped half-way.",
            "hint": "Send all of it.",
        }


def test_a_slow_body_that_goes_on_is_read(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uvicorn_protocol, "BODY_S", 2.0)
    monkeypatch.setattr(uvicorn_protocol, "LEAST_RATE", 1.0)
    with serving(bundle, Talker()) as base, connect(httpx.URL(base).port or 0) as connection:
        connection.sendall(b"POST /score HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 8\r\n\r\n")
        for byte in b'{"a": 1}':
            time.sleep(0.3)
            connection.sendall(bytes([byte]))
        assert heard(connection).endswith(b'\r\n\r\n"here"')


def test_a_reader_that_stops_is_let_go(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uvicorn_protocol, "READER_S", 0.5)
    talker = Talker()
    with serving(bundle, talker) as base, connect(httpx.URL(base).port or 0, 4096) as connection:
        connection.sendall(b'POST /score HTTP/1.1\r\nhost: a\r\ncontent-length: 16\r\n\r\n{"stream": true}')
        until(lambda: talker.sent > 50)
        until(lambda: talker.closed)
        count = talker.sent
        # Socket buffers and one write buffer: a fraction of what an endless stream would give in that time.
        assert count < 20_000
        assert httpx.post(f"{base}/score", json={}, trust_env=False).json() == "here"
        time.sleep(0.1)
        assert talker.sent == count


def test_stalled_connections_do_not_keep_a_runner(bundle: Path, tmp_path: Path) -> None:
    with served(bundle, tmp_path, "--drain-seconds", "10") as server:
        stalled = [connect(server.http_port) for _ in range(40)] + [connect(server.grpc_port) for _ in range(40)]
        for at, connection in enumerate(stalled):
            connection.sendall(list(HALVES.values())[at % 3])
        assert server.score("a").json() == {"echo": "A"}
        with grpc.insecure_channel(f"{HOST}:{server.grpc_port}") as channel:
            reply = scoring_pb2_grpc.ScoringStub(channel).Score(scoring_pb2.ScoreRequest(json="{}"), timeout=20)
            assert reply.json == '{"echo": ""}'
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(8) == 0
        for connection in stalled:
            connection.close()


@pytest.mark.parametrize("protocol", ["sse", "grpc"])
def test_an_answer_that_nobody_reads_waits_at_the_server(
    protocol: str, own_bundle: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = tmp_path / "busy"
    bundle = own_bundle(max_payload_bytes=2_000_000)
    monkeypatch.setenv("STUB_BUSY", str(busy))
    # The last word leaves a line in the file when the script gets that far.
    words = {"inputs": f"{f'{WORD} ' * WORDS} until:{tmp_path}", "stream": True}
    body = json.dumps(words, ensure_ascii=False)
    with Runner(bundle, arguments=("--drain-seconds", "1")) as runner:
        before = resident(runner.process.pid)
        with reader(protocol, runner, body) as read:
            for _ in range(15):
                assert ask(runner) == {"echo": "B"}
                time.sleep(0.05)
            assert lines(busy) == 0
            assert resident(runner.process.pid) - before < 24 << 20
            assert read() > WORDS  # whoever reads on gets all of it
            assert lines(busy) == 1


def ask(runner: Runner) -> Any:
    return httpx.post(f"http://{HOST}:{runner.http_port}/score", json={"inputs": "b"}, trust_env=False).json()


def reader(protocol: str, runner: Runner, body: str) -> Any:
    """A context in which a stream has begun; `read()` in it takes the rest and gives the number of events."""
    from contextlib import contextmanager

    @contextmanager
    def over_http() -> Iterator[Any]:
        with connect(runner.http_port, 4096) as connection:
            head = (
                f"POST /score HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {len(body.encode())}\r\n\r\n"
            )
            connection.sendall(head.encode() + body.encode())
            yield lambda: heard(connection).count(b"data: ")

    @contextmanager
    def over_grpc() -> Iterator[Any]:
        with grpc.insecure_channel(f"{HOST}:{runner.grpc_port}") as channel:
            call = scoring_pb2_grpc.ScoringStub(channel).ScoreStream(scoring_pb2.ScoreRequest(json=body), timeout=60)
            next(call)
            yield lambda: 1 + sum(1 for _ in call)

    return {"sse": over_http, "grpc": over_grpc}[protocol]()
