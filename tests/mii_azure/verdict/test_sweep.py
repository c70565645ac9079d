"""Sweeps of load: loops that are closed and open, figures as numpy has them, the knee, AIPerf's form, a real one."""

import json
import threading
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import mii_azure
from local_runner.process.launch import Runner
from local_runner.targets import loops
from local_runner.targets.load import TargetReply
from local_runner.targets.loops import TimedReply, closed, opened, timed
from mii_azure.cli import bench_verbs
from mii_azure.cli.app import app
from mii_azure.errors import NotWritten, SpecError
from mii_azure.verdict.aiperf import FILE, export, exported
from mii_azure.verdict.sweep import Distribution, Point, Sweep, knee, sweep
from tests.conftest import Tiny


def point(load: float, rate: float, latency: float, loop: str = "closed", target: str = "http") -> Point:
    spread = Distribution.of([latency])
    assert spread is not None
    values = {"target": target, "loop": loop, "load": load, "requests_per_s": rate, "latency_ms": spread}
    nothing = dict.fromkeys(("tokens_per_s", "first_token_ms", "token_ms", "prompt_tokens", "answer_tokens"))
    return Point(**values, **nothing, began=datetime.now(UTC), elapsed_s=1.0, failed=0)


def test_figures_are_numpys() -> None:
    values = [float(value) for value in np.random.default_rng(0).gamma(2.0, size=37)]
    found = Distribution.of(values)
    assert found is not None
    for number in (1, 5, 10, 25, 50, 75, 90, 95, 99):
        assert getattr(found, f"p{number}") == pytest.approx(np.percentile(values, number))
    assert (found.avg, found.std) == (pytest.approx(np.mean(values)), pytest.approx(np.std(values, ddof=1)))
    assert Distribution.of([]) is None
    one = Distribution.of([3.0])
    assert one is not None and (one.p1, one.p99, one.std, one.count) == (3.0, 3.0, 0.0, 1)


def test_a_closed_loop_has_each_client_in_flight() -> None:
    together = threading.Barrier(4, timeout=30)

    def ask(body: str) -> TimedReply:
        together.wait()  # four at a time, or never
        return TimedReply(200, float(body))

    loaded = closed(ask, ["1", "2", "3", "4", "5", "6", "7", "8"], 4)
    assert [answer.seconds for answer in loaded.answers] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_an_open_loop_waits_for_no_answer() -> None:
    second = threading.Event()

    def ask(body: str) -> TimedReply:
        if body == "second":
            second.set()
        return TimedReply(200 if second.wait(30) else 504, 0.0)

    assert [answer.status for answer in opened(ask, ["first", "second"], 1e6).answers] == [200, 200]


def test_an_open_loop_counts_from_when_a_request_was_due(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "_MOST_AT_ONCE", 1)  # a client that is slow itself
    work = np.ones((300, 300))

    def ask(body: str) -> TimedReply:
        for _ in range(20):
            work @ work
        return TimedReply(200, 0.0, 0.0)

    last = opened(ask, ["a"] * 5, 1e6).answers[-1]
    assert last.seconds > 0
    assert last.first == last.seconds


@pytest.mark.parametrize(
    ("body", "status", "tokens"),
    [
        (b'data: {"token":{}}\n\ndata: {"answer":[],"usage":{"completion_tokens":7}}\n\ndata: [DONE]\n\n', 200, 7),
        (b'data: {"token":{}}\n\ndata: {"error":{"code":"internal"}}\n\n', 500, None),
        (
            b'data: {"answer":[{"generated_text":"\\"error\\""}],"usage":{"completion_tokens":1}}\n\ndata: [DONE]\n\n',
            200,
            1,
        ),
    ],
)
def test_a_stream_tells_its_tokens_and_its_end(body: bytes, status: int, tokens: int | None) -> None:
    found = timed(TargetReply(200, body, 2.0), 0.5)
    assert (found.status, found.answer_tokens, found.first, found.seconds) == (status, tokens, 0.5, 2.0)


def test_the_knee_is_where_power_is_greatest() -> None:
    points = [point(1, 10, 100), point(2, 19, 105), point(4, 36, 111), point(8, 45, 178), point(16, 46, 348)]
    found = knee([*points, point(4, 100, 1, "open"), point(1, 100, 1, target="grpc")], "http")
    assert (found.clients, found.requests_per_s, found.best_requests_per_s) == (4, 36, 46)


def test_what_was_not_measured_is_left_out_of_aiperfs_form() -> None:
    told = exported(point(4, 36, 111))
    assert told["request_throughput"] == {"unit": "requests/sec", "avg": 36}
    assert (told["request_latency"]["unit"], told["request_latency"]["p99"]) == ("ms", 111)
    assert ("count" in told["request_latency"], told["schema_version"]) == (True, "1.1")  # 1.0 has no counts
    assert not {"time_to_first_token", "output_token_throughput", "error_request_count"} & told.keys()


@pytest.mark.parametrize("wrong", [{"clients": [0]}, {"rates": [0.0]}, {"rates": [float("nan")]}, {"targets": ["x"]}])
def test_loads_that_do_not_exist(wrong: dict[str, list[float]], tmp_path: Path) -> None:
    with pytest.raises(SpecError):
        sweep(tmp_path, **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("arguments", [["--sweep", "--concurrency", "many"], ["--rates", "3"], ["--report", "a.html"]])
def test_flags_of_a_sweep(arguments: list[str], tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["bench", str(tmp_path), *arguments])
    assert isinstance(done.exception, SpecError)


def test_a_target_that_cannot_say_the_sample_is_told_before_anything_starts(tiny: Tiny, tmp_path: Path) -> None:
    bundle = mii_azure.generate("fill-mask", str(tiny("bert", "fill-mask")), "mlm", output=tmp_path / "mlm")
    with pytest.raises(SpecError, match="no form at url:"):
        sweep(bundle, ["in-process", "url:http://127.0.0.1:1/v1"], progress=pytest.fail)


def test_an_export_that_cannot_be_written_is_told_after_the_result(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    points = (point(1, 10, 100),)
    facts = {"bundle": "b", "bundle_hash": "0", "task": "fill-mask", "request": "{}", "environment": {}}
    made = Sweep(**facts, points=points, knees=(knee(points, "http"),))
    monkeypatch.setattr(bench_verbs, "_swept", lambda *arguments: made)
    for flag in ("--export", "--report"):
        words = ["bench", str(tmp_path), "--sweep", flag, str(tmp_path / "file" / "x"), "--json"]
        done = CliRunner().invoke(app, words)
        assert isinstance(done.exception, NotWritten), done.exception
        assert Sweep.model_validate_json(done.stdout) == made


@pytest.mark.usefixtures("forked")
def test_a_real_sweep(tiny: Tiny, tmp_path: Path) -> None:
    bundle = mii_azure.generate(
        "conversational", str(tiny("llama", "conversational")), "chat", output=tmp_path / "chat"
    )
    words = ["bench", str(bundle), "--sweep", "--targets", "http,grpc", "--concurrency", "1,2", "--rates", "50"]
    more = ["--count", "6", "--export", str(tmp_path / "runs"), "--report", str(tmp_path / "a" / "r.html"), "--json"]
    done = CliRunner().invoke(app, [*words, *more])
    assert done.exit_code == 0, done.output
    found = Sweep.model_validate_json(done.stdout)
    assert len(found.points) == 6
    for each in found.points:
        assert each.failed == 0 and each.latency_ms.count == (8 if each.load == 2 else 6)
        assert each.first_token_ms and each.answer_tokens and each.prompt_tokens and each.tokens_per_s
        assert each.first_token_ms.max <= each.latency_ms.max
    assert {knee.target for knee in found.knees} == {"http", "grpc"}
    runs = [json.loads(path.read_text()) for path in (tmp_path / "runs").glob(f"*/{FILE}")]
    assert len(runs) == 6 and all(run["inter_token_latency"]["unit"] == "ms" for run in runs)
    assert "Time to the first token" in (tmp_path / "a" / "r.html").read_text()


def test_a_server_that_runs_already_is_swept_beside_ours(tiny: Tiny, tmp_path: Path, forked: None) -> None:
    model = str(tiny("llama", "conversational"))
    bundle = mii_azure.generate("conversational", model, "chat", output=tmp_path / "chat")
    with Runner(bundle) as runner:
        root = f"url:http://127.0.0.1:{runner.http_port}"
        found = sweep(bundle, [f"{root}/score", f"{root}/v1"], clients=[2], rates=[], count=4)
    own, openai = found.points
    assert own.failed == openai.failed == 0
    assert own.answer_tokens and found.environment["device"] == "cpu"
    assert openai.first_token_ms is None
    assert [path.parent.name for path in export(found, tmp_path)] == [
        f"url-http-127.0.0.1-{runner.http_port}-score-concurrency2",
        f"url-http-127.0.0.1-{runner.http_port}-v1-concurrency2",
    ]
