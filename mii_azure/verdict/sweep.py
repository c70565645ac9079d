"""Sweep of load over targets: latency against clients in flight, against requests a second, and where the knee is."""

import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, ConfigDict

from mii_azure.bundle.manifest import load_manifest
from mii_azure.errors import NotABundle, RunnerFailed, SpecError
from mii_azure.verdict.sides import Side, side_of
from mii_azure.verdict.targets import Reach, check_targets, open_target
from scoring.config import Deployment
from scoring.schema.registry import task_schema
from scoring.strict_json.files import read_file

if TYPE_CHECKING:
    from local_runner.targets.loops import LoopRun
    from local_runner.targets.targets import Target

Loop = Literal["closed", "open"]

WARM_UP = 5
CLIENTS = (1, 2, 4, 8, 16, 32)
SHARES = (0.25, 0.5, 0.75, 0.9, 1.1)  # of the best rate of the closed loop: what an open loop is tried at
ROUNDS = 4  # requests of each client at least, so that the first ones do not decide


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class Distribution(_Frozen):
    """Distribution of a measured quantity; percentiles by linear interpolation."""

    avg: float
    min: float
    max: float
    std: float
    p1: float
    p5: float
    p10: float
    p25: float
    p50: float
    p75: float
    p90: float
    p95: float
    p99: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Self | None:
        """Distribution of the values; None if there are none."""
        found = sorted(values)
        if not found:
            return None
        cuts = statistics.quantiles(found, n=100, method="inclusive") if len(found) > 1 else found * 99
        percentiles = {f"p{number}": cuts[number - 1] for number in (1, 5, 10, 25, 50, 75, 90, 95, 99)}
        std = statistics.stdev(found) if len(found) > 1 else 0.0
        return cls(avg=statistics.fmean(found), min=found[0], max=found[-1], std=std, count=len(found), **percentiles)


class Point(_Frozen):
    """One load on one target: `load` is clients in flight in a closed loop, requests a second in an open one."""

    target: str
    loop: Loop
    load: float
    began: datetime
    elapsed_s: float
    failed: int  # requests that were not answered 200; the figures are of the others
    requests_per_s: float
    tokens_per_s: float | None  # of answers; None where nothing is generated
    latency_ms: Distribution
    first_token_ms: Distribution | None  # None where answers are not streamed
    token_ms: Distribution | None  # from token to token of an answer, after its first
    prompt_tokens: Distribution | None
    answer_tokens: Distribution | None

    @property
    def power(self) -> float:
        """Requests a second over median latency in seconds, which is greatest at the knee (Kleinrock, 1979)."""
        return self.requests_per_s / (self.latency_ms.p50 / 1e3)


class Knee(_Frozen):
    """Load of a closed loop from which more clients wait longer rather than get more done."""

    target: str
    clients: int
    requests_per_s: float
    latency_p50_ms: float
    best_requests_per_s: float  # at whatever load of the closed loop


class Sweep(_Frozen):
    """Sweep of one bundle on one machine."""

    bundle: str
    bundle_hash: str
    task: str
    request: str
    environment: dict[str, Any]
    points: tuple[Point, ...]
    knees: tuple[Knee, ...]
    sides: tuple[Side, ...] = ()

    def of(self, target: str, loop: Loop) -> tuple[Point, ...]:
        """Points of one target and loop, by load."""
        found = (point for point in self.points if (point.target, point.loop) == (target, loop))
        return tuple(sorted(found, key=lambda point: point.load))


def sweep(
    bundle: str | Path,
    targets: Sequence[str] = ("http",),
    clients: Sequence[int] = CLIENTS,
    rates: Sequence[float] | None = None,
    count: int = 100,
    progress: Callable[[str], None] = lambda text: None,
    api_key: str = "",
) -> Sweep:
    """Send the bundle's sample to each target under rising load: `count` requests at each, more for many clients.

    A closed loop has each of `clients` in flight. An open loop then has `rates` in requests a second, or shares of the
    closed loop's best if None. Generated answers are streamed, and no prompt finds its beginning cached by another.
    Targets `url:URL` (with `api_key`) and `endpoint:NAME[/SLOT]` run already; all others run side by side, so each
    holds the model. Targets take turns. Raises SpecError for targets or loads that do not exist and for a target that
    has no form of the sample, RunnerFailed for one that refuses it, and what starting a target raises.
    """
    _check(targets, clients, rates, count)
    folder = Path(bundle)
    task = Deployment.read(folder / "code" / "deployment.json").task
    digest = str(load_manifest(folder)["bundle"])
    sample = read_file(folder / "requests" / "sample.json", NotABundle, "Generate the bundle again.")
    bodies = _Bodies(sample, task)
    with ExitStack() as stack:
        reached = {name: open_target(name, folder, task, Reach(key=api_key)) for name in targets}
        _require_form(reached, bodies)
        hosts: dict[str, Any] = {}
        for name, target in reached.items():
            progress(f"starting {name}")
            hosts[name] = stack.enter_context(target)
        told = {name: host.metadata() for name, host in hosts.items()}
        facts: dict[str, Any] = next(filter(None, told.values()), {})
        sides = tuple(side_of(name, host, told[name]) for name, host in hosts.items())
        points = _measured(hosts, bodies, (clients, rates, count), progress)
    return Sweep(
        bundle=str(folder),
        bundle_hash=digest,
        task=task,
        request=json.dumps(sample, ensure_ascii=False),
        environment={key: facts.get(key) for key in ("device", "dtype", "threads", "versions")},
        points=tuple(points),
        knees=tuple(knee(points, name) for name in targets),
        sides=sides,
    )


def _check(targets: Sequence[str], clients: Sequence[int], rates: Sequence[float] | None, count: int) -> None:
    check_targets(targets, 0)
    if not targets or not clients or min(clients) < 1 or max(clients) > 512:
        raise SpecError("A sweep needs a target, and clients from 1 to 512.", "For example --concurrency 1,2,4,8.")
    if rates is not None and not all(0 < rate <= 1e5 for rate in rates):
        raise SpecError("Rates are requests a second, above 0.", "For example --rates 5,10,20.")
    if count < 1:
        raise SpecError("A load has one request at least.", "For example --count 100.")


class _Bodies:
    """Bodies of the sample; of generating tasks streamed, with their usage, each with a cache salt of its own.

    Servers that do not speak the scoring script's form are asked the sample as it is.
    """

    def __init__(self, sample: dict[str, Any], task: str) -> None:
        self._sample = sample
        self._generative = task_schema(task).generative
        self._number = 0

    def take(self, count: int, host: "Target") -> list[str]:
        return [self._next(host.own_form) for _ in range(count)]

    def _next(self, own_form: bool) -> str:
        self._number += 1
        if not (self._generative and own_form):
            return json.dumps(self._sample)
        parameters = {**self._sample.get("parameters", {}), "cache_salt": f"sweep-{self._number}"}
        asked = {**self._sample, "parameters": parameters, "stream": True, "options": {"usage": True}}
        return json.dumps(asked)


def _require_form(targets: "Mapping[str, Target]", bodies: _Bodies) -> None:
    """Raise SpecError for a target where the sample cannot be said, before anything starts."""
    for name, target in targets.items():
        if not target.takes(*bodies.take(1, target)):
            raise SpecError(
                f"The sample has no form at {name}.",
                "OpenAI's interface cannot say it: name another path of that server, such as /score, or leave it out.",
            )


def _measured(
    hosts: "Mapping[str, Target]",
    bodies: _Bodies,
    loads: tuple[Sequence[int], Sequence[float] | None, int],
    progress: Callable[[str], None],
) -> list[Point]:
    """Measure every target at each load before the next load, so that a busy moment of the machine affects them all."""
    from local_runner.targets.loops import closed, opened

    clients, rates, least = loads
    for name, host in hosts.items():
        for body in bodies.take(WARM_UP, host):
            if (status := host.timed(body).status) != 200:
                raise RunnerFailed(f"{name} answers the sample with {status}.", "Ask it with `mii-azure query`.")
    points = []
    for count in sorted(set(clients)):
        progress(f"{count} at a time")
        for name, host in hosts.items():
            began, sent = datetime.now(UTC), bodies.take(max(least, ROUNDS * count), host)
            points.append(_point(name, "closed", count, began, closed(host.timed, sent, count)))
    best = {name: max(each.requests_per_s for each in points if each.target == name) for name in hosts}
    for place, share in enumerate(sorted(set(rates if rates is not None else SHARES)), 1):
        progress(f"open loop, load {place}")
        for name, host in hosts.items():
            rate = share if rates is not None else share * best[name]
            began, sent = datetime.now(UTC), bodies.take(least, host)
            points.append(_point(name, "open", rate, began, opened(host.timed, sent, rate)))
    return points


def _point(name: str, loop: Loop, load: float, began: datetime, loaded: "LoopRun") -> Point:
    good = [answer for answer in loaded.answers if answer.status == 200]
    latency = Distribution.of(answer.seconds * 1e3 for answer in good)
    if latency is None:
        status = loaded.answers[0].status
        raise RunnerFailed(f"{name} answered no request of a load; the first with {status}.", "Sweep over less load.")
    made = [answer.answer_tokens for answer in good if answer.answer_tokens is not None]
    later = [
        (answer.seconds - answer.first) * 1e3 / (answer.answer_tokens - 1)
        for answer in good
        if answer.first is not None and answer.answer_tokens and answer.answer_tokens > 1
    ]
    return Point(
        target=name,
        loop=loop,
        load=load,
        began=began,
        elapsed_s=loaded.elapsed,
        failed=len(loaded.answers) - len(good),
        requests_per_s=len(good) / loaded.elapsed,
        tokens_per_s=sum(made) / loaded.elapsed if made else None,
        latency_ms=latency,
        first_token_ms=Distribution.of(answer.first * 1e3 for answer in good if answer.first is not None),
        token_ms=Distribution.of(later),
        prompt_tokens=Distribution.of(each.prompt_tokens for each in good if each.prompt_tokens is not None),
        answer_tokens=Distribution.of(made),
    )


def knee(points: Sequence[Point], target: str) -> Knee:
    """Knee of a target's closed loop: the load of the greatest power."""
    own = [point for point in points if (point.target, point.loop) == (target, "closed")]
    best = max(own, key=lambda point: point.power)
    return Knee(
        target=target,
        clients=int(best.load),
        requests_per_s=best.requests_per_s,
        latency_p50_ms=best.latency_ms.p50,
        best_requests_per_s=max(point.requests_per_s for point in own),
    )
