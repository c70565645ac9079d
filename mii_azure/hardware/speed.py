"""Times expected of one forward pass, by what runs it: constants fitted to the committed measurements.

`seconds = bytes / (bandwidth x read) + FLOP / (peak x compute) + layers x layer_s`, with the data sheet's bandwidth and
peak. `tools/fit_speed.py` fits the three constants of each runner and writes `data/speed.json` with their errors.
"""

from functools import cache
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from mii_azure.hardware.skus import load_data


class Effort(NamedTuple):
    """Work of one forward pass on one device: bytes to read, FLOP, and layers that follow each other."""

    bytes: float
    flops: float
    layers: int


class Speed(BaseModel):
    """Constants of one runner; a share that is None costs no time of its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    read: float | None = None  # share of the bandwidth
    compute: float | None = None  # share of the peak
    layer_s: float = 0.0
    rows: int  # measured rows that they were fitted to
    median_error: float
    worst_error: float
    cards: tuple[str, ...]

    def seconds(self, effort: Effort, bandwidth: float, peak: float) -> float:
        """Expected seconds, never less than the device's bandwidth (bytes a second) and peak (FLOP a second) allow."""
        reading = effort.bytes / (bandwidth * self.read) if self.read else 0.0
        computing = effort.flops / (peak * self.compute) if self.compute else 0.0
        floor = max(effort.bytes / bandwidth, effort.flops / peak)
        return max(reading + computing + effort.layers * self.layer_s, floor)


@cache
def speeds() -> dict[str, Speed]:
    """Every runner's constants, by name."""
    return {name: Speed(**fields) for name, fields in load_data("speed").items()}
