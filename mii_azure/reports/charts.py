"""Charts of reports as SVG: lines and points over linear or logarithmic axes, and parts of a whole as a stacked bar."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mii_azure.reports.html import Node, el

_WIDTH, _HEIGHT = 640.0, 330.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 62.0, 16.0, 14.0, 46.0
_COLOURS = 6
_MOST_TICKS = 6
_LETTER = 6.2  # pixels, about, of a label


@dataclass(frozen=True)
class Series:
    """Named points (x, y); `joined` draws a line through them, `dashed` a broken one, `labels` name the points."""

    name: str
    points: Sequence[tuple[float, float]]
    joined: bool = True
    dashed: bool = False
    labels: Sequence[str] = ()
    colour: int | None = None  # of another series to share; its own if None


@dataclass(frozen=True)
class Axis:
    """Axis with its label; a linear one begins at 0."""

    label: str
    log: bool = False


class _Scale:
    """Maps values of an axis to pixels from `low` to `high`."""

    def __init__(self, values: Sequence[float], axis: Axis, low: float, high: float) -> None:
        self.log, self._low, self._high = axis.log, low, high
        if axis.log:
            self.ticks = _decades(min(values), max(values))
            self._from, self._to = math.log10(self.ticks[0]), math.log10(self.ticks[-1])
        else:
            self.ticks = _steps(max(values))
            self._from, self._to = 0.0, self.ticks[-1]

    def at(self, value: float) -> float:
        place = math.log10(value) if self.log else value
        return self._low + (place - self._from) / (self._to - self._from) * (self._high - self._low)


def _steps(most: float) -> list[float]:
    """Ticks from 0 to at least `most`, a step of 1, 2 or 5 times a power of ten apart."""
    most = most or 1.0
    rough = most / (_MOST_TICKS - 1)
    power = 10 ** math.floor(math.log10(rough))
    step = next(times * power for times in (1, 2, 5, 10) if times * power >= rough * 0.999)
    return [number * step for number in range(math.ceil(most / step - 1e-9) + 1)]


def _decades(least: float, most: float) -> list[float]:
    """Ticks around the values: powers of ten, with 2 and 5 between where they are few."""
    first, last = math.floor(math.log10(least)), math.ceil(math.log10(most * 1.0001))
    last = max(last, first + 1)
    times = (1, 2, 5) if last - first <= 2 else (1,)
    every = [factor * 10.0**power for power in range(first, last) for factor in times] + [10.0**last]
    below = max(place for place, value in enumerate(every) if value <= least * 1.0001)
    above = min(place for place, value in enumerate(every) if value >= most * 0.9999)
    return every[below : max(above, below + 1) + 1]


def number(value: float) -> str:
    """Number for people, with a letter for thousands, millions and more."""
    for size, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            scaled = value / (1e3 if letter == "k" else size)
            return f"{scaled:.3g} {letter}"
    return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def lines(title: str, x: Axis, y: Axis, series: Sequence[Series]) -> Node:
    """Chart of series; a table of the same numbers belongs beside it for whoever does not see it."""
    given = [point for each in series for point in each.points]
    across = _Scale([point[0] for point in given], x, _LEFT, _WIDTH - _RIGHT)
    up = _Scale([point[1] for point in given], y, _HEIGHT - _BOTTOM, _TOP)
    drawn = [_drawn(each, place, across, up) for place, each in enumerate(series)]
    chart = el(
        "svg", el("title", title), _axes(x, y, across, up), drawn, viewBox=f"0 0 {_WIDTH:g} {_HEIGHT:g}", role="img"
    )
    key = [
        el("li", each.name, class_=f"key {_colour(each, place)}{' broken' if each.dashed else ''}")
        for place, each in enumerate(series)
    ]
    return el("figure", el("figcaption", title), chart, el("ul", key, class_="keys"))


def _colour(series: Series, place: int) -> str:
    return f"s{(place if series.colour is None else series.colour) % _COLOURS}"


def _axes(x: Axis, y: Axis, across: _Scale, up: _Scale) -> list[Node]:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    made = []
    for tick in up.ticks:
        at = up.at(tick)
        made += [
            el("line", x1=_LEFT, x2=right, y1=at, y2=at, class_="grid"),
            el("text", number(tick), x=_LEFT - 7, y=at + 4, class_="tick end"),
        ]
    for tick in across.ticks:
        at = across.at(tick)
        made += [
            el("line", x1=at, x2=at, y1=bottom, y2=bottom + 4, class_="axis"),
            el("text", number(tick), x=at, y=bottom + 17, class_="tick middle"),
        ]
    middle = (_TOP + bottom) / 2
    return [
        *made,
        el("line", x1=_LEFT, x2=right, y1=bottom, y2=bottom, class_="axis"),
        el("text", x.label, x=(_LEFT + right) / 2, y=_HEIGHT - 8, class_="label middle"),
        el("text", y.label, x=14, y=middle, class_="label middle", transform=f"rotate(-90 14 {middle:g})"),
    ]


def _drawn(series: Series, place: int, across: _Scale, up: _Scale) -> Node:
    places = [(across.at(first), up.at(second)) for first, second in series.points]
    made = []
    if series.joined:
        path = " ".join(f"{left:.1f},{top:.1f}" for left, top in places)
        made.append(el("polyline", points=path, class_="dashed" if series.dashed else None))
    if not (series.joined and series.dashed):
        made += [el("circle", cx=left, cy=top, r=3.5 if series.joined else 5.0) for left, top in places]
    for (left, top), text in zip(places, series.labels, strict=False):
        near_edge = left + 9 + _LETTER * len(text) > _WIDTH
        made.append(
            el(
                "text",
                text,
                x=left - 9 if near_edge else left + 9,
                y=top + 19,
                class_="tick end" if near_edge else "tick",
            )
        )
    return el("g", made, class_=_colour(series, place))


def stack(title: str, parts: Sequence[tuple[str, float]], whole: float, unit: str) -> Node:
    """Parts of a whole as one bar with a legend; what is over the whole runs past its mark."""
    length = max(whole, sum(value for _, value in parts))
    scale, at, made = (_WIDTH - 4) / length, 2.0, []
    for place, (_, value) in enumerate(parts):
        width = value * scale
        made.append(el("rect", x=at, y=8.0, width=width, height=40.0, class_=f"fill s{place % _COLOURS}"))
        at += width
    edge = 2 + whole * scale
    made += [
        el("rect", x=2.0, y=8.0, width=whole * scale, height=40.0, class_="outline"),
        el("line", x1=edge, x2=edge, y1=2.0, y2=56.0, class_="limit"),
    ]
    key = [
        el("li", f"{name}: {value:,.2f} {unit}", class_=f"key s{place % _COLOURS}")
        for place, (name, value) in enumerate(parts)
    ]
    free = whole - sum(value for _, value in parts)
    told = f"free: {free:,.2f} {unit}" if free >= 0 else f"over by {-free:,.2f} {unit}"
    chart = el("svg", el("title", title), made, viewBox=f"0 0 {_WIDTH:g} 58", role="img")
    return el("figure", el("figcaption", title), chart, el("ul", key, el("li", told, class_="key none"), class_="keys"))
