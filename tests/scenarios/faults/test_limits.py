"""Clients that send without an end, ahead of their answers, or drop by drop: each is bounded, and told."""

import asyncio
import json
import logging
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from local_runner.grpc import services
from local_runner.host.host import ScriptHost
from local_runner.http import uvicorn_protocol
from local_runner.protos import scoring_pb2, scoring_pb2_grpc
from tests.scenarios.faults.conftest import connect, until
from tests.scenarios.faults.test_connections import Talker, heard
from tests.scenarios.fuzz.apps import ServiceScript, serving
from tests.waiting import until_async

pytestmark = pytest.mark.usefixtures("forked")

GET = b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n"
POST = b"POST /score HTTP/1.1\r\nhost: a\r\n"
CHUNKED = POST + b"transfer-encoding: chunked\r\n\r\n"
HEAD = uvicorn_protocol.HEAD_BYTES


@pytest.fixture
def port(bundle: Path) -> Iterator[int]:
    with serving(bundle, Talker()) as base:
        yield httpx.URL(base).port or 0


def flood(connection: socket.socket, data: bytes, seconds: float = 2.0) -> int:
    """Send as much of it as the other side takes, and a moment longer; how much that was."""
    sent, deadline = 0, time.monotonic() + seconds
    connection.setblocking(False)
    while sent < len(data) and time.monotonic() < deadline:
        try:
            sent += connection.send(data[sent : sent + (1 << 16)])
        except BlockingIOError:
            time.sleep(0.01)
        except OSError:
            break
    connection.settimeout(20)
    return sent


def code_of(reply: bytes) -> tuple[int, str]:
    """Status and code of the last reply in what was heard."""
    head, _, body = reply.rpartition(b"\r\n\r\n")
    return int(head.rpartition(b"HTTP/1.1 ")[2][:3]), json.loads(body)["error"]["code"]


def test_requests_sent_ahead_are_answered_one_by_one_and_in_order(port: int) -> None:
    with connect(port) as connection:
        sent = b"".join(POST + b"x-request-id: n%d\r\ncontent-length: 2\r\n\r\n{}" % at for at in range(300))
        connection.sendall(sent + GET.replace(b"host", b"connection: close\r\nhost"))
        reply = heard(connection)
    assert [line.decode() for line in reply.split(b"\r\n") if line.startswith(b"x-request-id: n")] == [
        f"x-request-id: n{at}" for at in range(300)
    ]
    assert reply.count(b"HTTP/1.1 200 OK") == 301


def test_requests_sent_ahead_and_unread_are_not_taken_in(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[uvicorn_protocol.Protocol] = []
    made = uvicorn_protocol.Protocol.connection_made
    monkeypatch.setattr(
        uvicorn_protocol.Protocol,
        "connection_made",
        lambda self, transport: (found.append(self), made(self, transport)),
    )
    with connect(port, 4096) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        taken = flood(connection, GET * 600_000)  # 20 MB
        (protocol,) = found
        assert taken < 4 << 20  # what the two kernels hold
        assert len(protocol.pipeline) <= uvicorn_protocol._PIECE // len(GET) + 1
        assert httpx.get(f"http://127.0.0.1:{port}/healthz", trust_env=False).status_code == 200


def test_a_client_that_goes_away_is_noticed_while_it_waits(bundle: Path) -> None:
    talker = Talker()
    with serving(bundle, talker) as base, connect(httpx.URL(base).port or 0) as connection:
        connection.sendall(POST + b'content-length: 16\r\n\r\n{"stream": true}' + GET)
        until(lambda: talker.sent > 5)
        connection.close()
        until(lambda: talker.closed)


LONG = {
    "a line": b"GET /" + b"a" * HEAD * 2,
    "a query": b"GET /readyz?" + b"a" * HEAD * 2,
    "a name": b"GET / HTTP/1.1\r\n" + b"a" * HEAD * 2,
    "a value": b"GET / HTTP/1.1\r\nhost: " + b"a" * HEAD * 2,
    "many headers": b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * HEAD,
    "blank lines": b"\r\n" * HEAD,
    "a trailer": CHUNKED + b"2\r\n{}\r\n0\r\nx: " + b"a" * HEAD * 2,
    "many trailers": CHUNKED + b"2\r\n{}\r\n0\r\n" + b"a: b\r\n" * HEAD,
    "an extension": CHUNKED + b"2;a=" + b"a" * HEAD * 2,
    "more headers than any client has": b"GET / HTTP/1.1\r\n" + b"a:\r\n" * 257 + b"\r\n",
}


@pytest.mark.parametrize("sent", LONG.values(), ids=LONG)
def test_a_head_without_an_end_is_refused(sent: bytes, port: int) -> None:
    with connect(port) as connection:
        flood(connection, sent)
        assert code_of(heard_until_reset(connection)) == (431, "head_too_large")
    assert httpx.get(f"http://127.0.0.1:{port}/healthz", trust_env=False).status_code == 200


def heard_until_reset(connection: socket.socket) -> bytes:
    """What comes, also where the other side closes with bytes unread."""
    parts = []
    try:
        while part := connection.recv(1 << 16):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def test_a_head_as_large_as_proxies_and_clients_make_it_is_read(port: int) -> None:
    headers = {f"x-{at}": "a" * 200 for at in range(240)}
    assert httpx.get(f"http://127.0.0.1:{port}/readyz", headers=headers, trust_env=False).status_code == 200
    cookie = {"cookie": "a" * 60_000}
    assert httpx.get(f"http://127.0.0.1:{port}/readyz", headers=cookie, trust_env=False).status_code == 200


@pytest.mark.parametrize("limit", ["rate", "total"])
def test_a_body_that_comes_by_drops_is_ended(limit: str, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uvicorn_protocol, "BODY_S", 0.5)
    monkeypatch.setattr(uvicorn_protocol, "LEAST_RATE", 100.0 if limit == "rate" else 0.001)
    monkeypatch.setattr(uvicorn_protocol, "BODY_TOTAL_S", 600.0 if limit == "rate" else 1.0)
    with connect(port) as connection:
        connection.sendall(POST + b"content-length: 100000\r\n\r\n")
        began = time.monotonic()
        connection.setblocking(False)
        reply = b""
        while not reply:
            assert time.monotonic() - began < 20, "it is held"
            try:
                reply = connection.recv(1 << 16)
            except BlockingIOError:
                connection.send(b" ")
                time.sleep(0.05)
        assert code_of(reply) == (408, "request_stalled")


@pytest.mark.parametrize(("least", "is_held"), [(1 << 20, False), (1000, True)])
def test_a_reader_by_drops_is_let_go_and_a_slow_one_is_not(
    least: float, is_held: bool, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uvicorn_protocol, "READER_S", 0.5)
    monkeypatch.setattr(uvicorn_protocol, "LEAST_RATE", least)
    talker = Talker()
    with serving(bundle, talker) as base, connect(httpx.URL(base).port or 0, 4096) as connection:
        connection.sendall(POST + b'content-length: 16\r\n\r\n{"stream": true}')
        deadline = time.monotonic() + (3 if is_held else 20)
        while not talker.closed and time.monotonic() < deadline:
            connection.recv(2000)  # some 40 KB a second
            time.sleep(0.05)
        assert talker.closed is not is_held


def test_what_is_sent_as_a_websocket_is_answered_over_http(
    port: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uvicorn_protocol, "BODY_S", 0.2)
    upgrade = b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: eA==\r\nsec-websocket-version: 13\r\n"
    with connect(port) as connection:
        connection.sendall(GET[:-2] + upgrade + b"\r\n")
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200 OK")
        time.sleep(0.5)  # past the end of every wait for that request
    assert not [record for record in caplog.records if record.exc_info or record.levelno >= logging.WARNING]


async def test_a_grpc_stream_that_is_not_read_is_let_go(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uvicorn_protocol, "READER_S", 0.5)
    talker = Talker()
    async with serving_grpc(bundle, talker) as address, grpc.aio.insecure_channel(address) as channel:
        stub = scoring_pb2_grpc.ScoringStub(channel)
        call = stub.ScoreStream(scoring_pb2.ScoreRequest(json='{"stream": true}'))
        await call.read()
        async with asyncio.timeout(20):
            await until_async(lambda: talker.closed)
            with pytest.raises(grpc.aio.AioRpcError) as raised:  # and whoever reads on is told
                while await call.read() is not grpc.aio.EOF:
                    pass
        assert (raised.value.code().name, raised.value.details()) == ("CANCELLED", "The answer was not read on.")
        reply = await stub.Score(scoring_pb2.ScoreRequest(json="{}"))
        assert reply.json == '"here"'


@pytest.mark.parametrize("method", ["/mii_azure.v1.Scoring/Score", "/mii_azure.v1.Scoring/ScoreStream"])
async def test_a_grpc_message_that_does_not_come_is_ended(
    method: str, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uvicorn_protocol, "BODY_TOTAL_S", 0.3)
    async with serving_grpc(bundle, Talker()) as address, grpc.aio.insecure_channel(address) as channel:
        call = channel.stream_stream(method)(timeout=20)  # nothing is written
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call.read()
        assert (raised.value.code().name, raised.value.details()) == ("CANCELLED", "The message stopped half-way.")
        call = channel.stream_stream(method)(timeout=20)
        await call.done_writing()
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call.read()
        assert raised.value.code().name == "INVALID_ARGUMENT"


async def test_watches_of_health_are_counted(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "MOST_WATCHES", 3)
    async with serving_grpc(bundle, Talker()) as address, grpc.aio.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        watches = [stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(3)]
        assert [(await watch.read()).status for watch in watches] == [1, 1, 1]
        assert await refusal(stub) == "RESOURCE_EXHAUSTED"
        assert (await stub.Check(health_pb2.HealthCheckRequest())).status == 1
        for watch in watches:
            watch.cancel()
        async with asyncio.timeout(20):  # those that end make room
            while await refusal(stub) != "OK":
                await asyncio.sleep(0.01)
        assert await refusal(stub, "a" * 300) == "INVALID_ARGUMENT"


async def refusal(stub: Any, service: str = "") -> str:
    """The status of a watch, OK once it is told something."""
    watch = stub.Watch(health_pb2.HealthCheckRequest(service=service))
    try:
        await watch.read()
    except grpc.aio.AioRpcError as error:
        return str(error.code().name)
    watch.cancel()
    return "OK"


@asynccontextmanager
async def serving_grpc(bundle: Path, talker: Talker) -> AsyncIterator[str]:
    """The gRPC services over a service of this process."""
    host = ScriptHost(bundle, ServiceScript(bundle, talker))  # type: ignore[arg-type]
    watched = services.Health(host)
    server = services.build(host, watched)
    port = server.add_insecure_port("127.0.0.1:0")
    await host.load()
    await watched.update()
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


def test_trailers_are_no_headers(port: int) -> None:
    with connect(port) as connection:
        trailers = b"x-request-id: a-trailer\r\nconnection: close\r\n"
        connection.sendall(CHUNKED + b"2\r\n{}\r\n0\r\n" + trailers + b"\r\n")
        assert b"x-request-id: a-trailer" not in connection.recv(1 << 16)
