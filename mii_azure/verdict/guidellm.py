"""Points of a sweep as GuideLLM writes its reports: a folder for each target, with benchmarks.json.

Fields, units and shape are those of GuideLLM's report schema, version 2, which its `GenerativeBenchmarksReport` reads
(https://github.com/vllm-project/guidellm, src/guidellm/benchmark/schemas). What was not measured has a count of 0.
"""

import json
import platform
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mii_azure.errors import NotWritten
from mii_azure.verdict.sweep import Distribution, Point, Sweep
from mii_azure.version import __version__

FILE = "benchmarks.json"
_VERSION = 2
_UNKNOWN = -1.0  # as GuideLLM has times that it does not know
_STATUSES = ("successful", "incomplete", "errored", "total")
_PERCENTILES = ("p01", "p05", "p10", "p25", "p50", "p75", "p90", "p95", "p99")
_UNMEASURED = (
    "request_streaming_iterations_count",
    "time_per_output_token_ms",
    "time_to_last_round_trip_ms",
    "avg_round_trip_time_ms",
    "output_tokens_per_iteration",
    "iter_tokens_per_iteration",
)
_UNSAFE = re.compile(r"[^\w.-]+")  # of a target's name, in the name of a folder
_OF_A_KIND = {
    "text": ("tokens", "words", "characters"),
    "image": ("tokens", "images", "pixels", "bytes"),
    "video": ("tokens", "frames", "seconds", "bytes"),
    "audio": ("tokens", "samples", "seconds", "bytes"),
    "tool_call": ("tokens", "mixed_tokens", "count"),
}


def export(sweep: Sweep, folder: Path) -> list[Path]:
    """Write a report for each target, such as `http/benchmarks.json`; return the files. Raises NotWritten."""
    written = []
    for target in dict.fromkeys(point.target for point in sweep.points):
        file = folder / _UNSAFE.sub("-", target) / FILE
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(exported(sweep, target), indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise NotWritten(f"{file} cannot be written: {error.strerror}.", "Choose another --export.") from None
        written.append(file)
    return written


def exported(sweep: Sweep, target: str) -> dict[str, Any]:
    """Report of one target in GuideLLM's form."""
    points = [point for point in sweep.points if point.target == target]
    measured = [point for point in points if point.prompt_tokens and point.answer_tokens]
    tokens = {
        "prompt_tokens": max(1, round(max((p.prompt_tokens.avg for p in measured if p.prompt_tokens), default=1))),
        "output_tokens": max(1, round(max((p.answer_tokens.avg for p in measured if p.answer_tokens), default=1))),
    }
    spec = {
        "backend": {"kind": "openai_http", "target": target},
        "data": [{"kind": "synthetic_text", **tokens}],
        "profile": {"kind": "concurrent", "streams": [int(p.load) for p in points if p.loop == "closed"] or [1]},
    }
    labels = {"name": Path(sweep.bundle).name, "bundle": sweep.bundle_hash, "task": sweep.task, "target": target}
    return {
        "metadata": {
            "version": _VERSION,
            "guidellm_version": f"mii_azure {__version__}",
            "python_version": platform.python_version(),
            "platform": platform.platform(),
        },
        "config": {"metadata": {"labels": labels}, "spec": spec},
        "benchmarks": [_benchmark(sweep, point, number) for number, point in enumerate(points)],
    }


def _benchmark(sweep: Sweep, point: Point, number: int) -> dict[str, Any]:
    closed = point.loop == "closed"
    strategy = (
        {"type_": "concurrent", "streams": int(point.load)} if closed else {"type_": "poisson", "rate": point.load}
    )
    counts = _counts(point)
    config = {
        "id_": f"{sweep.bundle_hash[:12]}-{point.target}-{point.loop}-{point.load:g}",
        "run_id": sweep.bundle_hash,
        "run_index": number,
        "strategy": strategy,
        "constraints": {"max_requests": {"value": counts["total"]}},
        "profile": {"type_": strategy["type_"]},
        "requests": {"request": sweep.request},
        "backend": {"target": point.target},
        "environment": sweep.environment,
    }
    began, ended = point.began.timestamp(), point.began.timestamp() + point.elapsed_s
    state = {"start_time": began, "end_time": ended, "processed_requests": counts["total"]}
    return {
        "type_": "generative_benchmark",
        "config": config,
        "scheduler_state": {**state, "successful_requests": counts["successful"], "errored_requests": point.failed},
        "scheduler_metrics": _scheduler(point, counts, began, ended),
        "metrics": _metrics(point, counts),
        "requests": {"successful": [], "incomplete": [], "errored": [], "total": None},
        "start_time": began,
        "end_time": ended,
        "duration": point.elapsed_s,
        "warmup_duration": 0.0,
        "cooldown_duration": 0.0,
    }


def _counts(point: Point) -> dict[str, int]:
    answered = point.latency_ms.count
    return dict(zip(_STATUSES, (answered, 0, point.failed, answered + point.failed), strict=True))


def _scheduler(point: Point, counts: dict[str, int], began: float, ended: float) -> dict[str, Any]:
    starts = dict.fromkeys(("start_time", "request_start_time", "measure_start_time"), began)
    ends = dict.fromkeys(("measure_end_time", "request_end_time", "end_time"), ended)
    delays = ("resolve_start", "resolve_targeted_start", "request_start", "request_targeted_start", "resolve_end")
    unknown = [f"{name}_delay_avg" for name in (*delays, "finalized", "processed")]
    return {
        **starts,
        **ends,
        "requests_made": counts,
        **dict.fromkeys(("queued_time_avg", "resolve_time_avg", *unknown), _UNKNOWN),
        "request_time_avg": point.latency_ms.avg / 1e3,
    }


def _metrics(point: Point, counts: dict[str, int]) -> dict[str, Any]:
    rate, prompt, answer = point.requests_per_s, point.prompt_tokens, point.answer_tokens
    asked = rate * prompt.avg if prompt else None
    both = None if asked is None or point.tokens_per_s is None else asked + point.tokens_per_s
    measured: dict[str, Distribution | None] = {
        "requests_per_second": _steady(rate, point),
        "request_concurrency": _steady(rate * point.latency_ms.avg / 1e3, point),  # Little's law
        "request_latency": _scaled(point.latency_ms, 1e-3),
        "prompt_token_count": prompt,
        "output_token_count": answer,
        "total_token_count": _moved(answer, prompt.avg) if prompt and answer and prompt.min == prompt.max else None,
        "time_to_first_token_ms": point.first_token_ms,
        "time_to_first_output_token_ms": point.first_token_ms,
        "inter_token_latency_ms": point.token_ms,
        "prompt_tokens_per_second": _steady(asked, point),
        "output_tokens_per_second": _steady(point.tokens_per_s, point),
        "tokens_per_second": _steady(both, point),
    }
    spread = {name: _by_status(found) for name, found in {**measured, **dict.fromkeys(_UNMEASURED)}.items()}
    kinds = {kind: dict.fromkeys(names) for kind, names in _OF_A_KIND.items()}
    return {"request_totals": counts, **spread, **kinds}


def _steady(value: float | None, point: Point) -> Distribution | None:
    """A rate that is known as a whole: the same at every moment."""
    if value is None:
        return None
    found = Distribution.of([value])
    return found and found.model_copy(update={"count": point.latency_ms.count})


def _scaled(found: Distribution, factor: float) -> Distribution:
    values = found.model_dump()
    return Distribution(**{name: value if name == "count" else value * factor for name, value in values.items()})


def _moved(found: Distribution, by: float) -> Distribution:
    values = found.model_dump()
    return Distribution(**{name: v if name in ("count", "std") else v + by for name, v in values.items()})


def _by_status(found: Distribution | None) -> dict[str, Any]:
    """Distributions by status; the figures of a sweep are of answered requests."""
    made = _summary(found)
    return {status: made if status in ("successful", "total") else _summary(None) for status in _STATUSES}


def _summary(found: Distribution | None) -> dict[str, Any]:
    """Summary of a distribution; of the 1,000 requests or fewer that a load has, p0.1 and p99.9 are the extremes."""
    values = found.model_dump() if found else {}
    names: Sequence[str] = ("p001", *_PERCENTILES, "p999")
    cuts = {name: values.get(name.replace("p0", "p"), 0.0) for name in names}
    cuts |= {"p001": values.get("min", 0.0), "p999": values.get("max", 0.0)}
    mean, std, count = values.get("avg", 0.0), values.get("std", 0.0), values.get("count", 0)
    return {
        "mean": mean,
        "median": cuts["p50"],
        "mode": values.get("min", 0.0),  # as GuideLLM has it of values that all differ
        "variance": std**2,
        "std_dev": std,
        "min": values.get("min", 0.0),
        "max": values.get("max", 0.0),
        "count": count,
        "total_sum": mean * count,
        "percentiles": cuts,
    }
