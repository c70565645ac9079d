"""Fits the constants of `mii_azure/data/speed.json` to the measured rows, and prints each row's error.

    .venv/bin/python -m tools.fit_speed

Least squares of relative errors over whichever of the three terms come out positive; no share of bandwidth or peak
is above the data sheet's.
"""

import json
from itertools import product
from pathlib import Path
from statistics import median

import numpy as np

from mii_azure.hardware.speed import Speed
from tools.measured_speed import Measured, measured

PAGE = Path(__file__).parent.parent / "mii_azure" / "data" / "speed.json"


def terms(row: Measured) -> list[float]:
    """Seconds of the row at full bandwidth and at full peak, and its layers: what the constants are the factors of."""
    return [row.effort.bytes / row.card.bandwidth, row.effort.flops / row.card.peak, float(row.effort.layers)]


_ANY = ("out", "least", "free")


def _states(runner: str) -> tuple[tuple[str, ...], ...]:
    """What each term may be for a runner: a step reads its weights whatever else it does, and few rows are no work."""
    if "decode" not in runner:
        return _ANY, _ANY, ("out", "free")
    return ("free", "least"), ("out",) if "few rows" in runner else _ANY, ("out", "free")


_LEAST = (1.0, 1.0, 0.0)  # of each term's factor: nothing is read or computed faster than the data sheet says


def fitted(rows: list[Measured]) -> list[float]:
    """Factors of the terms, with the smallest squares of relative errors; each is left out, at its least, or above it.

    No more factors are free than there are rows; of those that fit alike, the first of `_states` is taken.
    """
    relative = np.array([[term / row.seconds for term in terms(row)] for row in rows])
    best, least = [0.0, 0.0, 0.0], float(len(rows))
    for states in product(*_states(rows[0].runner)):
        free = [place for place, state in enumerate(states) if state == "free"]
        factors = np.array([_LEAST[place] if state == "least" else 0.0 for place, state in enumerate(states)])
        if len(free) > len(rows):
            continue
        if free:
            factors[free] = np.linalg.lstsq(relative[:, free], 1.0 - relative @ factors, rcond=None)[0]
        squares = float(((relative @ factors - 1.0) ** 2).sum())
        if all(factors[place] >= _LEAST[place] for place in free) and squares < least - 1e-9:
            best, least = [float(factor) for factor in factors], squares
    return best


def speed_of(rows: list[Measured]) -> Speed:
    """Constants of one runner, with the errors that they leave."""
    reading, computing, layer = fitted(rows)
    speed = Speed(
        read=round(1 / reading, 4) if reading else None,
        compute=round(1 / computing, 4) if computing else None,
        layer_s=round(layer, 8),
        rows=len(rows),
        median_error=0.0,
        worst_error=0.0,
        cards=tuple(sorted({row.card.name for row in rows})),
    )
    errors = [error(speed, row) for row in rows]
    return speed.model_copy(
        update={"median_error": round(median(map(abs, errors)), 3), "worst_error": round(max(map(abs, errors)), 3)}
    )


def error(speed: Speed, row: Measured) -> float:
    """Relative error of the expected time."""
    return speed.seconds(row.effort, row.card.bandwidth, row.card.peak) / row.seconds - 1


def main() -> None:
    """Fit every runner, print, write."""
    rows = measured()
    told = {}
    for runner in dict.fromkeys(row.runner for row in rows):
        own = [row for row in rows if row.runner == runner]
        speed = speed_of([row for row in own if row.fitted])
        told[runner] = speed.model_dump(exclude_none=True)
        print(runner, told[runner])
        for row in own:
            print(f"    {row.name} ({row.card.name}): {1e3 * row.seconds:.3f} ms, {error(speed, row):+.0%}")
    PAGE.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
