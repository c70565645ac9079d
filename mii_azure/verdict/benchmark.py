"""Overhead of each host over calling the scoring script in its own process: percentiles and requests per second."""

import json
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from mii_azure.bundle.manifest import load_manifest
from mii_azure.errors import NotABundle, RunnerFailed, SpecError
from mii_azure.platform.target_names import KNOWN, TARGETS
from scoring.strict_json.files import read_file

WARM_UP = 5
ROUNDS = 20


class BenchmarkRow(BaseModel):
    """Figures of one target; latencies in milliseconds at one client, throughput at `clients` clients."""

    model_config = ConfigDict(frozen=True)

    target: str
    p50_ms: float
    p90_ms: float
    p99_ms: float
    added_p50_ms: float | None  # over in-process, if that was measured
    requests_per_s: float


class Report(BaseModel):
    """Benchmark of one bundle on one machine."""

    model_config = ConfigDict(frozen=True)

    bundle: str
    request: str
    requests: int
    clients: int
    environment: dict[str, Any]
    rows: tuple[BenchmarkRow, ...]


def bench(
    bundle: str | Path,
    targets: Sequence[str] = TARGETS,
    count: int = 100,
    clients: int = 8,
    progress: Callable[[str], None] = lambda text: None,
    beside: Sequence[Any] = (),
) -> Report:
    """Send the bundle's sample request to every target: `count` times from one client, and from `clients`.

    All targets run side by side, so each holds the model, and take turns. In-process latencies are measured inside the
    process that scores. `beside` are further targets (`targets.targets.Target`) to measure in the same turns.
    Raises SpecError for unknown targets and what starting a target raises.
    """
    from local_runner.targets.targets import make_target

    unknown = [name for name in targets if name not in KNOWN]
    if unknown:
        raise SpecError(f"Unknown target {unknown[0]!r}.", f"Targets: {', '.join(KNOWN)}.")
    folder = Path(bundle)
    load_manifest(folder)
    body = json.dumps(read_file(folder / "requests" / "sample.json", NotABundle, "Generate the bundle again."))
    with ExitStack() as stack:
        hosts = {}
        for target in (*(make_target(name, folder) for name in targets), *beside):
            progress(f"starting {target.name}")
            hosts[target.name] = stack.enter_context(target)
            _warm_up(target, target.name, body)
        metadata = hosts[targets[0]].metadata()
        loads = _measure(hosts, body, count, clients, progress)
    base = statistics.median(loads["in-process"].alone) if "in-process" in loads else None
    return Report(
        bundle=str(folder),
        request=json.dumps(json.loads(body), ensure_ascii=False),
        requests=count,
        clients=clients,
        environment={key: metadata.get(key) for key in ("device", "dtype", "threads", "versions")},
        rows=tuple(_row(name, load, base) for name, load in loads.items()),
    )


@dataclass
class _Loads:
    alone: list[float] = field(default_factory=list)  # seconds, one client
    answered: int = 0  # with several clients
    elapsed: float = 0.0  # seconds for those


def _warm_up(target: Any, name: str, body: str) -> None:
    for _ in range(WARM_UP):
        reply = target.send(body)
        if reply.status != 200:
            raise RunnerFailed(f"{name} answers the sample with {reply.status}: {reply.body.decode()[:200]}")


def _measure(
    hosts: dict[str, Any], body: str, requests: int, clients: int, progress: Callable[[str], None]
) -> dict[str, _Loads]:
    """Measure the targets in turns, so that a busy moment of the machine affects every host."""
    loads = {name: _Loads() for name in hosts}
    share = max(1, requests // ROUNDS)
    for number in range(ROUNDS):
        progress(f"round {number + 1} of {ROUNDS}")
        for name, target in hosts.items():
            loads[name].alone += target.measure([body], share, 1).seconds
            together = target.measure([body], max(share, clients), clients)
            refused = sum(status != 200 for status in together.statuses)
            if refused:
                raise RunnerFailed(f"{name} refused {refused} requests.", "Measure with fewer --clients.")
            loads[name].answered += len(together.statuses)
            loads[name].elapsed += together.elapsed
    return loads


def _row(name: str, load: _Loads, base: float | None) -> BenchmarkRow:
    seconds = sorted(load.alone)
    p50 = statistics.median(seconds)
    return BenchmarkRow(
        target=name,
        p50_ms=p50 * 1e3,
        p90_ms=_percentile(seconds, 90),
        p99_ms=_percentile(seconds, 99),
        added_p50_ms=None if base is None or name == "in-process" else (p50 - base) * 1e3,
        requests_per_s=load.answered / load.elapsed,
    )


def _percentile(ordered: list[float], percent: int) -> float:
    """Nearest-rank percentile of sorted seconds, in milliseconds."""
    return ordered[min(len(ordered) - 1, round(percent / 100 * (len(ordered) - 1)))] * 1e3
