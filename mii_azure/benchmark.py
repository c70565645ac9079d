"""What each host adds over calling the scoring script in its own process: percentiles and requests per second."""

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from mii_azure.errors import RunnerFailed, SpecError
from mii_azure.manifest import load_manifest
from mii_azure.verdict import TARGETS

WARM_UP = 5


class Row(BaseModel):
    """One target's figures; latencies in milliseconds at one client, throughput at `clients` clients."""

    model_config = ConfigDict(frozen=True)

    target: str
    p50_ms: float
    p90_ms: float
    p99_ms: float
    added_p50_ms: float | None  # over in-process, when that was measured
    requests_per_s: float


class Report(BaseModel):
    """A benchmark of one bundle on one machine."""

    model_config = ConfigDict(frozen=True)

    bundle: str
    request: str
    requests: int
    clients: int
    environment: dict[str, Any]
    rows: tuple[Row, ...]


def bench(
    bundle: str | Path,
    targets: Sequence[str] = TARGETS,
    requests: int = 100,
    clients: int = 8,
    on_progress: Callable[[str], None] = lambda text: None,
) -> Report:
    """Send the bundle's sample request to each target: `requests` times from one client, then from `clients`.

    In-process latencies are measured inside the process that scores. Raises SpecError for unknown targets and what
    starting a target raises.
    """
    from local_runner.targets import make_target

    unknown = [name for name in targets if name not in TARGETS]
    if unknown:
        raise SpecError(f"Unknown target {unknown[0]!r}.", f"Targets: {', '.join(TARGETS)}.")
    folder = Path(bundle)
    load_manifest(folder)
    body = (folder / "requests" / "sample.json").read_text(encoding="utf-8")
    rows: list[Row] = []
    environment: dict[str, Any] = {}
    for name in targets:
        on_progress(f"measuring {name}")
        with make_target(name, folder) as target:
            metadata = target.metadata()
            environment = environment or {key: metadata.get(key) for key in ("device", "dtype", "threads", "versions")}
            rows.append(_measure(target, name, body, requests, clients, rows))
    return Report(
        bundle=str(folder),
        request=json.dumps(json.loads(body), ensure_ascii=False),
        requests=requests,
        clients=clients,
        environment=environment,
        rows=tuple(rows),
    )


def _measure(target: Any, name: str, body: str, requests: int, clients: int, rows: list[Row]) -> Row:
    for _ in range(WARM_UP):
        reply = target.send(body)
        if reply.status != 200:
            raise RunnerFailed(f"{name} answers the sample with {reply.status}: {reply.body.decode()[:200]}")
    alone = target.measure([body], requests, 1)
    together = target.measure([body], requests, clients)
    refused = sum(status != 200 for status in together.statuses)
    if refused:
        raise RunnerFailed(f"{name} refused {refused} of {requests} requests.", "Measure with fewer --clients.")
    seconds = sorted(alone.seconds)
    base = next((row.p50_ms for row in rows if row.target == "in-process"), None)
    p50 = statistics.median(seconds) * 1e3
    return Row(
        target=name,
        p50_ms=p50,
        p90_ms=_percentile(seconds, 90),
        p99_ms=_percentile(seconds, 99),
        added_p50_ms=None if base is None or name == "in-process" else p50 - base,
        requests_per_s=requests / together.elapsed,
    )


def _percentile(ordered: list[float], percent: int) -> float:
    """Nearest-rank percentile of sorted seconds, in milliseconds."""
    return ordered[min(len(ordered) - 1, round(percent / 100 * (len(ordered) - 1)))] * 1e3
