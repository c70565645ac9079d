"""Targets side by side: a column each, with what it is, how fast it answered, its verdict and its cost."""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain

from mii_azure.hardware.prices import Prices
from mii_azure.reports.html import Child, Node, el, section, table
from mii_azure.verdict.sides import Side

_HOUR_S = 3600.0
_MANY = 1e6  # requests, or tokens, that a cost is told for

Row = tuple[str, Mapping[str, Child]]  # what, and its value by target


def side_by_side(sides: Sequence[Side], more: Sequence[Row], rates: Mapping[str, float], prices: Prices | None) -> Node:
    """Section of targets in columns; `more` rows stand before the cost, `rates` are requests a second by target."""
    rows: list[Row] = [
        ("where", {side.target: _place(side) for side in sides}),
        *_told(sides, lambda side: side.facts),
        ("passes applied", {side.target: ", ".join(side.passes) for side in sides}),
        *_told(sides, lambda side: side.versions),
        *more,
        ("costs an hour", {side.target: _hour(side, prices) for side in sides}),
        (f"costs {_MANY:,.0f} requests", {side.target: _requests(side, rates, prices) for side in sides}),
    ]
    names = [side.target for side in sides]
    # An element without children is false.
    shown = [[what, *(values.get(name, "") for name in names)] for what, values in rows]
    shown = [[what, *("–" if cell in ("", None) else cell for cell in cells)] for what, *cells in shown]
    shown = [row for row in shown if any(cell != "–" for cell in row[1:])]
    notes = [el("p", _basis(prices), class_="soft")] if any(side.instance_type for side in sides) else []
    return section("Side by side", table(["", *names], shown), notes)


def _told(sides: Sequence[Side], of: Callable[[Side], Mapping[str, str]]) -> list[Row]:
    """Rows of what targets tell by name; what differs between those that tell it is marked."""
    rows: list[Row] = []
    for name in dict.fromkeys(chain.from_iterable(of(side) for side in sides)):
        values = {side.target: of(side)[name] for side in sides if name in of(side)}
        differ = len(set(values.values())) > 1
        rows.append((name, {target: el("strong", told) if differ else told for target, told in values.items()}))
    return rows


def _place(side: Side) -> str:
    return f"{side.where}: {side.instances} x {side.instance_type}" if side.instance_type else side.where


def _hour(side: Side, prices: Prices | None) -> str:
    if not side.instance_type:
        return "not billed by the hour" if side.where.startswith("this machine") else ""
    price = side.price_per_hour(prices)
    return "no price known" if price is None or prices is None else f"{price:,.3f} {prices.currency}"


def _requests(side: Side, rates: Mapping[str, float], prices: Prices | None) -> str:
    price = side.price_per_hour(prices)
    if price is None or prices is None or not rates.get(side.target):
        return ""
    return f"{price / _HOUR_S / rates[side.target] * _MANY:,.2f} {prices.currency}"


def _basis(prices: Prices | None) -> str:
    if prices is None:
        return "Prices come of a file, --prices FILE, which `mii-azure prices` writes."
    told = f"Prices of {prices.date} in {prices.region}, per instance and hour: the machines alone."
    return f"{told} Requests cost what the machines do while they are answered, at the rate that was measured here."
