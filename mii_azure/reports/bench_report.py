"""Report of a sweep: latency and throughput against load, time to the first token and per token, the knee."""

from collections.abc import Callable
from pathlib import Path

from mii_azure.hardware.prices import Prices
from mii_azure.reports.charts import Axis, Series, lines
from mii_azure.reports.html import Node, el, figures, section, table, write
from mii_azure.reports.side_by_side import side_by_side
from mii_azure.verdict.sweep import Distribution, Loop, Point, Sweep

_X = {"closed": Axis("requests in flight"), "open": Axis("requests a second, offered")}
_LOOPS: dict[Loop, str] = {
    "closed": "Closed loop: so many clients, each waits for its answer",
    "open": "Open loop: requests come at a rate, answered or not",
}

Quantity = Callable[[Point], float | None]


def write_bench(sweep: Sweep, file: Path, prices: Prices | None = None) -> None:
    """Write the report of a sweep; with prices, what the machines of deployed targets cost at the knee."""
    parts = [_headline(sweep), _sides(sweep, prices)]
    for loop, title in _LOOPS.items():
        charts = [chart for chart in _charts(sweep, loop) if chart is not None]
        parts.append(section(title, el("div", charts, class_="charts")))
    parts += [_numbers(sweep), _conditions(sweep)]
    where = f"{sweep.environment.get('dtype')} on {sweep.environment.get('device')}"
    about = f"{sweep.task} · {', '.join(_targets(sweep))} · {where}"
    write(file, f"Load on {Path(sweep.bundle).name}", about, *parts)


def _targets(sweep: Sweep) -> list[str]:
    return [knee.target for knee in sweep.knees]


def _headline(sweep: Sweep) -> Node:
    pairs = []
    for knee in sweep.knees:
        pairs += [
            (f"{knee.target}: knee", f"{knee.clients} at a time"),
            (f"{knee.target}: at the knee", f"{knee.requests_per_s:,.1f} requests/s, {knee.latency_p50_ms:,.1f} ms"),
            (f"{knee.target}: the most", f"{knee.best_requests_per_s:,.1f} requests/s"),
        ]
    told = "The knee is the load of a closed loop with the most requests a second for each second of median latency."
    return el("section", figures(pairs), el("p", told, class_="soft"))


def _sides(sweep: Sweep, prices: Prices | None) -> Node:
    def at_knee(of: Callable[[Point], str]) -> dict[str, str]:
        found = {}
        for knee in sweep.knees:
            point = next(each for each in sweep.of(knee.target, "closed") if each.load == knee.clients)
            found[knee.target] = of(point)
        return found

    more = [
        ("at its knee", at_knee(lambda point: f"{point.load:g} at a time, {point.requests_per_s:,.1f} requests/s")),
        ("p50, p99 there", at_knee(lambda point: f"{point.latency_ms.p50:,.1f} ms, {point.latency_ms.p99:,.1f} ms")),
        ("tokens a second", at_knee(lambda point: f"{point.tokens_per_s:,.1f}" if point.tokens_per_s else "")),
        (
            "first token, p50",
            at_knee(lambda point: f"{point.first_token_ms.p50:,.1f} ms" if point.first_token_ms else ""),
        ),
    ]
    return side_by_side(sweep.sides, more, {knee.target: knee.requests_per_s for knee in sweep.knees}, prices)


def _charts(sweep: Sweep, loop: Loop) -> list[Node | None]:
    def spread(of: Callable[[Point], Distribution | None]) -> list[tuple[str, Quantity, bool]]:
        def at(name: str) -> Quantity:
            return lambda point: None if (found := of(point)) is None else float(getattr(found, name))

        return [("p50", at("p50"), False), ("p99", at("p99"), True)]

    done: list[tuple[str, Quantity, bool]] = [("", lambda point: point.requests_per_s, False)]
    tokens: list[tuple[str, Quantity, bool]] = [("", lambda point: point.tokens_per_s, False)]
    return [
        _chart(sweep, loop, "Latency", "ms", spread(lambda point: point.latency_ms)),
        _chart(sweep, loop, "Throughput", "requests a second, answered", done),
        _chart(sweep, loop, "Time to the first token", "ms", spread(lambda point: point.first_token_ms)),
        _chart(sweep, loop, "Time per token after it", "ms", spread(lambda point: point.token_ms)),
        _chart(sweep, loop, "Tokens", "tokens a second", tokens),
    ]


def _chart(sweep: Sweep, loop: Loop, title: str, unit: str, of: list[tuple[str, Quantity, bool]]) -> Node | None:
    series = []
    for place, target in enumerate(_targets(sweep)):
        for name, quantity, dashed in of:
            found = [(point.load, quantity(point)) for point in sweep.of(target, loop)]
            points = [(load, value) for load, value in found if value is not None]
            if points:
                series.append(Series(f"{target} {name}".strip(), points, dashed=dashed, colour=place))
    return lines(title, _X[loop], Axis(unit), series) if series else None


def _numbers(sweep: Sweep) -> Node:
    streams = any(point.first_token_ms for point in sweep.points)
    heads = ["Target", "Load", "Requests/s", "p50 ms", "p90 ms", "p99 ms"]
    heads += ["Tokens/s", "First token p50", "p99", "Per token p50", "p99"] if streams else []
    rows = [_row(point, streams) for point in sweep.points]
    return section("Every load", table([*heads, "Failed"], rows, range(2, len(heads) + 1)))


def _row(point: Point, streams: bool) -> list[str]:
    load = f"{point.load:g} at a time" if point.loop == "closed" else f"{point.load:.3g}/s"
    values: list[float | None] = [
        point.requests_per_s,
        *(getattr(point.latency_ms, name) for name in ("p50", "p90", "p99")),
    ]
    if streams:
        values.append(point.tokens_per_s)
        for found in (point.first_token_ms, point.token_ms):
            values += [None, None] if found is None else [found.p50, found.p99]
    shown = ["" if value is None else f"{value:,.1f}" for value in values]
    return [point.target, load, *shown, str(point.failed or "")]


def _conditions(sweep: Sweep) -> Node:
    versions = ", ".join(f"{name} {version}" for name, version in (sweep.environment.get("versions") or {}).items())
    bundle = f"{sweep.bundle}, {sweep.bundle_hash[:12]}"
    told = {"bundle": bundle, **sweep.environment, "versions": versions, "request": sweep.request}
    return section(
        "Under which conditions", table(["What", "Value"], [(name, str(value)) for name, value in told.items()])
    )
