"""Every door without a key: what is not named answers 401, or UNAUTHENTICATED, whatever its route, method or protocol.

Routes are the application's own and calls those that services register, so that a new one is tried by itself.
"""

import http.client
import itertools
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest
from starlette.routing import BaseRoute

from local_runner.grpc import services
from local_runner.host.host import ScriptHost
from local_runner.http import app as http_app
from local_runner.process.launch import LOOPBACK, Runner
from tests.scenarios.faults.conftest import connect

pytestmark = pytest.mark.usefixtures("forked")

KEY = "a-key-that-nobody-guesses"
PROBES = {"/", "/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"}
OPEN = {(method, path) for method in ("GET", "HEAD") for path in PROBES}
OPEN_CALLS = {
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/List",
    "/grpc.health.v1.Health/Watch",
    "/inference.GRPCInferenceService/ServerLive",
    "/inference.GRPCInferenceService/ServerReady",
}
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "SEARCH")
WRONG = {"none": "", "wrong": KEY[:-1], "more": KEY + "x"}


def paths(routes: list[BaseRoute], before: str = "") -> Iterator[str]:
    """Every path of an application, those of what is mounted in it too."""
    for route in routes:
        path = before + getattr(route, "path", "")
        yield path.replace("{model}", "echo").replace("{wanted:path}", "echo").replace("{path:path}", "x")
        yield from paths(getattr(route, "routes", None) or [], path)


def odd(path: str) -> list[str]:
    """Other spellings of a path."""
    escaped = f"/%{ord(path[1:2] or '/'):02x}{path[2:]}"
    return [
        f"{path}/",
        f"/{path}",
        f"//{path}",
        f"/.{path}",
        f"{path}/.",
        f"{path}/..",
        escaped,
        f"{path};a",
        f"{path}%00",
    ]


@pytest.fixture(scope="module")
def known(bundle: Path) -> list[str]:
    return sorted(set(paths(http_app.build(ScriptHost(bundle)).routes)))


@pytest.fixture(scope="module", params=["one process", "replicas"])
def guarded(request: pytest.FixtureRequest, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(KEY)
    more = ("--replicas", "2") if request.param == "replicas" else ()
    with Runner(bundle, arguments=("--drain-seconds", "0.5", "--api-key-file", str(keys), *more)) as runner:
        yield runner


class Door:
    """One connection, on which targets are sent as they are."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection(LOOPBACK, port, timeout=30)

    def close(self) -> None:
        self._connection.close()

    def status(self, method: str, target: str, key: str = "", body: bytes = b"{}") -> int:
        self._connection.putrequest(method, target, skip_accept_encoding=True)
        if key:
            self._connection.putheader("authorization", f"Bearer {key}")
        self._connection.putheader("content-length", str(len(body)))
        self._connection.endheaders(body)
        reply = self._connection.getresponse()
        reply.read()
        return reply.status


@pytest.fixture
def door(guarded: Runner) -> Iterator[Door]:
    with closing(Door(guarded.http_port)) as opened:
        yield opened


@pytest.mark.parametrize("key", WRONG.values(), ids=WRONG)
def test_of_all_routes_and_methods_only_the_named_answer_without_a_key(door: Door, known: list[str], key: str) -> None:
    assert {"/", "/score", "/metrics", "/v1/completions", "/v2/models/echo/infer", "/openapi.json"} <= set(known)
    answered = {(m, p) for m, p in itertools.product(METHODS, known) if door.status(m, p, key) != 401}
    assert answered == OPEN
    assert {door.status(method, path) for method, path in OPEN} == {200}
    spelt = {(m, p) for m in ("GET", "POST") for path in known for p in odd(path) if (m, p) not in OPEN}
    assert {(m, p) for m, p in spelt if door.status(m, p, key) != 401} == set()


def test_targets_in_absolute_form_and_queries_are_the_routes_they_name(
    guarded: Runner, door: Door, known: list[str]
) -> None:
    for method, path in itertools.product(("GET", "POST", "OPTIONS"), known):
        for target in (f"http://elsewhere{path}", f"http://{LOOPBACK}:{guarded.http_port}{path}", f"{path}?a=/readyz"):
            assert (door.status(method, target) == 401) is ((method, path) not in OPEN), (method, target)


def test_every_route_answers_with_the_key(door: Door, known: list[str]) -> None:
    assert not [(m, p) for m, p in itertools.product(METHODS, known) if door.status(m, p, KEY) == 401]
    assert door.status("POST", "/", KEY, b'{"inputs": "a"}') == 200


def test_a_key_in_a_trailer_is_none(guarded: Runner) -> None:
    head = (
        b"POST /score HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntransfer-encoding: chunked\r\ntrailer: x-api-key\r\n"
    )
    with connect(guarded.http_port) as connection:
        connection.sendall(head + b"\r\n2\r\n{}\r\n0\r\nx-api-key: " + KEY.encode() + b"\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize("upgrade", ["websocket", "h2c"])
def test_no_other_protocol_is_a_way_in(guarded: Runner, known: list[str], upgrade: str) -> None:
    for path in set(known) - PROBES:
        asked = f"GET {path} HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: {upgrade}\r\n"
        asked += "sec-websocket-key: eA==\r\nsec-websocket-version: 13\r\n\r\n"
        with connect(guarded.http_port) as connection:
            connection.sendall(asked.encode())
            assert connection.recv(4096).startswith(b"HTTP/1.1 401 "), path


async def test_a_scope_of_another_kind_is_closed(bundle: Path, tmp_path: Path) -> None:
    """A websocket's, were there one, at a path that is open over HTTP."""
    from local_runner.access.security import SecurityFiles, load

    (tmp_path / "keys").write_text(KEY)
    reached: list[Any] = []
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope)

    async def send(message: Any) -> None:
        sent.append(message)

    guard = load(SecurityFiles(api_keys=tmp_path / "keys")).guard(app)
    scope = {"type": "websocket", "path": "/readyz", "raw_path": b"/readyz", "headers": []}
    await guard(scope, None, send)
    assert (reached, sent[0]["status"]) == ([], 401)


class Recorder:
    """A gRPC server that keeps the names of what is registered."""

    def __init__(self, server: Any) -> None:
        self.methods: set[str] = set()
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        for each in handlers:
            self.methods |= set(each._method_handlers)
        self._server.add_generic_rpc_handlers(handlers)

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        self.methods |= {f"/{service}/{name}" for name in handlers}
        self._server.add_registered_method_handlers(service, handlers)


@pytest.fixture
async def calls(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Every method of every service that the runner registers."""
    make = grpc.aio.server
    recorders: list[Recorder] = []

    def server(*arguments: Any, **options: Any) -> Any:
        recorders.append(Recorder(make(*arguments, **options)))
        return recorders[-1]

    monkeypatch.setattr(grpc.aio, "server", server)
    host = ScriptHost(bundle)
    services.build(host, services.Health(host))
    return recorders[0].methods


@pytest.mark.parametrize("key", WRONG.values(), ids=WRONG)
def test_of_all_calls_only_the_named_answer_without_a_key(guarded: Runner, calls: set[str], key: str) -> None:
    assert {"/mii_azure.v1.Scoring/Score", "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"} <= calls
    near = {f"{method}x" for method in calls} | {f"/{method}" for method in calls} | {f"{method}/" for method in calls}
    with grpc.insecure_channel(f"{LOOPBACK}:{guarded.grpc_port}") as channel:
        assert {method for method in calls | near if _code(channel, method, key) != "UNAUTHENTICATED"} == OPEN_CALLS
        assert not [method for method in calls if _code(channel, method, KEY) == "UNAUTHENTICATED"]


def _code(channel: grpc.Channel, method: str, key: str) -> str:
    """The status of a call with an empty message; of one that answers without an end, OK once it does."""
    call = channel.stream_stream(method)(iter([b""]), metadata=(("x-api-key", key),) if key else (), timeout=30)
    try:
        next(call)
    except StopIteration:
        pass
    except grpc.RpcError as error:
        return str(error.code().name)
    finally:
        call.cancel()
    return "OK"


async def test_a_call_without_a_key_is_refused_before_its_message(guarded: Runner) -> None:
    async with grpc.aio.insecure_channel(f"{LOOPBACK}:{guarded.grpc_port}") as channel:
        for method in ("Score", "ScoreStream", "Metadata"):
            call = channel.stream_stream(f"/mii_azure.v1.Scoring/{method}")(timeout=20)  # nothing is written
            assert await call.code() is grpc.StatusCode.UNAUTHENTICATED


GUARDS = ("API_KEY_FILE", "TLS_CERT", "TLS_KEY", "TLS_CLIENT_CA", "HOST")


@pytest.mark.parametrize("name", GUARDS)
@pytest.mark.parametrize("value", ["", "  "])
def test_a_blank_variable_of_a_guard_is_an_error(name: str, value: str, bundle: Path) -> None:
    flag = name.lower().replace("_", "-")
    ports = ("--grpc-port", "0", "--http-port", "0")
    for more, env in (((), {f"MII_AZURE_{name}": value}), ((f"--{flag}", value), {})):
        command = [sys.executable, "-m", "local_runner", str(bundle), *ports, *more]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=60, env={**os.environ, **env}, check=False
        )
        assert done.returncode == 2
        assert f"argument --{flag}: it is blank; give a value, or unset its variable" in done.stderr


@pytest.mark.parametrize("name", ["API_KEY_FILE", "TLS", "TLS_CA", "TLS_CERT", "TLS_KEY"])
def test_a_blank_variable_does_not_make_a_client_trust_or_tell_more(name: str, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(KEY)
    env = {**os.environ, "MII_AZURE_API_KEY_FILE": str(tmp_path / "key"), f"MII_AZURE_{name}": ""}
    with socket.create_server((LOOPBACK, 0)) as nobody:
        nobody.settimeout(0.01)
        where = f"{LOOPBACK}:{nobody.getsockname()[1]}"
        command = [sys.executable, "-m", "mii_azure.cli.app", "query", where, json.dumps({"inputs": "a"})]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env, check=False)
        assert done.returncode == 2
        assert f"MII_AZURE_{name} is blank" in " ".join(done.stderr.split())
        with pytest.raises(TimeoutError):
            nobody.accept()
