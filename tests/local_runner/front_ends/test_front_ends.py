"""Front ends in processes of their own: every answer, count and end is what one process gives."""

import contextlib
import json
import os
import re
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
import pytest

from local_runner.errors import PortInUse
from local_runner.front_ends.number import number_of
from local_runner.front_ends.pool import reserve
from local_runner.http.server import listen
from local_runner.process.launch import LOOPBACK, Runner
from local_runner.protos import inference_pb2, inference_pb2_grpc, scoring_pb2, scoring_pb2_grpc
from scoring.errors import MiiAzureError
from tests.fork_server import STAND_BY
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("forked")

COUNT = 2
PROMPT = "Once upon a time there was a king"
#: What differs from one answer to the next: ids and times.
VARIES = re.compile(rb'"(id|created|phase_seconds|seconds)": ?("[^"]*"|[0-9.]+)')

Real = Callable[[str], Runner]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("settings") / "settings.json"
    path.write_text("{}")
    return path


@pytest.fixture(scope="module")
def alone(real: Real) -> Runner:
    return real("gpt2")


@pytest.fixture(scope="module")
def server(alone: Runner, settings: Path) -> Iterator[Runner]:
    arguments = ("--front-ends", str(COUNT), "--settings-file", str(settings), "--drain-seconds", "20")
    with Runner(alone.bundle, arguments=arguments) as started:
        yield started


def front_ends(server: Runner) -> list[psutil.Process]:
    return [each for each in psutil.Process(server.process.pid).children() if each.name() != STAND_BY]


def post(server: Runner, path: str, body: Any) -> tuple[int, bytes]:
    raw = body if isinstance(body, str) else json.dumps(body)
    answer = httpx.post(f"http://{LOOPBACK}:{server.http_port}{path}", content=raw, timeout=60)
    return answer.status_code, VARIES.sub(rb'"\1":0', answer.content)


def generate(more: dict[str, Any] | None = None, **rest: Any) -> dict[str, Any]:
    return {"inputs": PROMPT, "parameters": {"max_new_tokens": 12, **(more or {})}, **rest}


OPENAI = {"model": "gpt2", "prompt": PROMPT, "max_tokens": 9, "temperature": 0}
POSTS: tuple[tuple[str, Any], ...] = (
    ("/score", generate()),
    ("/score", generate(stream=True)),
    ("/score", generate({"return_details": True, "top_n_tokens": 2}, stream=True)),
    ("/score", generate({"stop": ["e"]}, stream=True)),
    ("/score", generate({"do_sample": True, "seed": 5, "num_return_sequences": 2}, options={"usage": True})),
    ("/score", generate({"num_beams": 2}, stream=True)),
    ("/score", generate({"max_new_tokens": 1 << 30})),
    ("/score", "{"),
    ("/v1/completions", OPENAI),
    ("/v1/completions", {**OPENAI, "stream": True, "logprobs": 2, "stream_options": {"include_usage": True}}),
    ("/v1/completions", {**OPENAI, "stream": True, "stop": ["e", "a"]}),
    ("/v1/completions", {**OPENAI, "max_tokens": -1}),
    ("/v2/models/gpt2/infer", {"inputs": [{"name": "inputs", "shape": [1], "datatype": "BYTES", "data": [PROMPT]}]}),
    ("/v2/models/gpt2/infer", {"inputs": []}),
    ("/nowhere", {}),
)


@pytest.mark.parametrize(
    "number", range(len(POSTS)), ids=[f"{path} {number}" for number, (path, _) in enumerate(POSTS)]
)
def test_http_answers_as_one_process_does(alone: Runner, server: Runner, number: int) -> None:
    path, body = POSTS[number]
    assert post(server, path, body) == post(alone, path, body)


def called(server: Runner, method: str, raw: str) -> list[str]:
    """Replies of a gRPC call, or its status and message."""
    with grpc.insecure_channel(f"{LOOPBACK}:{server.grpc_port}") as channel:
        stub = scoring_pb2_grpc.ScoringStub(channel)
        try:
            if method == "infer":
                element = inference_pb2.InferTensorContents(bytes_contents=[PROMPT.encode()])
                request = inference_pb2.ModelInferRequest(model_name="gpt2")
                request.inputs.add(name="inputs", datatype="BYTES", shape=[1], contents=element)
                infer = inference_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer
                return [str(infer(request, timeout=60))]
            request = scoring_pb2.ScoreRequest(json=raw)
            if method == "stream":
                return [event.json for event in stub.ScoreStream(request, timeout=60)]
            return [stub.Score(request, timeout=60).json]
        except grpc.RpcError as error:
            return [str(error.code()), str(error.details())]


@pytest.mark.parametrize(
    ("method", "body"),
    [
        ("whole", generate()),
        ("whole", generate(stream=True)),
        ("stream", generate(stream=True)),
        ("stream", generate({"return_details": True, "top_n_tokens": 2}, stream=True)),
        ("whole", {"inputs": 3}),
        ("infer", {}),
    ],
)
def test_grpc_answers_as_one_process_does(alone: Runner, server: Runner, method: str, body: dict[str, Any]) -> None:
    raw = json.dumps(body)
    assert called(server, method, raw) == called(alone, method, raw)


def test_metadata_is_the_engines(alone: Runner, server: Runner) -> None:
    ours, theirs = (json.loads(post(each, "/score", {"mii_azure": "metadata"})[1]) for each in (server, alone))
    assert ours.keys() == theirs.keys() and ours["passes"] == theirs["passes"]
    assert ours["statistics"].keys() == theirs["statistics"].keys()


def counted(server: Runner) -> dict[str, float]:
    text = httpx.get(f"http://{LOOPBACK}:{server.http_port}/metrics").text
    found = re.findall(r"^(mii_azure_\S+) ([0-9.e+]+)$", text, re.MULTILINE)
    return {name: float(value) for name, value in found}


def test_metrics_count_what_all_have_answered(server: Runner) -> None:
    """Each request goes over a connection of its own, to whichever front end takes it."""
    before = counted(server)
    for stream in (False, True) * 6:
        assert post(server, "/score", generate(stream=stream))[0] == 200
        after = counted(server)
    told = {name: after[name] - before.get(name, 0) for name in after}
    assert told['mii_azure_requests_total{code="200"}'] == 12
    assert told["mii_azure_first_token_seconds_count"] == 6
    assert told["mii_azure_generated_tokens_total"] == 12 * 12
    stage = 'mii_azure_stage_seconds_count{stage="%s"}'
    assert (told[stage % "parse"], told[stage % "encode"], told[stage % "decode"]) == (12, 12, 6)
    assert after["mii_azure_in_flight"] == 0


class Open:
    """A stream over a connection of its own; `owner` is the front end that answers it."""

    def __init__(self, server: Runner, tokens: int) -> None:
        raw = json.dumps(generate({"max_new_tokens": tokens, "min_new_tokens": tokens}, stream=True))
        self.socket = socket.create_connection((LOOPBACK, server.http_port))
        self.socket.settimeout(60)
        head = f"POST /score HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(raw)}\r\n\r\n"
        self.socket.sendall((head + raw).encode())
        self.text = self.socket.recv(1 << 16)
        port = self.socket.getsockname()[1]
        self.owner = next(
            each
            for each in front_ends(server)
            if any(own.raddr and own.raddr.port == port for own in each.net_connections("tcp"))
        )

    def rest(self) -> bytes:
        try:
            while data := self.socket.recv(1 << 16):
                self.text += data
        except ConnectionError:
            pass
        self.socket.close()
        return self.text


def active(server: Runner) -> float:
    return counted(server)["mii_azure_active_rows"]


def test_a_front_end_that_is_killed_takes_its_own_requests_along_and_no_others(server: Runner) -> None:
    streams: list[Open] = []
    while len({each.owner.pid for each in streams}) < COUNT:
        streams.append(Open(server, 100))
        streams[-1].socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        assert len(streams) < 64
    killed = streams[-1].owner
    known = {each.pid for each in front_ends(server)}
    killed.kill()
    # A stream whose end had been sent by then is whole; what matters is that no other is cut.
    ends = {b"[DONE]" in each.rest() for each in streams if each.owner.pid != killed.pid}
    assert ends == {True}
    for each in streams:
        if each.owner.pid == killed.pid:
            each.rest()
    until(lambda: len(front_ends(server)) == COUNT and {each.pid for each in front_ends(server)} != known)
    until(lambda: active(server) == 0)
    assert counted(server)["mii_azure_in_flight"] == 0
    assert post(server, "/score", generate())[0] == 200


def test_a_client_that_goes_frees_its_slot(server: Runner) -> None:
    before = counted(server)["mii_azure_generated_tokens_total"]
    streams = [Open(server, 100) for _ in range(6)]
    for stream in streams:
        stream.socket.close()
    until(lambda: active(server) == 0 and counted(server)["mii_azure_in_flight"] == 0)
    assert counted(server)["mii_azure_generated_tokens_total"] - before < 100 * len(streams)  # none was left to run on


def test_settings_are_read_again_by_all(server: Runner, settings: Path) -> None:
    try:
        settings.write_text(json.dumps({"request_timeout_s": 0.001}))
        server.process.send_signal(signal.SIGHUP)
        until(lambda: "reloaded: request_timeout_s 0.001" in server.log.read_text())
        assert {post(server, "/score", generate())[0] for _ in range(8)} == {504}
    finally:
        settings.write_text("{}")
        server.process.send_signal(signal.SIGHUP)
        until(lambda: "reloaded: the settings of" in server.log.read_text())
    assert {post(server, "/score", generate())[0] for _ in range(8)} == {200}


def test_their_number_is_what_pays(bundle: Path, own_bundle: Callable[..., Path], tmp_path: Path) -> None:
    code = own_bundle(name="gen", task="text-generation") / "code"
    gpu, none = {"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": ""}
    assert [number_of(None, code, gpu, cores) for cores in (2, 8, 16, 40)] == [0, 2, 5, 8]
    assert number_of(None, code, none, 40) == 0 and number_of(3, code, none, 2) == 3
    assert number_of(None, bundle / "code", gpu, 40) == 0
    images = own_bundle(name="images", task="text-to-image") / "code"
    assert number_of(0, images) == 0
    with pytest.raises(MiiAzureError, match="Leave out --front-ends"):
        number_of(2, images)


def test_their_ports_are_shared_by_no_other_server() -> None:
    with contextlib.closing(reserve(LOOPBACK, 0)) as reserved:
        port = reserved.getsockname()[1]
        with listen(LOOPBACK, port, shared=True), listen(LOOPBACK, port, shared=True):
            with pytest.raises(PortInUse):
                reserve(LOOPBACK, port)
            with pytest.raises(PortInUse):
                listen(LOOPBACK, port)


def test_a_signal_drains(alone: Runner) -> None:
    with Runner(alone.bundle, arguments=("--front-ends", "1", "--drain-seconds", "20")) as server:
        streams = [Open(server, 100) for _ in range(4)]
        server.process.send_signal(signal.SIGTERM)
        assert all(b"[DONE]" in each.rest() for each in streams)
        assert server.process.wait(30) == 0


def test_an_engine_that_is_killed_takes_all_along(server: Runner) -> None:
    """The last test of this server."""
    processes = front_ends(server)
    stream = Open(server, 100)
    os.kill(server.process.pid, signal.SIGKILL)
    stream.rest()
    until(lambda: not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in processes))
    with pytest.raises(httpx.TransportError):
        post(server, "/score", generate())
