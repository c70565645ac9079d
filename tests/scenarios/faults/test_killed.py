"""A worker or a whole server is killed: the client is told, nothing hangs, and what can come back does."""

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from local_runner.client.client import Client
from local_runner.process.launch import Azmlinfsrv
from mii_azure.errors import RunnerFailed
from tests.scenarios.faults.conftest import HOST, lines, served, until


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_azures_server_replaces_a_killed_worker(
    own_bundle: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = tmp_path / "busy"
    monkeypatch.setenv("STUB_BUSY", str(busy))
    with Azmlinfsrv(own_bundle()) as host, ThreadPoolExecutor() as pool:
        url = f"http://{HOST}:{host.port}/score"

        def ask(inputs: str) -> httpx.Response:
            return httpx.post(url, json={"inputs": inputs}, trust_env=False, timeout=30)

        assert ask("a").json() == {"echo": "A"}
        (worker,) = children(host.process.pid)
        lost = pool.submit(ask, "until:/never")
        until(lambda: lines(busy))
        os.kill(worker, signal.SIGKILL)
        assert isinstance(lost.exception(20), httpx.TransportError)
        assert ask("b").json() == {"echo": "B"}  # the listener lives, so the request waits for the new worker
        (replacement,) = children(host.process.pid)
        assert replacement != worker
        assert host.process.poll() is None


def test_a_killed_runner_is_told_at_once(bundle: Path, tmp_path: Path) -> None:
    busy = tmp_path / "busy"
    with (
        served(bundle, tmp_path, STUB_BUSY=str(busy)) as server,
        Client(f"{HOST}:{server.grpc_port}") as client,
        ThreadPoolExecutor() as pool,
    ):
        assert client.query({"inputs": "a"}) == {"echo": "A"}
        asked = pool.submit(client.query, {"inputs": "until:/never"}, 30)
        streamed = pool.submit(lambda: list(client.stream({"inputs": "a until:/never"}, 30)))
        over_http = pool.submit(server.score, "until:/never", 30)
        until(lambda: lines(busy) == 3)
        server.process.kill()
        began = time.monotonic()
        for call in (asked, streamed):
            error = call.exception(20)
            assert isinstance(error, RunnerFailed), error
            assert error.message == f"No runner answers at {HOST}:{server.grpc_port}."
            assert error.hint == "Start one with `mii-azure serve BUNDLE`."
        assert isinstance(over_http.exception(20), httpx.TransportError)
        assert not client.ready()
        assert time.monotonic() - began < 15


def test_a_request_that_outlasts_the_drain_is_told(bundle: Path, tmp_path: Path) -> None:
    busy = tmp_path / "busy"
    with (
        served(bundle, tmp_path, "--drain-seconds", "0.5", STUB_BUSY=str(busy)) as server,
        Client(f"{HOST}:{server.grpc_port}") as client,
        ThreadPoolExecutor() as pool,
    ):
        asked = pool.submit(client.query, {"inputs": "until:/never"}, 20)
        until(lambda: lines(busy))
        server.process.terminate()
        error = asked.exception(20)
        assert isinstance(error, RunnerFailed), error
        assert server.process.wait(10) == 1
