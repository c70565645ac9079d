"""Fits the constants of `mii_azure/data/speed.json` to the measured rows, and prints each row's error.

    .venv/bin/python -m tools.fit_speed

Least squares of relative errors over whichever of the three terms come out positive.
"""

import json
from itertools import combinations
from pathlib import Path
from statistics import median

import numpy as np

from mii_azure.hardware.speed import Speed
from tools.measured_speed import Measured, measured

PAGE = Path(__file__).parent.parent / "mii_azure" / "data" / "speed.json"


def terms(row: Measured) -> list[float]:
    """Seconds of the row at full bandwidth and at full peak, and its layers: what the constants are the factors of."""
    return [row.effort.bytes / row.card.bandwidth, row.effort.flops / row.card.peak, float(row.effort.layers)]


def fitted(rows: list[Measured]) -> list[float]:
    """Factors of the terms, none below zero, with the smallest squares of relative errors."""
    wanted = np.ones(len(rows))
    relative = np.array([[term / row.seconds for term in terms(row)] for row in rows])
    best, least = [0.0, 0.0, 0.0], float(len(rows))
    for count in range(1, min(3, len(rows)) + 1):
        for chosen in combinations(range(3), count):
            some = relative[:, chosen]
            factors = np.linalg.lstsq(some, wanted, rcond=None)[0]
            squares = float(((some @ factors - wanted) ** 2).sum())
            if (factors >= 0).all() and squares < least - 1e-9:
                best, least = [0.0, 0.0, 0.0], squares
                for place, factor in zip(chosen, factors, strict=True):
                    best[place] = float(factor)
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
        speed = speed_of(own)
        told[runner] = speed.model_dump(exclude_none=True)
        print(runner, told[runner])
        for row in own:
            print(f"    {row.name} ({row.card.name}): {1e3 * row.seconds:.3f} ms, {error(speed, row):+.0%}")
    PAGE.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
