"""A runner's life: loading behind open ports, failing with one sentence, draining on a signal."""

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from local_runner.process import ready_file
from local_runner.process.launch import Azmlinfsrv, Runner
from local_runner.protos import scoring_pb2, scoring_pb2_grpc
from mii_azure.errors import BundleEdited, RunnerFailed
from scoring.errors import LoadError
from tests.waiting import PATIENCE_S, until

Status = health_pb2.HealthCheckResponse


class Started:
    """`python -m local_runner` with nothing between it and the test."""

    def __init__(self, bundle: Path, folder: Path, *arguments: str, before: str = "", **env: str) -> None:
        """Start it; `before` are words of a shell that becomes the process."""
        self.ready = folder / "ready.json"
        self.log = folder / "log"
        command = [sys.executable, "-m", "local_runner", str(bundle), "--grpc-port", "0", "--http-port", "0"]
        command += ["--ready-file", str(self.ready), *arguments]
        command = ["sh", "-c", before + shlex.join(command)] if before else command
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **env})

    def wait_for(self, state: str, seconds: float = PATIENCE_S) -> dict[str, Any]:
        def found() -> dict[str, Any]:
            assert self.process.poll() is None, self.log.read_text()
            told = ready_file.read(self.ready)
            return told if told.get("state") == state else {}

        return until(found, seconds)

    def ended(self) -> tuple[int, str]:
        return self.process.wait(60), self.log.read_text()


@contextmanager
def started(bundle: Path, folder: Path, *arguments: str, **env: str) -> Iterator[Started]:
    runner = Started(bundle, folder, *arguments, **env)
    try:
        yield runner
    finally:
        runner.process.kill()
        runner.process.wait()


def ask(port: int, raw: str) -> str:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        return scoring_pb2_grpc.ScoringStub(channel).Score(scoring_pb2.ScoreRequest(json=raw), timeout=20).json


def in_flight(log: Path, count: int) -> None:
    """Wait until `count` requests hold a thread of the stub."""
    until(lambda: log.exists() and len(log.read_text().splitlines()) >= count)


def test_loading_answers_not_ready_and_then_serves(bundle: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with started(bundle, tmp_path, STUB_LOAD=f"until:{gate}") as runner:
        ports = runner.wait_for("loading")
        base = f"http://127.0.0.1:{ports['http_port']}"
        with grpc.insecure_channel(f"127.0.0.1:{ports['grpc_port']}") as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=20)
            assert next(watch).status == Status.NOT_SERVING
            with pytest.raises(grpc.RpcError) as raised:
                ask(ports["grpc_port"], "{}")
            assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
            assert raised.value.details().startswith("The model is loading (")
            answers = [httpx.get(base + path, trust_env=False) for path in ("/", "/readyz", "/healthz")]
            assert [answer.status_code for answer in answers] == [503, 503, 200]
            assert answers[0].json()["error"]["code"] == "not_ready"
            assert answers[2].json() == {"state": "loading"}
            assert (answers[1].json()["phase"], answers[1].json()["seconds"] >= 0) == ("importing", True)
            assert 'mii_azure_phase{phase="importing"} 1.0' in httpx.get(base + "/metrics", trust_env=False).text
            assert httpx.get(base + "/v2/models/echo/ready", trust_env=False).json()["ready"] is False
            gate.touch()
            assert next(watch).status == Status.SERVING
        assert runner.wait_for("ready") == {**ports, "pid": runner.process.pid, "state": "ready"}
        assert ask(ports["grpc_port"], '{"inputs": "a"}') == '{"echo": "A"}'


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_what_is_in_flight(bundle: Path, tmp_path: Path, number: int) -> None:
    marker, busy, gate = (tmp_path / name for name in ("drained", "busy", "gate"))
    env = {"STUB_DRAINED": str(marker), "STUB_BUSY": str(busy)}
    with started(bundle, tmp_path, **env) as runner, ThreadPoolExecutor() as pool:
        ports = runner.wait_for("ready")
        slow = pool.submit(ask, ports["grpc_port"], f'{{"inputs": "until:{gate}"}}')
        body = f'{{"inputs": "a until:{gate}", "stream": true}}'
        url = f"http://127.0.0.1:{ports['http_port']}/score"
        stream = pool.submit(httpx.post, url, content=body, trust_env=False, timeout=20)
        in_flight(busy, 2)
        with grpc.insecure_channel(f"127.0.0.1:{ports['grpc_port']}") as channel:
            # A watcher never ends by itself; it must not use up the drain's budget.
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert next(watch).status == Status.SERVING
            runner.process.send_signal(number)
            assert next(watch).status == Status.NOT_SERVING
            gate.touch()
            assert slow.result().startswith('{"echo": "UNTIL:')
            assert stream.result().content.endswith(b"data: [DONE]\n\n")
            code, log = runner.ended()
        assert code == 0, log
        assert "ready: echo (text-classification) at grpc://127.0.0.1:" in log
        assert marker.read_text() == "drained"
        assert not runner.ready.exists()
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", ports["http_port"]))


def test_the_drain_has_a_budget_and_a_second_signal_no_patience(bundle: Path, tmp_path: Path) -> None:
    for budget, signals, says in (("0.5", 1, "1 requests were abandoned after 0.5 s"), ("600", 2, "")):
        busy = tmp_path / f"busy-{budget}"
        arguments = ("--drain-seconds", budget)
        with started(bundle, tmp_path, *arguments, STUB_BUSY=str(busy)) as runner, ThreadPoolExecutor() as pool:
            port = runner.wait_for("ready")["grpc_port"]
            slow = pool.submit(ask, port, '{"inputs": "until:/never"}')
            in_flight(busy, 1)
            for _ in range(signals):
                assert runner.process.poll() is None
                runner.process.terminate()
                time.sleep(0.3)
            code, log = runner.ended()
            assert code == 1
            assert says in log
            assert isinstance(slow.exception(), grpc.RpcError)
            runner.ready.unlink(missing_ok=True)


def test_a_signal_while_loading_ends_at_once(bundle: Path, tmp_path: Path) -> None:
    with started(bundle, tmp_path, STUB_LOAD="until:/never") as runner:
        runner.wait_for("loading")
        runner.process.terminate()
        code, log = runner.ended()
        assert code == 0, log
        assert "Traceback" not in log


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("fail", "The stub does not load. Do not ask it to."),
        (
            "import",
            "score.py needs the package 'a_package_that_is_not_there', which is not installed here.",
        ),
        ("crash", "score.py did not start: RuntimeError: an unforeseen failure"),
    ],
)
def test_a_load_that_fails_ends_with_one_sentence(bundle: Path, tmp_path: Path, how: str, says: str) -> None:
    with started(bundle, tmp_path, STUB_LOAD=how) as runner:
        code, log = runner.ended()
        assert code == 3
        told = next(line for line in log.splitlines() if line.startswith("error "))
        assert told.startswith(f"error [load_failed]: {says}")
        assert "Traceback" not in log
        state = ready_file.read(runner.ready)
        assert (state["state"], state["exit_code"], state["error"]["code"]) == ("failed", 3, "load_failed")


@pytest.mark.parametrize("option", ["--grpc-port", "--http-port"])
def test_a_port_in_use(bundle: Path, tmp_path: Path, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with started(bundle, tmp_path, option, port) as runner:
            code, log = runner.ended()
    assert code == 4
    assert f"error [port_in_use]: Port {port} of 127.0.0.1 is in use. Choose another, or 0 for any free one." in log
    assert ready_file.read(runner.ready)["error"]["code"] == "port_in_use"


def test_an_address_that_is_not_this_machines(bundle: Path, tmp_path: Path) -> None:
    with started(bundle, tmp_path, "--host", "192.0.2.1") as runner:
        code, log = runner.ended()
    assert code == 4
    assert ": 192.0.2.1:0 cannot be listened on" in log


def test_two_runners_never_share_a_port(bundle: Path, tmp_path: Path, runner: Runner) -> None:
    with started(bundle, tmp_path, "--grpc-port", str(runner.grpc_port)) as second:
        assert second.ended()[0] == 4


def test_differences_from_the_lock_are_told_and_not_fatal(runner: Runner) -> None:
    log = runner.log.read_text()
    assert "warning: 2 packages differ from the bundle's lock:" in log
    assert "no-such-package  1.0" in log


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("MII_AZURE_DRAIN_SECONDS", "soon", "argument --drain-seconds: invalid float value: 'soon'"),
        ("MII_AZURE_HTTP_PORT", "65536", "argument --http-port: 65536 is no port; ports go from 0 to 65535"),
    ],
)
def test_options_come_from_the_environment_too(bundle: Path, variable: str, value: str, says: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "local_runner", str(bundle)],
        env={**os.environ, variable: value},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert says in done.stderr


def test_help_documents_the_exit_codes() -> None:
    done = subprocess.run([sys.executable, "-m", "local_runner", "--help"], capture_output=True, text=True, check=True)
    assert "exit codes:\n  0  stopped by a signal" in done.stdout


def test_a_parent_gets_the_runners_own_error(own_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUB_LOAD", "fail")
    bundle = own_bundle()
    with pytest.raises(LoadError, match="The stub does not load") as raised, Runner(bundle):
        pass
    assert raised.value.hint == "Do not ask it to."
    with pytest.raises(RunnerFailed, match=r"exit code 3: .*The stub does not load") as failed, Azmlinfsrv(bundle):
        pass
    assert len(failed.value.message.splitlines()) <= 9
    (bundle / "code" / "score.py").write_text("")
    for host in (Runner, Azmlinfsrv):
        with pytest.raises(BundleEdited, match=r"code/score.py \(edited\)"), host(bundle):
            pass


def test_a_host_that_takes_too_long(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUB_LOAD", "until:/never")
    with pytest.raises(RunnerFailed, match="not ready after 1 s: "), Runner(bundle, timeout_s=1):
        pass


def test_more_requests_than_there_is_room_for(
    own_bundle: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy, gate = tmp_path / "busy", tmp_path / "gate"
    monkeypatch.setenv("STUB_BUSY", str(busy))
    with Runner(own_bundle(queue_size=1, max_batch_size=1)) as runner, ThreadPoolExecutor() as pool:
        slow = [pool.submit(ask, runner.grpc_port, f'{{"inputs": "until:{gate}"}}') for _ in range(2)]
        in_flight(busy, 2)
        response = httpx.post(f"http://127.0.0.1:{runner.http_port}/score", content="{}", trust_env=False)
        assert (response.status_code, response.headers["retry-after"]) == (429, "1")
        assert response.json()["error"]["code"] == "overloaded"
        gate.touch()
        assert all(future.result().startswith('{"echo": ') for future in slow)
