"""Traces of real requests, as a collector on loopback receives them; and no OpenTelemetry where none is asked for."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

import mii_azure
from local_runner.process.launch import LOOPBACK, Runner
from local_runner.protos import scoring_pb2, scoring_pb2_grpc
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("forked")

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CALLER = f"00-{TRACE}-{PARENT}-01"
TEXT = "a sentence that nobody may find in a trace"
Span = dict[str, Any]


class Collector:
    """Takes what is posted to /v1/traces."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.resources: list[dict[str, Any]] = []
        self.text = ""
        self.keys: list[str | None] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.take(self.path, body, self.headers.get("x-key"))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer((LOOPBACK, 0), Handler)
        self.url = f"http://{LOOPBACK}:{self.server.server_port}"

    def take(self, path: str, body: bytes, key: str | None) -> None:
        assert path == "/v1/traces"
        json_format.Parse(body, ExportTraceServiceRequest())  # every field is one of the protocol's
        self.text += body.decode()
        self.keys.append(key)
        for group in json.loads(body)["resourceSpans"]:
            self.resources.append(plain(group["resource"]["attributes"]))
            for scoped in group["scopeSpans"]:
                self.spans += scoped["spans"]

    def trace(self, number: str, count: int) -> list[Span]:
        """The spans of a trace, once there are that many."""

        def found() -> list[Span]:
            return [span for span in self.spans if span["traceId"] == number]

        until(lambda: len(found()) >= count)
        return found()


def plain(attributes: list[dict[str, Any]]) -> dict[str, Any]:
    return {each["key"]: next(iter(each["value"].values())) for each in attributes}


@contextmanager
def traced(bundle: Path, **environment: str) -> Iterator[tuple[Runner, Collector]]:
    collector = Collector()
    threading.Thread(target=collector.server.serve_forever, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"OTEL_BSP_SCHEDULE_DELAY": "50", **environment}.items():
            patch.setenv(name, value)
        with Runner(bundle, arguments=("--otlp-endpoint", collector.url, "--drain-seconds", "2")) as runner:
            yield runner, collector
    collector.server.shutdown()
    collector.server.server_close()


@pytest.fixture(scope="module")
def served(tiny: Callable[[str, str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    model = str(tiny("gpt2", "text-generation"))
    folder = tmp_path_factory.mktemp("traced") / "writer"
    bundle = mii_azure.generate(task="text-generation", model=model, deployment_name="writer", output=folder)
    with traced(bundle, OTEL_EXPORTER_OTLP_HEADERS="x-key=a%20secret", OTEL_RESOURCE_ATTRIBUTES="site=here") as both:
        yield both


def ask(runner: Runner, body: dict[str, Any], **headers: str) -> httpx.Response:
    return httpx.post(f"http://{LOOPBACK}:{runner.http_port}/score", json=body, headers=headers, timeout=60)


def check_tree(spans: list[Span], parent: str) -> Span:
    """One request under `parent`, its stages inside it in order; returns the request's span."""
    [request] = [span for span in spans if span["name"] == "score"]
    stages = sorted((span for span in spans if span is not request), key=lambda span: int(span["startTimeUnixNano"]))
    assert request["parentSpanId"] == parent
    assert request["kind"] == 2  # SERVER
    assert [stage["name"] for stage in stages][:4] == ["parse", "encode", "queue", "forward"]
    assert {stage["parentSpanId"] for stage in stages} == {request["spanId"]}
    for one, next_one in pairwise(stages):
        assert int(one["endTimeUnixNano"]) <= int(next_one["startTimeUnixNano"])
    for stage in stages:
        assert int(request["startTimeUnixNano"]) <= int(stage["startTimeUnixNano"])
        assert int(stage["endTimeUnixNano"]) <= int(request["endTimeUnixNano"])
    return request


def test_a_request_over_http_is_a_child_of_its_callers_span(served: Any) -> None:
    runner, collector = served
    body = {"inputs": TEXT, "parameters": {"max_new_tokens": 4}}
    assert ask(runner, body, traceparent=CALLER, **{"x-request-id": "seven"}).status_code == 200
    request = check_tree(collector.trace(TRACE, 6), PARENT)
    told = plain(request["attributes"])
    assert told["mii_azure.request_id"] == "seven"
    assert told["http.response.status_code"] == "200"
    assert collector.resources[0]["service.name"] == "writer"
    assert collector.resources[0]["site"] == "here"
    assert set(collector.keys) == {"a secret"}
    assert TEXT not in collector.text


def test_a_call_over_grpc_takes_it_from_metadata(served: Any) -> None:
    runner, collector = served
    trace = "5" + TRACE[1:]
    with grpc.insecure_channel(f"{LOOPBACK}:{runner.grpc_port}") as channel:
        stub = scoring_pb2_grpc.ScoringStub(channel)
        request = scoring_pb2.ScoreRequest(json=json.dumps({"inputs": TEXT, "parameters": {"max_new_tokens": 4}}))
        stub.Score(request, metadata=(("traceparent", CALLER.replace(TRACE, trace)),), timeout=60)
        check_tree(collector.trace(trace, 6), PARENT)


def test_a_streams_span_lasts_to_its_end(served: Any) -> None:
    runner, collector = served
    trace = "6" + TRACE[1:]
    body = {"inputs": TEXT, "parameters": {"max_new_tokens": 12}, "stream": True}
    assert ask(runner, body, traceparent=CALLER.replace(TRACE, trace)).text.endswith("data: [DONE]\n\n")
    request = check_tree(collector.trace(trace, 5), PARENT)
    [first] = request["events"]
    assert first["name"] == "first event"
    assert int(first["timeUnixNano"]) < int(request["endTimeUnixNano"])


def test_a_refusal_says_its_status_and_a_caller_that_does_not_sample_is_left_alone(served: Any) -> None:
    runner, collector = served
    trace, silent = "7" + TRACE[1:], "8" + TRACE[1:]
    assert ask(runner, {"inputs": 1}, traceparent=f"00-{silent}-{PARENT}-00").status_code == 400
    assert ask(runner, {"inputs": 1}, traceparent=CALLER.replace(TRACE, trace)).status_code == 400
    spans = collector.trace(trace, 2)
    assert (
        plain(next(span for span in spans if span["name"] == "score")["attributes"])["http.response.status_code"]
        == "400"
    )
    assert not [span for span in collector.spans if span["traceId"] == silent]


def test_nothing_is_imported_where_no_traces_are_asked_for() -> None:
    code = (
        "import sys\n"
        "import local_runner.host.host; from local_runner.telemetry import tracing\n"
        "assert tracing.of_environment('any') is None\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={})
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318"}, "is no address for traces"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "over HTTP"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_BSP_MAX_QUEUE_SIZE": "0"}, "max_queue_size must be"),
    ],
)
def test_an_address_that_is_none_is_refused(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], says: str
) -> None:
    from local_runner.errors import RunnerFailed
    from local_runner.telemetry import tracing

    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RunnerFailed, match=says):
        tracing.of_environment("any")
