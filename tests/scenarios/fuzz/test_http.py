"""Every HTTP route: what its OpenAPI document allows and forbids, any bytes as its body, any bytes as a request."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import strategies as st
from schemathesis.generation import GenerationMode

import mii_azure
from local_runner.process.launch import LOOPBACK, Runner
from tests.scenarios.fuzz.apps import serving
from tests.scenarios.fuzz.conftest import DEADLINE_S, NAME, Tally, sizes, sound
from tests.scenarios.fuzz.payloads import bodies, broken_bytes
from tests.scoring.conftest import Served

Tiny = Callable[[str, str], Path]

BODIES = (
    "/score",
    "/",
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/responses",
    "/v1/messages",
    "/embed",
    "/rerank",
    "/v1/embeddings",
    "/generate",
    f"/v2/models/{NAME}/infer",
)
pytestmark = pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisWarning")


def client(base: str) -> httpx.Client:
    return httpx.Client(base_url=base, trust_env=False, timeout=DEADLINE_S)


def by_schema(base: str, tally: Tally, count: int) -> None:
    """Requests that the server's own document allows, and ones that it does not."""
    with client(base) as http:
        schema = schemathesis.openapi.from_dict(http.get("/openapi.json").json())
        schema.config.update(base_url=base)
        operations = [found.ok() for found in schema.get_all_operations()]
        assert {"/score", "/v1/completions", "/v2/models/{model}/infer"} <= {operation.path for operation in operations}

        def check(case: Any) -> None:
            sent = case.as_transport_kwargs(base_url=base)
            data = {key: sent[key] for key in ("params", "headers", "cookies", "json", "data") if sent.get(key)}
            if isinstance(data.get("data"), (bytes, str)):
                data["content"] = data.pop("data")
            try:
                reply = http.request(sent["method"], sent["url"], **data)
            except httpx.TimeoutException:
                pytest.fail(f"no reply in {DEADLINE_S:g} s to {sent}")
            sound(reply.status_code, reply.content, sent)

        for operation in operations:
            has_body = bool(operation.body)
            if not has_body and count < 10:
                continue
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE) if has_body else (GenerationMode.POSITIVE,):
                cases = operation.as_strategy(generation_mode=mode)
                # Of a route without parameters there is one request.
                some = count if has_body else max(1, count // 20) if operation.path_parameters else 1
                tally.run("the OpenAPI document", some, cases, check)


@sizes(2, 220)
def test_what_the_document_says(server: Runner, tally: Tally, count: int) -> None:
    by_schema(f"http://{LOOPBACK}:{server.http_port}", tally, count)


@pytest.mark.fuzz
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("family", "task"), [("bert", "sentence-embeddings"), ("llama", "conversational")])
def test_what_other_tasks_documents_say(family: str, task: str, tiny: Tiny, tmp_path: Path, tally: Tally) -> None:
    model = tiny(family, task)
    bundle = mii_azure.generate(task=task, model=str(model), deployment_name=NAME, output=tmp_path / "b")
    served = Served(model, task)
    with serving(bundle, served.service) as base:
        by_schema(base, tally, 120)
        with client(base) as http:
            tally.run("bodies in bytes", 600, st.tuples(st.sampled_from(BODIES), any_bytes()), post(http))
    assert served.service.engine.depth() == 0


def any_bytes() -> st.SearchStrategy[bytes]:
    return broken_bytes(bodies("text-generation") | bodies("conversational"))


def post(http: httpx.Client) -> Callable[[tuple[str, bytes]], None]:
    def check(sent: tuple[str, bytes]) -> None:
        reply = http.post(sent[0], content=sent[1])
        sound(reply.status_code, reply.content, sent)

    return check


@sizes(60, 2000)
def test_any_body_on_any_route(server: Runner, tally: Tally, count: int) -> None:
    with client(f"http://{LOOPBACK}:{server.http_port}") as http:
        tally.run("bodies in bytes", count, st.tuples(st.sampled_from(BODIES), any_bytes()), post(http))


LINES = st.sampled_from(
    [
        b"GET / HTTP/1.1\r\n",
        b"POST /score HTTP/1.1\r\n",
        b"POST /score HTTP/1.0\r\n",
        b"GET /%ff%fe%00 HTTP/1.1\r\n",
        b"GET /v2/models/%F0%9F%98%80/ready HTTP/1.1\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"OPTIONS * HTTP/1.1\r\n",
        b"GET http:// HTTP/1.1\r\n",
        b"CONNECT a:1 HTTP/1.1\r\n",
        b"host: a\r\n",
        b"content-length: 2\r\n",
        b"content-length: 99999999999999999999\r\n",
        b"content-length: -1\r\n",
        b"transfer-encoding: chunked\r\n",
        b"upgrade: websocket\r\nconnection: upgrade\r\n",
        b"expect: 100-continue\r\n",
        b"x-request-id: " + b"a" * 9000 + b"\r\n",
        b"x-request-id: \xff\xfe\r\n",
        b"\r\n",
        b"2\r\n{}\r\n0\r\n\r\n",
        b"{}",
        b"ffffffffffffffffff\r\n",
    ]
)


@sizes(30, 1200)
def test_any_bytes_on_the_port(server: Runner, tally: Tally, count: int) -> None:
    def check(parts: list[bytes]) -> None:
        with socket.create_connection((LOOPBACK, server.http_port), timeout=DEADLINE_S) as connection:
            connection.sendall(b"".join(parts))
            connection.shutdown(socket.SHUT_WR)
            heard = b""
            while chunk := received(connection):
                heard += chunk
        for reply in heard.split(b"HTTP/1.1 ")[1:]:
            status, _, rest = reply.partition(b" ")
            head, _, body = rest.partition(b"\r\n\r\n")
            assert int(status) < 500 or int(status) in (503, 504), (parts, heard)
            if int(status) >= 400 and b"HEAD" not in parts[0]:
                assert b"application/json" in head.lower(), (parts, heard)
                sound(int(status), body, parts)

    tally.run("bytes on the HTTP port", count, st.lists(LINES | st.binary(max_size=30), min_size=1, max_size=7), check)


def received(connection: socket.socket) -> bytes:
    try:
        return connection.recv(1 << 16)
    except ConnectionResetError:  # it closed with bytes of ours unread
        return b""
