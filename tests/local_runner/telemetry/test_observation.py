"""What a runner tells of itself: metrics, phases, and logs that name requests but never prompts."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

import mii_azure
from local_runner.process.launch import LOOPBACK, Runner
from local_runner.protos import scoring_pb2, scoring_pb2_grpc

pytestmark = pytest.mark.usefixtures("forked")

SECRET = "the quick brown fox"
BODY = {"inputs": SECRET, "parameters": {"max_new_tokens": 5, "min_new_tokens": 5}}


@pytest.fixture(scope="module")
def runner(tiny: Callable[[str, str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    bundle = mii_azure.generate(
        task="text-generation",
        model=str(tiny("gpt2", "text-generation")),
        deployment_name="told",
        output=tmp_path_factory.mktemp("told") / "bundle",
    )
    with Runner(bundle, arguments=("--drain-seconds", "1", "--log-format", "json")) as started:
        yield started


@pytest.fixture
def http(runner: Runner) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://{LOOPBACK}:{runner.http_port}", trust_env=False, timeout=60) as client:
        yield client


def scrape(http: httpx.Client) -> dict[str, float]:
    """Samples by name and labels."""
    answer = http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return {
        sample.name + "".join(f",{value}" for _, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def lines(runner: Runner) -> list[dict[str, Any]]:
    return [json.loads(line) for line in runner.log.read_text().splitlines()]


def test_metrics_count_what_was_done(http: httpx.Client) -> None:
    before = scrape(http)
    assert http.post("/score", json=BODY).status_code == 200
    assert http.post("/score", json={**BODY, "stream": True}).status_code == 200
    assert http.post("/score", json={"inputs": 1}).status_code == 400
    after = scrape(http)

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0.0)

    assert (grown("mii_azure_requests_total,200"), grown("mii_azure_requests_total,400")) == (2, 1)
    assert grown("mii_azure_request_seconds_count") == 3
    assert grown("mii_azure_first_token_seconds_count") == 1
    assert grown("mii_azure_generated_tokens_total") == 10
    assert grown("mii_azure_time_to_first_token_seconds_count") == 2
    assert grown("mii_azure_inter_token_latency_seconds_count") == 2 * 4
    assert 0 < grown("mii_azure_inter_token_latency_seconds_sum") < grown("mii_azure_request_seconds_sum") + 60
    assert grown("mii_azure_prompt_tokens_total") > 0
    assert grown("mii_azure_stage_seconds_count,parse") == 3
    assert grown("mii_azure_stage_seconds_count,queue") == 2
    assert grown("mii_azure_stage_seconds_count,forward") > 0
    assert grown("mii_azure_stage_seconds_sum,forward") > 0
    assert grown("mii_azure_batch_rows_count") == grown("mii_azure_stage_seconds_count,forward")
    assert after["mii_azure_queue_rows"] == after["mii_azure_active_rows"] == after["mii_azure_in_flight"] == 0
    phases = {name: value for name, value in after.items() if name.startswith("mii_azure_phase,")}
    assert [name for name, value in phases.items() if value] == ["mii_azure_phase,ready"]


def test_phases_are_logged_in_their_order(runner: Runner) -> None:
    entered = [line["message"].rsplit("; now ", 1)[1] for line in lines(runner) if "; now " in line["message"]]
    assert entered == ["loading", "optimising", "warming", "ready"]


@pytest.mark.parametrize("sent", ["my-id-7", "", "two words", "x" * 200])
def test_http_echoes_the_requests_id_and_logs_it(http: httpx.Client, runner: Runner, sent: str) -> None:
    answer = http.post("/score", json=BODY, headers={"x-request-id": sent} if sent else {})
    number = answer.headers["x-request-id"]
    assert (number == sent) is (sent == "my-id-7")
    told = [line for line in lines(runner) if line.get("request_id") == number]
    assert [(line["message"], line["code"]) for line in told if "code" in line] == [("answered", 200)]


def test_grpc_echoes_it_too(runner: Runner) -> None:
    with grpc.insecure_channel(f"{LOOPBACK}:{runner.grpc_port}") as channel:
        score = scoring_pb2_grpc.ScoringStub(channel).Score
        for body, code in ((json.dumps(BODY), 200), ("{", 400)):
            call = score.future(scoring_pb2.ScoreRequest(json=body), metadata=(("x-request-id", f"id-{code}"),))
            call.exception()
            assert dict(call.trailing_metadata())["x-request-id"] == f"id-{code}"
            assert [line["code"] for line in lines(runner) if line.get("request_id") == f"id-{code}"] == [code]


def test_no_prompt_is_logged(http: httpx.Client, runner: Runner) -> None:
    for body in (BODY, {**BODY, "parameters": {"max_new_tokens": -1}}, {"inputs": {SECRET: 1}}, {SECRET: 1}):
        http.post("/score", json=body)
        http.post("/v1/completions", json={"prompt": SECRET, **({} if body is BODY else body)})
    assert SECRET not in runner.log.read_text()
