"""Tiles for the products of single rows."""

from dataclasses import dataclass
from typing import Any

import triton  # type: ignore[import-not-found,unused-ignore]


@dataclass(frozen=True)
class GemvTile:
    """Tile of a GEMV: rows and inputs that a program takes at once, and its warps."""

    rows: int
    inputs: int
    warps: int


def choose_tile(outputs: int, inputs: int, sets: int, byte: bool, group: int = 0) -> GemvTile:
    """Choose the tile that was fastest, or nearly, on an H100 over shapes of 0.1 to 8 billion parameters.

    A thread holds 64 weights, so that 8 loads of 16 bytes are in flight, and a row that fits is read in one pass.
    int8 weights (`byte`) take more instructions per byte and do better in small tiles; so do rows of up to 4,096
    inputs of which a pass would leave a fifth or more of its lanes empty, if there are enough rows to fill the GPU.
    """
    if group:
        return GemvTile(4 // sets, 8 * group, 4)
    if byte:
        return GemvTile(4, 512, 2)
    wide = triton.next_power_of_2(inputs)
    if 5 * inputs <= 4 * wide <= 4 * 4096 and outputs >= 2048:
        return GemvTile(4 // sets, 512, 2)
    if wide > 8192:
        return GemvTile(1, 4096, 4)
    rows, warps = {1024: (8, 4), 2048: (4, 4), 4096: (4, 8), 8192: (2, 8)}.get(wide, (8, 1))
    return GemvTile(max(1, rows // sets), wide, warps)


def tiling(tile: GemvTile, inputs: int) -> dict[str, Any]:
    return {"BN": tile.rows, "BK": tile.inputs, "ONCE": inputs <= tile.inputs, "num_warps": tile.warps}
