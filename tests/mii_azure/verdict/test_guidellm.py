"""GuideLLM's form of a sweep: its fields with its units. Its own models read the same in `test_its_models_read_it`."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mii_azure.verdict.guidellm import FILE, export, exported
from mii_azure.verdict.sweep import Distribution, Point, Sweep, knee


def spread(*values: float) -> Distribution:
    found = Distribution.of(values)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def swept() -> Sweep:
    shared = {
        "began": datetime(2026, 11, 1, tzinfo=UTC),
        "elapsed_s": 2.0,
        "latency_ms": spread(100, 200, 300, 400),
        "prompt_tokens": spread(10, 10, 10, 10),
        "answer_tokens": spread(16, 16, 20, 20),
        "first_token_ms": spread(30, 30, 50, 50),
        "token_ms": spread(5, 5, 10, 10),
        "requests_per_s": 2.0,
        "tokens_per_s": 36.0,
    }
    closed = Point(target="http", loop="closed", load=4, failed=1, **shared)
    silent = dict.fromkeys(("tokens_per_s", "prompt_tokens", "answer_tokens", "first_token_ms", "token_ms"))
    opened = Point(target="url:http://a/v1", loop="open", load=2.5, failed=0, **{**shared, **silent})
    other = opened.model_copy(update={"loop": "closed", "load": 1})
    points = (closed, opened, other)
    knees = (knee(points, "http"), knee(points, "url:http://a/v1"))
    facts = {"bundle": "/b/chat", "bundle_hash": "f" * 64, "task": "conversational", "request": '{"inputs": "a"}'}
    return Sweep(**facts, environment={"device": "cpu"}, points=points, knees=knees)


def test_units_are_guidellms(swept: Sweep) -> None:
    told = exported(swept, "http")
    (one,) = told["benchmarks"]
    metrics = one["metrics"]
    assert (told["metadata"]["version"], one["type_"]) == (2, "generative_benchmark")
    assert one["config"]["strategy"] == {"type_": "concurrent", "streams": 4}
    assert metrics["request_totals"] == {"successful": 4, "incomplete": 0, "errored": 1, "total": 5}
    latency = metrics["request_latency"]["successful"]
    assert (latency["mean"], latency["max"], latency["count"]) == (pytest.approx(0.25), pytest.approx(0.4), 4)
    assert latency["percentiles"]["p50"] == latency["median"] == pytest.approx(0.25)
    assert latency["variance"] == pytest.approx(latency["std_dev"] ** 2)
    assert metrics["time_to_first_token_ms"]["total"]["mean"] == 40
    assert metrics["total_token_count"]["successful"]["max"] == 30
    assert metrics["request_concurrency"]["successful"]["mean"] == pytest.approx(0.5)
    assert metrics["tokens_per_second"]["successful"]["mean"] == pytest.approx(56)
    assert metrics["request_latency"]["errored"]["count"] == 0
    assert (one["duration"], one["end_time"] - one["start_time"]) == (2.0, 2.0)


def test_a_target_has_a_report_of_all_its_loads(swept: Sweep, tmp_path: Path) -> None:
    files = export(swept, tmp_path)
    assert [file.relative_to(tmp_path) for file in files] == [Path("http") / FILE, Path("url-http-a-v1") / FILE]
    read = json.loads(files[1].read_text("utf-8"))
    assert [each["config"]["strategy"]["type_"] for each in read["benchmarks"]] == ["poisson", "concurrent"]
    assert read["benchmarks"][0]["metrics"]["output_token_count"]["successful"]["count"] == 0


def test_its_models_read_it(swept: Sweep, tmp_path: Path) -> None:
    """Runs where guidellm is installed; 0.8.1 read it."""
    reports = pytest.importorskip("guidellm.benchmark.schemas.report")
    for file in export(swept, tmp_path):
        told = json.loads(file.read_text("utf-8"))
        report = reports.GenerativeBenchmarksReport.load_file(file)
        assert len(report.benchmarks) == len(told["benchmarks"])
        for ours, theirs in zip(told["benchmarks"], report.benchmarks, strict=True):
            assert set(ours["metrics"]) == theirs.metrics.model_fields_set
            latency = theirs.metrics.request_latency.successful
            assert latency.percentiles.p99 == ours["metrics"]["request_latency"]["successful"]["percentiles"]["p99"]
            assert theirs.duration == pytest.approx(ours["duration"])
