"""A full queue, and a signal while requests come in: whatever was taken is answered, whatever was not is refused."""

import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from local_runner.process.launch import Azmlinfsrv, Runner
from local_runner.protocol import errors
from local_runner.protos import inference_pb2, inference_pb2_grpc, scoring_pb2, scoring_pb2_grpc
from tests.scenarios.faults.conftest import HOST, lines, served, until

pytestmark = pytest.mark.usefixtures("forked")


def test_a_full_queue_is_429_on_every_protocol(
    own_bundle: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy, gate = tmp_path / "busy", tmp_path / "gate"
    monkeypatch.setenv("STUB_BUSY", str(busy))
    with (
        Runner(own_bundle(queue_size=2, max_batch_size=2)) as runner,
        httpx.Client(base_url=f"http://{HOST}:{runner.http_port}", trust_env=False, timeout=20) as http,
        grpc.insecure_channel(f"{HOST}:{runner.grpc_port}") as channel,
        ThreadPoolExecutor() as pool,
    ):
        held = [pool.submit(http.post, "/score", json={"inputs": f"until:{gate}"}) for _ in range(4)]
        until(lambda: lines(busy) == 4)
        score = {"path": "/score", "json": {"inputs": "a"}}
        infer = {"inputs": [{"name": "inputs", "datatype": "BYTES", "shape": [1], "data": ["a"]}]}
        for path, body in (("/score", score["json"]), ("/v2/models/echo/infer", infer)):
            refused = http.post(path, json=body)
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1"), refused.text
            assert "overloaded" in refused.text
        raw = scoring_pb2.ScoreRequest(json='{"inputs": "a"}')
        stub = scoring_pb2_grpc.ScoringStub(channel)
        tensor = inference_pb2.ModelInferRequest.InferInputTensor(name="inputs", datatype="BYTES", shape=[1])
        tensor.contents.bytes_contents.append(b"a")
        request = inference_pb2.ModelInferRequest(model_name="echo", inputs=[tensor])
        for call in (
            lambda: stub.Score(raw, timeout=20),
            lambda: list(stub.ScoreStream(raw, timeout=20)),
            lambda: inference_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=20),
        ):
            with pytest.raises(grpc.RpcError) as raised:
                call()
            trailing = dict(raised.value.trailing_metadata())
            assert (raised.value.code().name, trailing[errors.RETRY_KEY]) == ("RESOURCE_EXHAUSTED", "1")
        # What is held is unharmed, and with it the health of the server.
        assert http.get("/readyz").status_code == 200
        gate.touch()
        assert [call.result().status_code for call in held] == [200] * 4
        assert http.post("/score", json={"inputs": "a"}).json() == {"echo": "A"}


class Load:
    """Threads that ask one thing after the other until the server is gone, each on a connection of its own."""

    def __init__(self, ask: Callable[[], str], threads: int) -> None:
        self.outcomes: Counter[str] = Counter()
        self._ask = ask
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            outcome = self._ask()
            with self._lock:
                self.outcomes[outcome] += 1

    def end(self) -> Counter[str]:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive()
        return self.outcomes


def over_http(url: str, body: dict[str, Any]) -> Callable[[], str]:
    def ask() -> str:
        try:
            reply = httpx.post(url, json=body, trust_env=False, timeout=20, headers={"connection": "close"})
        except httpx.TransportError:
            time.sleep(0.02)
            return "no connection"
        if reply.status_code == 503:
            assert reply.json()["error"]["code"] == "not_ready", reply.text
        return str(reply.status_code)

    return ask


def over_grpc(channel: Any, body: str) -> Callable[[], str]:
    stub = scoring_pb2_grpc.ScoringStub(channel)

    def ask() -> str:
        try:
            stub.Score(scoring_pb2.ScoreRequest(json=body), timeout=20)
            return "200"
        except grpc.RpcError as error:
            time.sleep(0.02)
            return str(error.code().name)

    return ask


def test_a_signal_under_load_loses_nothing_that_was_taken(bundle: Path, tmp_path: Path) -> None:
    busy, gate, log = tmp_path / "busy", tmp_path / "gate", tmp_path / "log"
    gate.touch()
    held = tmp_path / "held"
    with (
        log.open("wb") as output,
        served(bundle, tmp_path, "--drain-seconds", "20", output=output, STUB_BUSY=str(busy)) as server,
        grpc.insecure_channel(f"{HOST}:{server.grpc_port}", [("grpc.enable_retries", 0)]) as channel,
        ThreadPoolExecutor() as pool,
    ):
        loads = [
            Load(over_http(f"{server.base}/score", {"inputs": f"until:{gate}"}), 4),
            Load(over_grpc(channel, f'{{"inputs": "until:{gate}"}}'), 4),
        ]
        slow = [pool.submit(server.score, f"until:{held}") for _ in range(4)]
        until(lambda: lines(busy) > 100)
        server.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        time.sleep(0.5)
        assert server.process.poll() is None  # it waits for those that are held
        held.touch()
        assert [call.result().json()["echo"] for call in slow] == [f"UNTIL:{held}".upper()] * 4
        code = server.process.wait(20)
        assert time.monotonic() - began < 10
        found = sum((load.end() for load in loads), Counter[str]())
    assert code == 0, log.read_text()
    assert "Traceback" not in log.read_text()
    # CANCELLED is gRPC's own word for a call that came in the moment of the stop and was given to nobody.
    assert set(found) <= {"200", "503", "UNAVAILABLE", "CANCELLED", "no connection"}, found
    assert found["200"] + len(slow) == lines(busy), found


def test_azures_server_does_the_same(
    own_bundle: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy, gate = tmp_path / "busy", tmp_path / "gate"
    gate.touch()
    monkeypatch.setenv("STUB_BUSY", str(busy))
    with Azmlinfsrv(own_bundle()) as host:
        load = Load(over_http(f"http://{HOST}:{host.port}/score", {"inputs": f"until:{gate}"}), 4)
        until(lambda: lines(busy) > 60)
        host.process.terminate()
        try:
            assert host.process.wait(30) == 0
        except subprocess.TimeoutExpired:
            pytest.fail("it did not end")
        finally:
            found = load.end()
    assert set(found) <= {"200", "no connection"}, found
    assert found["200"] == lines(busy), found
