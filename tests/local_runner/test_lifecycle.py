"""A runner's life: loading behind open ports, failing with one sentence, draining on a signal."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
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

from local_runner import ready_file
from local_runner.process import Azmlinfsrv, Runner
from local_runner.protos import scoring_pb2, scoring_pb2_grpc
from mii_azure.errors import BundleEdited, RunnerFailed
from scoring.errors import LoadError

Status = health_pb2.HealthCheckResponse


class Started:
    """`python -m local_runner` with nothing between it and the test."""

    def __init__(self, bundle: Path, folder: Path, *arguments: str, **env: str) -> None:
        self.ready = folder / "ready.json"
        self.log = folder / "log"
        command = [sys.executable, "-m", "local_runner", str(bundle), "--grpc-port", "0", "--http-port", "0"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "--ready-file", str(self.ready), *arguments],
                stdout=log,
                stderr=log,
                env={**os.environ, **env},
            )

    def wait_for(self, state: str) -> dict[str, Any]:
        deadline = time.monotonic() + 20
        while (found := ready_file.read(self.ready)).get("state") != state:
            assert time.monotonic() < deadline and self.process.poll() is None, self.log.read_text()
            time.sleep(0.01)
        return found

    def ended(self) -> tuple[int, str]:
        return self.process.wait(20), self.log.read_text()


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


def test_loading_answers_not_ready_and_then_serves(bundle: Path, tmp_path: Path) -> None:
    with started(bundle, tmp_path, STUB_LOAD="sleep:1.5") as runner:
        ports = runner.wait_for("loading")
        seen = []
        with grpc.insecure_channel(f"127.0.0.1:{ports['grpc_port']}") as channel:
            for reply in health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=10):
                seen.append(reply.status)
                if reply.status == Status.SERVING:
                    break
                with pytest.raises(grpc.RpcError) as raised:
                    ask(ports["grpc_port"], "{}")
                assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
                assert raised.value.details().startswith("The model is loading (")
                base = f"http://127.0.0.1:{ports['http_port']}"
                answers = {path: httpx.get(base + path, trust_env=False) for path in ("/", "/readyz", "/healthz")}
                assert [answer.status_code for answer in answers.values()] == [503, 503, 200]
                assert answers["/"].json()["error"]["code"] == "not_ready"
                assert answers["/healthz"].json() == {"state": "loading"}
                assert httpx.get(base + "/v2/models/echo/ready", trust_env=False).json()["ready"] is False
        assert seen == [Status.NOT_SERVING, Status.SERVING]
        ready = runner.wait_for("ready")
        assert ready == {**ports, "pid": runner.process.pid, "state": "ready"}
        assert ask(ports["grpc_port"], '{"inputs": "a"}') == '{"echo": "A"}'


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_what_is_in_flight(bundle: Path, tmp_path: Path, number: int) -> None:
    marker = tmp_path / "drained"
    with started(bundle, tmp_path, STUB_DRAINED=str(marker)) as runner, ThreadPoolExecutor() as pool:
        ports = runner.wait_for("ready")
        base = f"http://127.0.0.1:{ports['http_port']}"
        slow = pool.submit(ask, ports["grpc_port"], '{"inputs": "sleep:1"}')
        body = '{"inputs": "a sleep:1 b", "stream": true}'
        stream = pool.submit(httpx.post, f"{base}/score", content=body, trust_env=False)
        with grpc.insecure_channel(f"127.0.0.1:{ports['grpc_port']}") as channel:
            # A watcher never ends by itself; it must not use up the drain's budget.
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert next(watch).status == Status.SERVING
            time.sleep(0.3)
            runner.process.send_signal(number)
            assert next(watch).status == Status.NOT_SERVING
            assert slow.result() == '{"echo": "SLEEP:1"}'
            assert stream.result().content.endswith(b"data: [DONE]\n\n")
            code, log = runner.ended()
        assert code == 0, log
        assert "ready: echo (text-classification) at grpc://127.0.0.1:" in log
        assert marker.read_text() == "drained"
        assert not runner.ready.exists()
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", ports["http_port"]))


def test_the_drain_has_a_budget(bundle: Path, tmp_path: Path) -> None:
    with started(bundle, tmp_path, "--drain-seconds", "0.5") as runner:
        port = runner.wait_for("ready")["grpc_port"]

        def abandoned() -> None:
            with pytest.raises(grpc.RpcError):
                ask(port, '{"inputs": "sleep:15"}')

        thread = threading.Thread(target=abandoned)
        thread.start()
        time.sleep(0.3)
        runner.process.terminate()
        code, log = runner.ended()
        thread.join()
        assert code == 1
        assert "1 requests were abandoned after 0.5 s of draining." in log


def test_a_second_signal_does_not_wait(bundle: Path, tmp_path: Path) -> None:
    with started(bundle, tmp_path) as runner, ThreadPoolExecutor() as pool:
        port = runner.wait_for("ready")["grpc_port"]
        slow = pool.submit(ask, port, '{"inputs": "sleep:15"}')
        time.sleep(0.3)
        runner.process.terminate()
        time.sleep(0.3)
        assert runner.process.poll() is None
        runner.process.terminate()
        assert runner.ended()[0] == 1
        assert slow.exception() is not None


def test_a_signal_while_loading_ends_at_once(bundle: Path, tmp_path: Path) -> None:
    with started(bundle, tmp_path, STUB_LOAD="sleep:60") as runner:
        runner.wait_for("loading")
        runner.process.terminate()
        code, log = runner.ended()
        assert code == 0, log
        assert "Traceback" not in log


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("fail", "error: The stub does not load. Do not ask it to."),
        ("import", "error: score.py needs the package 'a_package_that_is_not_there', which is not installed here."),
        ("crash", "error: score.py did not start: RuntimeError: an unforeseen failure"),
    ],
)
def test_a_load_that_fails_ends_with_one_sentence(bundle: Path, tmp_path: Path, how: str, says: str) -> None:
    with started(bundle, tmp_path, STUB_LOAD=how) as runner:
        code, log = runner.ended()
        assert code == 3
        assert next(line for line in log.splitlines() if line.startswith("error:")).startswith(says)
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
    assert f"error: Port {port} of 127.0.0.1 is in use. Choose another, or 0 for any free one." in log
    assert ready_file.read(runner.ready)["error"]["code"] == "port_in_use"


def test_an_address_that_is_not_this_machines(bundle: Path, tmp_path: Path) -> None:
    with started(bundle, tmp_path, "--host", "192.0.2.1") as runner:
        code, log = runner.ended()
    assert code == 4
    assert "error: 192.0.2.1:0 cannot be listened on" in log


def test_two_runners_never_share_a_port(bundle: Path, tmp_path: Path, runner: Runner) -> None:
    with started(bundle, tmp_path, "--grpc-port", str(runner.grpc_port)) as second:
        assert second.ended()[0] == 4


def test_differences_from_the_lock_are_told_and_not_fatal(runner: Runner) -> None:
    log = runner.log.read_text()
    assert "warning: 2 packages differ from the bundle's lock:" in log
    assert "no-such-package  1.0" in log


def test_options_come_from_the_environment_too(bundle: Path, tmp_path: Path) -> None:
    with started(bundle, tmp_path, MII_AZURE_DRAIN_SECONDS="nonsense") as runner:
        code, log = runner.ended()
    assert code == 2
    assert "argument --drain-seconds: invalid float value: 'nonsense'" in log


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
    monkeypatch.setenv("STUB_LOAD", "sleep:60")
    with pytest.raises(RunnerFailed, match=r"(?s)not ready after 3 s: .*\nloading: echo"), Runner(bundle, timeout_s=3):
        pass


def test_more_requests_than_there_is_room_for(own_bundle: Callable[..., Path]) -> None:
    with Runner(own_bundle(queue_size=1, max_batch_size=1)) as runner, ThreadPoolExecutor() as pool:
        slow = [pool.submit(ask, runner.grpc_port, '{"inputs": "sleep:1"}') for _ in range(2)]
        time.sleep(0.4)
        response = httpx.post(f"http://127.0.0.1:{runner.http_port}/score", content="{}", trust_env=False)
        assert (response.status_code, response.headers["retry-after"]) == (429, "1")
        assert json.loads(response.text)["error"]["code"] == "overloaded"
        assert [future.result() for future in slow] == ['{"echo": "SLEEP:1"}'] * 2
