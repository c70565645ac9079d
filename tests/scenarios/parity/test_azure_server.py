"""A generated bundle under the real azureml-inference-server-http: routes, statuses, headers, OpenAPI."""

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from openapi_spec_validator import validate

import mii_azure
from local_runner.process.launch import LOOPBACK, Azmlinfsrv

pytestmark = pytest.mark.usefixtures("forked")

Tiny = Callable[[str, str], Path]


class Answer(NamedTuple):
    status: int
    body: bytes
    headers: Any

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@pytest.fixture(scope="module")
def ask(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Answer]]:
    bundle = mii_azure.generate(
        task="text-classification",
        model=str(tiny("bert", "text-classification")),
        deployment_name="azure",
        output=tmp_path_factory.mktemp("azure") / "bundle",
        passes_off=("cpu",),  # it takes seconds to time its ways, of which a tiny model shows nothing
    )
    with Azmlinfsrv(bundle) as server:

        def send(path: str, body: bytes | None = None, content_type: str = "application/json") -> Answer:
            headers = {"Content-Type": content_type} if body is not None else {}
            request = urllib.request.Request(f"http://{LOOPBACK}:{server.port}{path}", body, headers)
            try:
                with urllib.request.urlopen(request, timeout=60) as response:
                    return Answer(response.status, response.read(), response.headers)
            except urllib.error.HTTPError as error:
                with error:
                    return Answer(error.code, error.read(), error.headers)

        yield send


def test_it_is_healthy_and_scores(ask: Callable[..., Answer]) -> None:
    assert ask("/").body == b"Healthy"
    answer = ask("/score", b'{"inputs": ["a fine day", "a bad day"], "parameters": {"top_k": 2}}')
    assert answer.status == 200
    assert [len(entry) for entry in answer.json] == [2, 2]
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["x-ms-run-function-failed"] == "False"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "invalid_json"),
        (b"{", 400, "invalid_json"),
        (b'{"inputs": 1}', 400, "invalid_input"),
        (b'{"inputs": "a", "parameters": {"topk": 1}}', 400, "invalid_parameter"),
        (b'{"inputs": "' + b"x" * 10_000_000 + b'"}', 413, "payload_too_large"),
        (b'{"inputs": "' + b"x " * 1000 + b'"}', 400, "prompt_too_long"),
    ],
)
def test_statuses_are_meant(ask: Callable[..., Answer], body: bytes, status: int, code: str) -> None:
    answer = ask("/score", body)
    assert (answer.status, answer.json["error"]["code"]) == (status, code)
    assert answer.json["error"]["message"]


def test_a_body_that_is_not_sent_as_json_says_so(ask: Callable[..., Answer]) -> None:
    # curl's default content type: flask hands the script an empty body.
    answer = ask("/score", b'{"inputs": "a"}', "application/x-www-form-urlencoded")
    assert answer.status == 400
    assert "Content-Type: application/json" in answer.json["error"]["hint"]


@pytest.mark.parametrize(("version", "key"), [("2", "swagger"), ("3", "openapi"), ("3.1", "openapi")])
def test_it_serves_a_valid_openapi_of_the_task(ask: Callable[..., Answer], version: str, key: str) -> None:
    document = ask(f"/swagger.json?version={version}").json
    assert document[key].startswith(version)
    validate(document)
    assert "Today was an amazing day!" in json.dumps(document["paths"]["/score"]) + json.dumps(document)
    if version != "2":
        assert "top_k" in json.dumps(document)
