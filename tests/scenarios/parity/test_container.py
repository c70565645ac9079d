"""A bundle with `--server http`: the command of its image as a real process, beside the other hosts."""

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest

import mii_azure
from local_runner.process import launch
from local_runner.process.launch import LOOPBACK, Container
from mii_azure.errors import RunnerFailed
from mii_azure.verdict.parity import parity
from mii_azure.verdict.targets import targets_of

pytestmark = pytest.mark.usefixtures("forked")

Tiny = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def bundle(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = str(tiny("gpt2", "text-generation"))
    folder = tmp_path_factory.mktemp("container") / "bundle"
    return mii_azure.generate("text-generation", model, "my-gpt", output=folder, server="http")


@pytest.fixture(scope="module")
def container(bundle: Path) -> Iterator[Container]:
    with Container(bundle) as started:
        yield started


def ask(container: Container, method: str, path: str, body: str | None = None) -> tuple[int, str, bytes]:
    connection = http.client.HTTPConnection(LOOPBACK, container.port, timeout=60)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
        response = connection.getresponse()
        return response.status, response.headers.get("Content-Type", ""), response.read()
    finally:
        connection.close()


def test_its_server_answers_byte_for_byte_as_the_process_and_grpc_do(bundle: Path) -> None:
    verdict = parity(bundle, targets=("in-process", "grpc", "container"))
    assert verdict.agree
    assert {entry.grade for entry in verdict.comparisons} == {"bytes"}
    assert not any(verdict.environment.values())


def test_parity_takes_the_container_for_such_a_bundle_by_itself(bundle: Path) -> None:
    assert targets_of(bundle) == ("in-process", "grpc", "http", "container")


def test_it_runs_the_mounted_files_and_nothing_of_this_installation(container: Container) -> None:
    maps = Path(f"/proc/{container.process.pid}/cwd").resolve()
    assert maps == container.folder / "azureml-app" / "code"  # the command changes there
    environ = Path(f"/proc/{container.process.pid}/environ").read_bytes().decode()
    assert "//model/1" in environ
    assert "MII_AZURE_DRAIN_SECONDS=25" in environ


@pytest.mark.parametrize("path", ["/score", "/"])
def test_scoring_answers_at_its_path_and_at_azures_route(container: Container, path: str) -> None:
    status, kind, body = ask(container, "POST", path, '{"inputs": "a b", "parameters": {"max_new_tokens": 3}}')
    assert (status, kind) == (200, "application/json")
    assert "generated_text" in body.decode()


def test_it_streams(container: Container) -> None:
    status, kind, body = ask(container, "POST", "/score", '{"inputs": "a b", "stream": true}')
    assert (status, kind) == (200, "text/event-stream")
    assert body.count(b"data: ") > 2
    assert body.endswith(b"data: [DONE]\n\n")


def test_openais_client_works_against_it(container: Container) -> None:
    with openai.OpenAI(base_url=f"http://{LOOPBACK}:{container.port}/v1", api_key="a-key", max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["my-gpt"]
        made = client.completions.create(model="my-gpt", prompt="a b", max_tokens=4)
        pieces = client.completions.create(model="my-gpt", prompt="a b", max_tokens=4, stream=True)
        assert "".join(piece.choices[0].text for piece in pieces) == made.choices[0].text


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/v2/health/ready", "/swagger.json?version=3.1"])
def test_azures_probes_and_operators_are_answered(container: Container, path: str) -> None:
    assert ask(container, "GET", path)[0] == 200


def test_it_writes_json_logs_without_prompts(container: Container) -> None:
    ask(container, "POST", "/score", '{"inputs": "a very private prompt"}')
    lines = container.log.read_text(encoding="utf-8").splitlines()
    answered = [json.loads(line) for line in lines if '"answered"' in line]
    assert answered
    assert {"request_id", "code", "ms"} <= answered[-1].keys()
    assert not any("private" in line for line in lines)


def test_a_model_that_does_not_load_ends_it_with_a_sentence(bundle: Path, tmp_path: Path) -> None:
    """As in Azure, where the model's folder may hold something else than was planned."""
    code = bundle / "code"
    (tmp_path / "model").mkdir()
    env = {**os.environ, "MII_AZURE_HOST": LOOPBACK, "MII_AZURE_HTTP_PORT": "0", "AZUREML_MODEL_DIR": str(tmp_path)}
    command = [sys.executable, "-B", "-m", "local_runner.container"]
    done = subprocess.run(command, cwd=code, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 3
    assert ": No config.json in" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "value"), [("MII_AZURE_HTTP_PORT", "many"), ("MII_AZURE_SERVED_NAME", "my model")], ids=str
)
def test_an_environment_that_is_wrong_ends_it_with_a_sentence(
    name: str, value: str, bundle: Path, tmp_path: Path
) -> None:
    env = {**os.environ, name: value, "MII_AZURE_READY_FILE": str(tmp_path / "ready")}
    command = [sys.executable, "-B", "-m", "local_runner.container"]
    done = subprocess.run(command, cwd=bundle / "code", env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 3
    assert value in done.stderr
    assert json.loads((tmp_path / "ready").read_text())["exit_code"] == 3
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("value", ["/keys", ""])
@pytest.mark.parametrize("name", ["API_KEY_FILE", "TLS_CERT", "TLS_KEY", "TLS_CLIENT_CA"])
def test_keys_that_it_would_not_ask_for_end_it_with_a_sentence(bundle: Path, name: str, value: str) -> None:
    env = {**os.environ, "MII_AZURE_HOST": LOOPBACK, "MII_AZURE_HTTP_PORT": "0", f"MII_AZURE_{name}": value}
    command = [sys.executable, "-B", "-m", "local_runner.container"]
    done = subprocess.run(command, cwd=bundle / "code", env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 3
    assert f"has no keys or TLS of its own, and MII_AZURE_{name} is set. Unset it" in done.stderr


def test_a_port_in_use_is_told(bundle: Path, container: Container) -> None:
    env = {**os.environ, "MII_AZURE_HOST": LOOPBACK, "MII_AZURE_HTTP_PORT": str(container.port)}
    command = [sys.executable, "-B", "-m", "local_runner.container"]
    done = subprocess.run(command, cwd=bundle / "code", env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == RunnerFailed.exit_code
    assert f"Port {container.port}" in done.stderr


def test_front_ends_answer_in_it_as_the_process_does(
    bundle: Path, container: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = launch._settings
    monkeypatch.setattr(launch, "_settings", lambda folder: settings(folder) | {"MII_AZURE_FRONT_ENDS": "1"})
    body = '{"inputs": "a b", "stream": true, "parameters": {"max_new_tokens": 9}}'
    with Container(bundle) as several:
        assert [ask(several, "POST", "/score", body) for _ in range(4)] == [ask(container, "POST", "/", body)] * 4
        assert b'mii_azure_requests_total{code="200"} 4.0' in ask(several, "GET", "/metrics")[2]
        several.process.send_signal(signal.SIGTERM)
        assert several.process.wait(30) == 0


def test_a_stop_finishes_what_it_has_taken(container: Container) -> None:
    """The last test of this server."""
    answers: list[bytes] = []
    body = '{"inputs": "a b", "parameters": {"max_new_tokens": 50}, "stream": true}'
    connection = http.client.HTTPConnection(LOOPBACK, container.port, timeout=60)
    connection.request("POST", "/score", body, {"Content-Type": "application/json"})
    response = connection.getresponse()  # the stream has begun
    reader = threading.Thread(target=lambda: answers.append(response.read()))
    os.kill(container.process.pid, signal.SIGTERM)
    reader.start()
    reader.join(60)
    connection.close()
    assert container.process.wait(60) == 0
    assert answers[0].endswith(b"data: [DONE]\n\n")
