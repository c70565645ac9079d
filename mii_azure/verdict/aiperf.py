"""Points of a sweep as AIPerf writes its runs: a folder each, with profile_export_aiperf.json.

Names, units and statistics are those of AIPerf's JSON export, schema 1.1, as its documentation describes them
(https://docs.nvidia.com/aiperf/reference/json-export-schema).
"""

import json
import re
from pathlib import Path
from typing import Any

from mii_azure.errors import NotWritten
from mii_azure.verdict.sweep import Distribution, Point, Sweep

FILE = "profile_export_aiperf.json"
_SCHEMA = "1.1"  # the first in which a distribution has its count
_UNSAFE = re.compile(r"[^\w.-]+")  # of a target's name, in the name of a folder


def export(sweep: Sweep, folder: Path) -> list[Path]:
    """Write a folder for each point, such as `http-concurrency8` or `http-request_rate12.5`; return the files.

    Raises NotWritten.
    """
    written = []
    for point in sweep.points:
        kind = "concurrency" if point.loop == "closed" else "request_rate"
        target = folder / f"{_UNSAFE.sub('-', point.target)}-{kind}{point.load:.4g}" / FILE
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(json.dumps(exported(point), indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise NotWritten(f"{target} cannot be written: {error.strerror}.", "Choose another --export.") from None
        written.append(target)
    return written


def exported(point: Point) -> dict[str, Any]:
    """One point in AIPerf's form; metrics that were not measured are left out."""
    answered = point.latency_ms.count
    scalars = {
        "request_throughput": ("requests/sec", point.requests_per_s),
        "request_count": ("requests", float(answered)),
        "error_request_count": ("requests", float(point.failed) if point.failed else None),
        "output_token_throughput": ("tokens/sec", point.tokens_per_s),
        "benchmark_duration": ("sec", point.elapsed_s),
    }
    records = {
        "request_latency": ("ms", point.latency_ms),
        "time_to_first_token": ("ms", point.first_token_ms),
        "inter_token_latency": ("ms", point.token_ms),
        "input_sequence_length": ("tokens", point.prompt_tokens),
        "output_sequence_length": ("tokens", point.answer_tokens),
    }
    made: dict[str, Any] = {"schema_version": _SCHEMA}
    made |= {name: {"unit": unit, "avg": value} for name, (unit, value) in scalars.items() if value is not None}
    made |= {name: _record(unit, found) for name, (unit, found) in records.items() if found is not None}
    return {**made, "was_cancelled": False, "start_time": point.began.isoformat()}


def _record(unit: str, found: Distribution) -> dict[str, Any]:
    return {"unit": unit, **found.model_dump()}
