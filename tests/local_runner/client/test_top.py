"""`mii-azure top` against a running stub, and its arithmetic."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from rich.console import Console

from local_runner.client.top import Source, table
from local_runner.process.launch import LOOPBACK, Runner
from mii_azure.errors import RunnerFailed

pytestmark = pytest.mark.usefixtures("forked")

DOCS = Path(__file__).parents[3] / "docs"


def shown(*arguments: dict[str, float] | float) -> str:
    text = io.StringIO()
    Console(file=text, width=100).print(table(*arguments))  # type: ignore[arg-type]
    return text.getvalue()


def test_once_shows_totals(runner: Runner) -> None:
    httpx.post(f"http://{LOOPBACK}:{runner.http_port}/score", json={"inputs": "a"}, trust_env=False)
    command = [sys.executable, "-m", "mii_azure.cli.app", "top", f"{LOOPBACK}:{runner.http_port}", "--once"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert re.search(r"^phase +ready for \d+ s", done.stdout, re.MULTILINE)
    assert re.search(r"^by code .*200: [1-9]", done.stdout, re.MULTILINE)


def test_rates_and_means_are_of_what_grew() -> None:
    before = {
        "mii_azure_requests_total,200": 10.0,
        "mii_azure_stage_seconds_sum,forward": 1.0,
        "mii_azure_stage_seconds_count,forward": 10.0,
        "mii_azure_generated_tokens_total": 100.0,
    }
    now = {
        "mii_azure_requests_total,200": 30.0,
        "mii_azure_stage_seconds_sum,forward": 1.5,
        "mii_azure_stage_seconds_count,forward": 20.0,
        "mii_azure_generated_tokens_total": 500.0,
        "mii_azure_inter_token_latency_seconds_sum": 3.0,
        "mii_azure_inter_token_latency_seconds_count": 400.0,
        "mii_azure_kv_cache_tokens": 300.0,
        "mii_azure_kv_cache_capacity_tokens": 1200.0,
    }
    text = shown(now, before, 2.0)
    assert re.search(r"requests +10.0/s", text)
    assert re.search(r"forward ms, mean +50.00", text)
    assert re.search(r"tokens out +200.0/s", text)
    assert re.search(r"encode ms, mean +-", text)
    assert re.search(r"time per token ms, mean +7.50", text)
    assert re.search(r"KV cache, tokens +300 of 1,200 \(25.0%\)", text)
    assert "KV cache" not in shown(before)
    assert re.search(r"forward ms, mean +75.00", shown(now))


def test_an_address_where_nothing_answers() -> None:
    with pytest.raises(RunnerFailed, match="cannot be read"):
        Source(f"{LOOPBACK}:1", False, None, None).read()


def test_a_port_that_is_not_a_runners(runner: Runner) -> None:
    with pytest.raises(RunnerFailed, match="is no HTTP server's"):
        Source(f"{LOOPBACK}:{runner.grpc_port}", False, None, None).read()


@pytest.mark.parametrize("document", ["grafana.json", "serving.md"])
def test_documents_name_metrics_that_exist(document: str) -> None:
    from local_runner.replicas.metrics import ReplicaMetrics
    from local_runner.telemetry.metrics import Metrics
    from scoring.telemetry.statistics import Statistics

    statistics = Statistics()
    statistics.cache = {"kv_tokens": 3, "kv_capacity": 12}
    told = {"phase": "ready", "phase_seconds": 1.0, "waiting": 0, "active": 0, **statistics.to_dict()}
    metrics = Metrics(lambda: told)
    metrics.add(ReplicaMetrics(tuple))
    metrics.answered(200, 0.1)
    exposed = metrics.expose().decode()
    text = (DOCS / document).read_text(encoding="utf-8")
    if document.endswith(".json"):
        assert len({panel["id"] for panel in json.loads(text)["panels"]}) == 10
    named = set(re.findall(r"\bmii_azure_[a-z_]+[a-z]\b", text))
    assert len(named) >= 10
    assert [name for name in named if name not in exposed] == []
