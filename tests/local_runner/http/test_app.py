"""The HTTP side over a real socket."""

import gzip
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from local_runner.host.host import PAYLOAD_SLACK, HostState, ScriptHost
from local_runner.http import app
from local_runner.process.launch import Azmlinfsrv, Runner
from tests.local_runner.conftest import MAX_PAYLOAD


@pytest.fixture(scope="module")
def http(runner: Runner) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://127.0.0.1:{runner.http_port}", trust_env=False) as client:
        yield client


def error_of(response: httpx.Response) -> dict[str, Any]:
    return response.json()["error"]


@pytest.mark.parametrize("body", ['{"inputs": "a"}', '{"inputs": "status:400"}', "{", ""])
def test_score_answers_as_azures_server_does(http: httpx.Client, azmlinfsrv: Azmlinfsrv, body: str) -> None:
    headers = {"content-type": "application/json"}
    ours = http.post("/score", content=body, headers=headers)
    theirs = httpx.post(f"http://127.0.0.1:{azmlinfsrv.port}/score", content=body, headers=headers, trust_env=False)
    assert (ours.status_code, ours.content) == (theirs.status_code, theirs.content)
    assert ours.headers["content-type"] == theirs.headers["content-type"] == "application/json"


def test_headers_of_the_script_pass(http: httpx.Client) -> None:
    response = http.post("/score", content='{"inputs": "status:429"}')
    assert (response.status_code, response.headers["retry-after"]) == (429, "7")


def test_a_body_that_announces_too_much_is_refused_unread(runner: Runner) -> None:
    with socket.create_connection(("127.0.0.1", runner.http_port), timeout=5) as connection:
        connection.sendall(b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 99000000\r\n\r\n")
        assert b" 413 " in connection.recv(4096).split(b"\r\n")[0]


def test_a_body_that_grows_too_large_is_refused_on_the_way(http: httpx.Client) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(2 + PAYLOAD_SLACK // 65536 + MAX_PAYLOAD // 65536):
            yield b"x" * 65536

    response = http.post("/score", content=endless())
    assert (response.status_code, error_of(response)["code"]) == (413, "payload_too_large")
    response = http.post("/score", content=json.dumps({"inputs": "x" * MAX_PAYLOAD}))
    assert error_of(response)["message"] == f"The stub takes {MAX_PAYLOAD} bytes."


def test_a_body_that_is_not_text(http: httpx.Client) -> None:
    response = http.post("/score", content=b"\xff\xfe")
    assert (response.status_code, error_of(response)["code"]) == (400, "invalid_json")


def test_a_crash_tells_an_id_and_nothing_else(http: httpx.Client) -> None:
    response = http.post("/score", content='{"inputs": "crash"}')
    assert (response.status_code, error_of(response)["code"]) == (500, "internal")
    assert "secret" not in response.text


def test_streams_pass_as_they_are_and_as_they_come(http: httpx.Client, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with http.stream("POST", "/score", json={"inputs": f"a until:{gate}", "stream": True}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        chunks = response.iter_raw()
        assert next(chunks) == b'data: {"token": {"text": "A"}}\n\n'
        gate.touch()
        assert b"".join(chunks).endswith(b'"}}\n\ndata: [DONE]\n\n')


def test_health(http: httpx.Client) -> None:
    assert http.get("/").text == "Healthy"
    assert http.get("/healthz").json() == {"state": "ready"}
    told = http.get("/readyz").json()
    assert (told["state"], told["phase"], told["seconds"] >= 0) == ("ready", "ready", True)


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nowhere", 404), ("DELETE", "/score", 405)])
def test_wrong_paths_and_methods_have_our_error_shape(http: httpx.Client, method: str, path: str, status: int) -> None:
    response = http.request(method, path)
    assert response.status_code == status
    assert set(error_of(response)) == {"code", "message"}


@pytest.mark.parametrize(
    ("query", "file"),
    [("", "swagger2.json"), ("?version=2", "swagger2.json"), ("?version=3", "swagger3.json"),
     ("?version=3.1", "swagger3.1.json")],
)  # fmt: skip
def test_swagger_is_the_bundles(
    http: httpx.Client, azmlinfsrv: Azmlinfsrv, bundle: Path, query: str, file: str
) -> None:
    ours = http.get(f"/swagger.json{query}")
    assert ours.content == (bundle / "code" / file).read_bytes()
    theirs = httpx.get(f"http://127.0.0.1:{azmlinfsrv.port}/swagger.json{query}", trust_env=False)
    assert ours.json() == theirs.json()


def test_an_unknown_swagger_version(http: httpx.Client) -> None:
    response = http.get("/swagger.json?version=9")
    assert response.status_code == 404
    assert "'9'" in error_of(response)["message"]


def test_openapi_takes_the_tasks_schema(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    assert document["paths"]["/score"]["post"]["summary"] == "the task's own"
    assert "ServiceInput" in document["components"]["schemas"]
    assert "/v2/models/{model}/infer" in document["paths"]


def test_the_protocols_rest_form(http: httpx.Client) -> None:
    assert http.get("/v2").json()["name"] == "mii-azure"
    assert http.get("/v2/health/live").json() == {"live": True}
    assert http.get("/v2/health/ready").json() == {"ready": True}
    assert http.get("/v2/models/echo").json()["platform"] == "mii-azure_text-classification"
    assert http.get("/v2/models/echo/ready").json() == {"name": "echo", "ready": True}
    sent = {
        "id": "7",
        "inputs": [{"name": "inputs", "datatype": "BYTES", "shape": [2], "data": ["a", "ü"]}],
        "parameters": {"k": 1},
        "outputs": [{"name": "outputs"}],
    }
    assert http.post("/v2/models/echo/infer", json=sent).json() == {
        "model_name": "echo",
        "model_version": "1",
        "id": "7",
        "outputs": [
            {
                "name": "outputs",
                "datatype": "BYTES",
                "shape": [2],
                "data": ['{"echo": "A", "k": 1}', '{"echo": "Ü", "k": 1}'],
            }
        ],
    }


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ("{", 400, "invalid_json"),
        ("[]", 400, "invalid_input"),
        ('{"inputs": "a"}', 400, "invalid_input"),
        ('{"inputs": [{"name": "inputs", "datatype": "BYTES", "shape": [1], "data": [1]}]}', 400, "invalid_input"),
        ('{"inputs": [{"name": "inputs", "datatype": "BYTES", "shape": ["1"], "data": ["a"]}]}', 400, "invalid_input"),
        (
            '{"inputs": [{"name": "inputs", "datatype": "BYTES", "shape": [1], "data": ["status:429"]}]}',
            429,
            "overloaded",
        ),
    ],
)
def test_infer_refuses(http: httpx.Client, body: str, status: int, code: str) -> None:
    response = http.post("/v2/models/echo/infer", content=body)
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert response.json()["error"].endswith(".")  # the protocol has a sentence there, and no object


@pytest.mark.parametrize("shape", [[2, 1], [1, 2], [2]])
def test_data_may_be_nested_as_its_shape_is(http: httpx.Client, shape: list[int]) -> None:
    data = {2: [["a"], ["ü"]], 1: [["a", "ü"]]}[shape[0]]
    tensor = {"name": "inputs", "datatype": "BYTES", "shape": shape, "data": data}
    told = http.post("/v2/models/echo/infer", json={"inputs": [tensor]}).json()["outputs"][0]["data"]
    assert told == ['{"echo": "A"}', '{"echo": "Ü"}']
    short = http.post("/v2/models/echo/infer", json={"inputs": [tensor | {"data": [["a"]]}]})
    assert (short.status_code, "has shape" in short.json()["error"]) == (400, True)


def test_the_version_that_metadata_names_is_there(http: httpx.Client) -> None:
    [version] = http.get("/v2/models/echo").json()["versions"]
    base = f"/v2/models/echo/versions/{version}"
    assert http.get(base).json() == http.get("/v2/models/echo").json()
    assert http.get(f"{base}/ready").json() == http.get("/v2/models/echo/ready").json()
    sent = {"inputs": [{"name": "inputs", "datatype": "BYTES", "shape": [1], "data": ["a"]}]}
    assert http.post(f"{base}/infer", json=sent).json() == http.post("/v2/models/echo/infer", json=sent).json()
    other = http.post("/v2/models/echo/versions/7/infer", json=sent)
    assert (other.status_code, other.json()["where"]) == (404, "model_version")


@pytest.mark.parametrize(
    ("body", "count"),
    [(b"{}", "9"), (b"{}", "x"), (b'{"inputs": []}abc', "14"), (b'\xff{"inputs": []}', "3")],
)
def test_binary_tensors_that_are_none(http: httpx.Client, body: bytes, count: str) -> None:
    answer = http.post("/v2/models/echo/infer", content=body, headers={"inference-header-content-length": count})
    assert (answer.status_code, answer.json()["error"].endswith(".")) == (400, True)


@pytest.mark.parametrize(("method", "status"), [("GET", 404), ("DELETE", 405)])
def test_the_frameworks_refusals_have_each_protocols_shape(http: httpx.Client, method: str, status: int) -> None:
    path = {404: "nowhere", 405: "models"}[status]
    openai = http.request(method, f"/v1/{path}")
    assert (openai.status_code, openai.json()["error"]["type"]) == (status, "invalid_request_error")
    assert openai.json()["error"]["message"]
    triton = http.request(method, "/v2/models/echo/nowhere" if status == 404 else "/v2/models/echo")
    assert (triton.status_code, isinstance(triton.json()["error"], str)) == (status, True)


def test_a_compressed_body_is_unpacked_within_the_limit(http: httpx.Client) -> None:
    body = json.dumps({"inputs": "hello"}).encode()
    zipped = {"content-encoding": "gzip"}
    assert http.post("/score", content=gzip.compress(body), headers=zipped).content == (
        http.post("/score", content=body).content
    )
    bomb = gzip.compress(b" " * (50 << 20))
    assert len(bomb) < MAX_PAYLOAD
    refused = http.post("/score", content=bomb, headers=zipped)
    assert (refused.status_code, error_of(refused)["code"]) == (413, "payload_too_large")
    for broken in (body, gzip.compress(body)[:-9], gzip.compress(body) + b"more"):
        refused = http.post("/score", content=broken, headers=zipped)
        assert (refused.status_code, error_of(refused)["where"]) == (400, "content-encoding")
    refused = http.post("/v1/completions", content=body, headers={"content-encoding": "br"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (415, "unsupported_encoding")


def test_a_byte_order_mark_is_passed_over(http: httpx.Client) -> None:
    sent = b'{"inputs": [{"name": "inputs", "datatype": "BYTES", "shape": [1], "data": ["a"]}]}'
    answer = http.post("/v2/models/echo/infer", content=b"\xef\xbb\xbf" + sent)
    assert (answer.status_code, answer.json()["outputs"][0]["data"]) == (200, ['{"echo": "A"}'])


def test_another_model_is_not_served(http: httpx.Client) -> None:
    for response in (http.get("/v2/models/other"), http.post("/v2/models/other/infer", content="{}")):
        assert (response.status_code, response.json()["code"]) == (404, "model_not_served")


async def test_liveness_ends_with_an_engine_that_only_a_new_process_brings_back(bundle: Path) -> None:
    host = ScriptHost(bundle)  # over this process's own scoring package, which has loaded nothing: not ready
    transport = httpx.ASGITransport(app.build(host))
    async with httpx.AsyncClient(transport=transport, base_url="http://runner") as client:
        assert (await client.get("/healthz")).status_code == 200
        host.change(HostState.READY)
        answer = await client.get("/healthz")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
        host.change(HostState.DRAINING)
        assert (await client.get("/healthz")).status_code == 200


async def test_what_can_score_no_more_is_not_called_ready(bundle: Path) -> None:
    host = ScriptHost(bundle)  # its engine is not ready, as one that lost a rank is not
    transport = httpx.ASGITransport(app.build(host))
    async with httpx.AsyncClient(transport=transport, base_url="http://runner") as client:
        host.change(HostState.READY)
        answer = await client.get("/readyz")
        assert (answer.status_code, answer.json()["state"], answer.json()["phase"]) == (503, "failed", "failed")
        metrics = (await client.get("/metrics")).text
        assert 'mii_azure_phase{phase="failed"} 1.0' in metrics and 'mii_azure_phase{phase="ready"} 0.0' in metrics


def test_a_stream_is_one_request_in_flight(http: httpx.Client, tmp_path: Path) -> None:
    def in_flight() -> float:
        lines = http.get("/metrics").text.splitlines()
        return float(next(line for line in lines if line.startswith("mii_azure_in_flight ")).split()[1])

    before = in_flight()  # what tests before this one left waiting
    gate = tmp_path / "gate"
    with http.stream("POST", "/score", json={"inputs": f"a until:{gate}", "stream": True}) as response:
        chunks = response.iter_raw()
        next(chunks)  # the next is asked for, and held
        deadline = time.monotonic() + 20
        while (found := in_flight()) != before + 1:
            assert time.monotonic() < deadline, found
        gate.touch()
        assert b"[DONE]" in b"".join(chunks)
    while (found := in_flight()) != before:
        assert time.monotonic() < deadline, found
