"""`--replicas 2` over the stub bundle: routing, sessions, a replica that is killed, streams, the drain."""

import argparse
import asyncio
import contextlib
import http.client
import json
import os
import signal
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from local_runner.bundle.script import Answer
from local_runner.flags import serving
from local_runner.flags.flag import add
from local_runner.process.devices import gpus
from local_runner.process.launch import LOOPBACK, Runner
from local_runner.protos import scoring_pb2, scoring_pb2_grpc
from local_runner.replicas.local import framing, options, worker
from local_runner.replicas.metrics import merged
from mii_azure.errors import RunnerFailed
from scoring.errors import LoadError
from scoring.limits import cpus
from tests.local_runner.test_lifecycle import started
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("forked")

_PATIENCE_S = 30.0


@pytest.fixture(scope="module")
def runner(bundle: Path) -> Iterator[Runner]:
    with several(bundle) as started:
        yield started


@contextmanager
def several(bundle: Path, *more: str) -> Iterator[Runner]:
    with Runner(bundle, arguments=("--replicas", "2", "--sticky", "X-Session-Id", *more)) as started:
        wait_for(started, lambda told: told["replicas"]["ready"] == 2)
        yield started


def call(runner: Runner, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(LOOPBACK, runner.http_port, timeout=60)
    try:
        connection.request(method, path, json.dumps(body) if body is not None else None, headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def score(runner: Runner, text: str, **headers: str) -> tuple[int, Any]:
    return call(runner, "POST", "/score", {"inputs": text}, **headers)


def told_by(runner: Runner) -> Any:
    return call(runner, "GET", "/readyz")[1]


def wait_for(runner: Runner, fits: Any) -> Any:
    return until(lambda: told if fits(told := told_by(runner)) else None, _PATIENCE_S)


def loads(told: Any) -> list[int]:
    return [each["in_flight"] for each in told["replica"]]


@contextmanager
def held(runner: Runner, folder: Path, count: int, **headers: str) -> Iterator[list[Future[tuple[int, Any]]]]:
    """`count` requests that wait until the block ends, sent one after the other."""
    gate = folder / f"gate-{time.monotonic_ns()}"
    with ThreadPoolExecutor(count) as pool:
        before = sum(loads(told_by(runner)))
        sent = []
        for index in range(count):
            sent.append(pool.submit(score, runner, f"until:{gate}", **headers))
            wait_for(runner, lambda told, wanted=before + index + 1: sum(loads(told)) >= wanted)
        try:
            yield sent
        finally:
            gate.touch()


def test_the_least_loaded_replica_gets_the_request(runner: Runner, tmp_path: Path) -> None:
    with held(runner, tmp_path, 4) as sent:
        assert loads(told_by(runner)) == [2, 2]
    assert [future.result()[0] for future in sent] == [200] * 4
    assert loads(wait_for(runner, lambda told: sum(loads(told)) == 0)) == [0, 0]


def test_a_session_stays_on_its_replica(runner: Runner, tmp_path: Path) -> None:
    with held(runner, tmp_path, 3, **{"x-session-id": "one"}):
        assert sorted(loads(told_by(runner))) == [0, 3]
        first = loads(told_by(runner)).index(3)
    other = next(name for name in map(str, range(100)) if _index(runner, tmp_path, name) != first)
    assert _index(runner, tmp_path, other) != first


def _index(runner: Runner, folder: Path, session: str) -> int:
    with held(runner, folder, 1, **{"x-session-id": session}):
        return loads(told_by(runner)).index(1)


def test_a_session_is_named_in_grpc_metadata_too(runner: Runner, tmp_path: Path) -> None:
    index, gate = _index(runner, tmp_path, "a session"), tmp_path / "gate"
    with grpc.insecure_channel(f"{LOOPBACK}:{runner.grpc_port}") as channel:
        request = scoring_pb2.ScoreRequest(json=json.dumps({"inputs": f"until:{gate}"}))
        score_ = scoring_pb2_grpc.ScoringStub(channel).Score
        calls = [score_.future(request, timeout=30, metadata=(("x-session-id", "a session"),)) for _ in range(2)]
        wait_for(runner, lambda told: loads(told)[index] == 2)
        gate.touch()
        assert [json.loads(each.result().json)["echo"] for each in calls] == [f"until:{gate}".upper()] * 2


def test_metadata_and_readiness_tell_each_replica(runner: Runner) -> None:
    told = call(runner, "POST", "/score", {"mii_azure": "metadata"})[1]
    assert [each["state"] for each in told["replicas"]] == ["ready", "ready"]
    assert len({each["pid"] for each in told["replicas"]}) == 2
    connection = http.client.HTTPConnection(LOOPBACK, runner.http_port, timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    assert 'mii_azure_replica_ready{replica="1"} 1.0' in text
    assert 'mii_azure_phase{phase="ready"} 1.0' in text


class Endless:
    """A host whose one answer never ends; it counts the pieces that were asked for."""

    def __init__(self) -> None:
        self.asked = 0
        self.closed = asyncio.Event()

    async def score(self, raw: str, headers: dict[str, str]) -> Answer:
        return Answer(200, {}, chunks=iter(()))

    async def chunks(self, answer: Answer) -> AsyncGenerator[bytes, None]:
        try:
            while True:
                self.asked += 1
                yield b"x" * 1000
        finally:
            self.closed.set()


async def test_a_slow_reader_holds_the_replica_back(tmp_path: Path) -> None:
    """Pieces that nobody takes are not asked for, and closing the connection ends the answer."""
    host, path = Endless(), str(tmp_path / "socket")
    async with await asyncio.start_unix_server(worker.ReplicaWorker(host).accept, path, limit=framing.BUFFER):
        connection = await framing.connect(path)
        await connection.send(framing.head({"op": "score", "headers": {}}), framing.frame(b"{}"))
        assert (await connection.receive_head())["stream"]
        before = -1
        while before != host.asked:
            before = host.asked
            await asyncio.sleep(0.2)
        assert host.asked < 2000
        for _ in range(5000):
            assert len(await connection.receive()) == 1000
        assert host.asked > before
        connection.close()
        await asyncio.wait_for(host.closed.wait(), 20)


def test_a_client_that_goes_away_frees_its_replica(runner: Runner, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    connection = http.client.HTTPConnection(LOOPBACK, runner.http_port, timeout=60)
    connection.request("POST", "/score", json.dumps({"inputs": f"a until:{gate} b", "stream": True}))
    response = connection.getresponse()
    assert response.readline().startswith(b"data: ")
    response.close()
    connection.close()
    wait_for(runner, lambda told: sum(loads(told)) == 0)
    gate.touch()


def test_a_replica_killed_under_load_loses_nothing_and_comes_back(bundle: Path, tmp_path: Path) -> None:
    with several(bundle) as runner, ThreadPoolExecutor(8) as pool:
        stop = tmp_path / "stop"

        def client(number: int) -> list[tuple[int, bool]]:
            seen, count = [], 0
            while not stop.exists():
                count += 1
                nonce = f"n{number}-{count}"
                status, body = score(runner, nonce)
                seen.append((status, status != 200 or body["echo"] == nonce.upper()))
            return seen

        clients = [pool.submit(client, number) for number in range(6)]
        told = wait_for(runner, lambda told: told["replica"][0]["in_flight"] > 0)
        os.kill(told["replica"][0]["pid"], signal.SIGKILL)
        told = wait_for(runner, lambda told: told["replica"][0]["restarts"] == 1 and told["replicas"]["ready"] == 2)
        stop.touch()
        seen = [each for future in clients for each in future.result()]
        assert {status for status, _ in seen} <= {200, 503}
        assert all(own for _, own in seen)
        assert sum(status == 200 for status, _ in seen) > len(seen) - 8
        assert told["replica"][1]["restarts"] == 0
        with held(runner, tmp_path, 2):
            assert loads(told_by(runner)) == [1, 1]


def test_what_a_killed_replica_held_is_asked_of_another_or_told(bundle: Path, tmp_path: Path) -> None:
    with several(bundle) as runner, ThreadPoolExecutor(4) as pool:
        gate = tmp_path / "gate"
        with held(runner, tmp_path, 1, **{"x-session-id": "s"}) as sent:
            index = loads(told_by(runner)).index(1)
            begun = threading.Event()
            stream = pool.submit(_stream, runner, f"a until:{gate} b", {"x-session-id": "s"}, begun)
            silent = pool.submit(_stream, runner, f"until:{gate} b", {"x-session-id": "s"}, threading.Event())
            told = wait_for(runner, lambda told: loads(told)[index] == 3)
            assert begun.wait(_PATIENCE_S)
            os.kill(told["replica"][index]["pid"], signal.SIGKILL)
            wait_for(runner, lambda told: loads(told)[1 - index] == 2)
        assert sent[0].result()[0] == 200
        assert b'"code": "replica_lost"' in stream.result().splitlines()[-2]
        gate.touch()
        assert silent.result().endswith(b'data: {"token": {"text": "B"}}\n\ndata: [DONE]\n\n')


def _stream(runner: Runner, text: str, headers: dict[str, str], begun: threading.Event) -> bytes:
    """All of an answer in pieces; `begun` is set with its first."""
    connection = http.client.HTTPConnection(LOOPBACK, runner.http_port, timeout=60)
    try:
        connection.request("POST", "/score", json.dumps({"inputs": text, "stream": True}), headers)
        response = connection.getresponse()
        first = response.readline()
        begun.set()
        return first + response.read()
    finally:
        connection.close()


def test_with_no_replica_left_requests_are_told_why_and_later_answered(bundle: Path, tmp_path: Path) -> None:
    with several(bundle) as runner:
        for each in told_by(runner)["replica"]:
            os.kill(each["pid"], signal.SIGKILL)
        told = wait_for(runner, lambda told: told["replicas"]["ready"] == 0)
        assert told["error"]["code"] == "not_ready"
        status, body = score(runner, "a")
        assert (status, body["error"]["code"]) in ((503, "not_ready"), (503, "replica_lost"))
        wait_for(runner, lambda told: told["replicas"]["ready"] == 2)
        assert score(runner, "a")[0] == 200


def test_sigterm_finishes_what_was_taken_and_ends_the_replicas(bundle: Path, tmp_path: Path) -> None:
    with several(bundle, "--drain-seconds", "20") as runner:
        pids = [each["pid"] for each in told_by(runner)["replica"]]
        with held(runner, tmp_path, 2) as sent:
            runner.process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
        assert [future.result()[0] for future in sent] == [200, 200]
        assert runner.process.wait(20) == 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_sigterm_while_they_load_ends_all(bundle: Path, tmp_path: Path) -> None:
    with started(bundle, tmp_path, "--replicas", "2", STUB_LOAD=f"until:{tmp_path / 'never'}") as runner:
        port = runner.wait_for("loading")["http_port"]
        pids: list[int] = []
        deadline = time.monotonic() + _PATIENCE_S
        while not pids or 0 in pids:
            assert time.monotonic() < deadline
            with contextlib.suppress(httpx.TransportError):
                told = httpx.get(f"http://{LOOPBACK}:{port}/readyz", trust_env=False).json()
                pids = [each["pid"] for each in told["replica"]]
        runner.process.send_signal(signal.SIGTERM)
        assert runner.ended()[0] == 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_replicas_end_with_a_front_that_is_killed(bundle: Path) -> None:
    with several(bundle) as runner:
        pids = [each["pid"] for each in told_by(runner)["replica"]]
        runner.process.kill()
        runner.process.wait()
        until(lambda: not any(_runs(pid) for pid in pids), _PATIENCE_S)


def _runs(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def test_a_model_that_does_not_load_is_told_as_by_one_process(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUB_LOAD", "fail")
    with pytest.raises(LoadError, match="The stub does not load"), several(bundle):
        pass


def test_too_few_gpus_are_told(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(RunnerFailed, match="need 2 GPUs; 1 are visible"), several(bundle):
        pass


def test_each_replica_has_its_gpus_or_its_share_of_the_cores() -> None:
    visible = gpus({"CUDA_VISIBLE_DEVICES": "3,GPU-a,5,6"})
    parts = options.shares(2, 2, visible)
    assert parts == [{"CUDA_VISIBLE_DEVICES": "3,GPU-a"}, {"CUDA_VISIBLE_DEVICES": "5,6"}]
    assert gpus({"CUDA_VISIBLE_DEVICES": ""}) == []
    assert options.shares(2, 1, []) == [{cpus.SHARERS: "2"}] * 2


def test_gpus_are_counted_by_their_device_files(tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert gpus({}, tmp_path) == ["0", "1"]


@pytest.mark.parametrize(
    "arguments",
    [["--replicas", "0"], ["--replicas", "65"], ["--sticky", "a b"], ["--replicas", "2", "--engine", "ray"]],
)
def test_options_that_make_no_sense_are_usage_errors(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser()
    add(parser, (*serving.PEOPLE, *serving.PROGRAMS, *serving.LOCAL))
    with pytest.raises(SystemExit):
        options.read(parser, parser.parse_args(arguments))


def test_sums_add_numbers_and_buckets() -> None:
    one = {"a": 1, "h": {"buckets": [["0.1", 1], ["+Inf", 3]], "sum": 0.5}, "phase": "ready", "flag": True}
    two = {"a": 2, "h": {"buckets": [["0.1", 2], ["+Inf", 2]], "sum": 1.0}, "phase": "ready", "b": 4}
    expected = {"a": 3, "h": {"buckets": [["0.1", 3], ["+Inf", 5]], "sum": 1.5}, "phase": "ready", "flag": True, "b": 4}
    assert merged([one, two]) == expected
    assert merged([]) == {}
