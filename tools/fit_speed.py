"""Fits the constants of `mii_azure/data/speed.json` to the measured rows, and prints each row's error.

    .venv/bin/python -m tools.fit_speed

Least squares of the ratios' logarithms over whichever of the three terms come out positive, so that a promise of twice
the speed weighs no less than one of half; no share of bandwidth or peak is above the data sheet's.
"""

import json
import math
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from mii_azure.hardware.speed import Speed
from tools.measured_speed import Measured, measured

PAGE = Path(__file__).parent.parent / "mii_azure" / "data" / "speed.json"


def terms(row: Measured) -> list[float]:
    """Seconds of the row at full bandwidth and at full peak, and its layers: what the constants are the factors of."""
    return [row.effort.bytes / row.card.bandwidth, row.effort.flops / row.card.peak, float(row.effort.layers)]


_STEPS, _TINY = 30, 1e-6  # of Newton; a ratio that no row comes near
_ANY = ("out", "least", "free")


def _states(runner: str) -> tuple[tuple[str, ...], ...]:
    """What each term may be for a runner: a step reads its weights whatever else it does, and few rows are no work."""
    if "decode" not in runner:
        return _ANY, _ANY, ("out", "free")
    return ("free", "least"), ("out",) if "few rows" in runner else _ANY, ("out", "free")


_LEAST = (1.0, 1.0, 0.0)  # of each term's factor: nothing is read or computed faster than the data sheet says


def before(row: Measured, known: Mapping[str, Speed]) -> float:
    """Seconds of a row that other runners' constants explain."""
    ceilings = row.card.bandwidth, row.card.peak
    return sum(part.times * known[part.runner].seconds(part.effort, *ceilings) for part in row.parts)


def fitted(rows: list[Measured], known: Mapping[str, Speed]) -> list[float]:
    """Factors of the terms, with the smallest squares of the logarithms of expected over measured.

    Each is left out, at its least, or above it. No more factors are free than there are rows; of those that fit alike,
    the first of `_states` is taken.
    """
    relative = np.array([[term / row.seconds for term in terms(row)] for row in rows])
    share = np.array([before(row, known) / row.seconds for row in rows])
    best, least = [0.0, 0.0, 0.0], math.inf
    for states in product(*_states(rows[0].runner)):
        free = [place for place, state in enumerate(states) if state == "free"]
        factors = np.array([_LEAST[place] if state == "least" else 0.0 for place, state in enumerate(states)])
        if len(free) > len(rows):
            continue
        if free:
            factors[free] = _closest(relative[:, free], share + relative @ factors)
        expected = share + relative @ factors
        squares = float((np.log(expected) ** 2).sum()) if (expected > 0).all() else math.inf
        if all(factors[place] >= _LEAST[place] for place in free) and squares < least - 1e-9:
            best, least = [float(factor) for factor in factors], squares
    return best


def _closest(columns: Any, share: Any) -> Any:
    """Factors whose sum with the known share is nearest to one, by ratio: from the nearest by difference, by Newton."""
    factors = np.linalg.lstsq(columns, 1.0 - share, rcond=None)[0]
    for _ in range(_STEPS):
        expected = np.maximum(share + columns @ factors, _TINY)
        factors = factors - np.linalg.lstsq(columns / expected[:, None], np.log(expected), rcond=None)[0]
    return factors


def speed_of(rows: list[Measured], known: Mapping[str, Speed]) -> Speed:
    """Constants of one runner, with the errors that they leave."""
    reading, computing, layer = fitted(rows, known)
    speed = Speed(
        read=round(1 / reading, 4) if reading else None,
        compute=round(1 / computing, 4) if computing else None,
        layer_s=round(layer, 8),
        rows=len(rows),
        median_error=0.0,
        worst_error=0.0,
        cards=tuple(sorted({row.card.name for row in rows})),
    )
    errors = [error(speed, row, known) for row in rows]
    return speed.model_copy(
        update={"median_error": round(median(map(abs, errors)), 3), "worst_error": round(max(map(abs, errors)), 3)}
    )


def error(speed: Speed, row: Measured, known: Mapping[str, Speed]) -> float:
    """Relative error of the expected time."""
    seconds = before(row, known) + speed.seconds(row.effort, row.card.bandwidth, row.card.peak)
    return seconds / row.seconds - 1


def fit(rows: list[Measured]) -> dict[str, Speed]:
    """Constants of every runner; those that others' rows hold as parts come first."""
    known: dict[str, Speed] = {}
    for runner in dict.fromkeys(row.runner for row in sorted(rows, key=lambda row: bool(row.parts))):
        known[runner] = speed_of([row for row in rows if row.runner == runner and row.fitted], known)
    return known


def main() -> None:
    """Fit every runner, print, write."""
    rows = measured()
    speeds = fit(rows)
    for runner, speed in speeds.items():
        print(runner, speed.model_dump(exclude_none=True))
        for row in rows:
            if row.runner == runner:
                told = f"{row.name} ({row.card.name}): {1e3 * row.seconds:.3f} ms"
                print(f"    {told}, {error(speed, row, speeds):+.0%}")
    told = {runner: speed.model_dump(exclude_none=True) for runner, speed in speeds.items()}
    PAGE.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
