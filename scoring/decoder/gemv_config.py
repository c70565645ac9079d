"""Tiles for the products of single rows, and what tells their kernels of narrow weights."""

from dataclasses import dataclass
from typing import Any

import triton  # type: ignore[import-not-found,unused-ignore]
from torch import Tensor

from scoring.decoder.model import Linear

GEMV_ROWS = 2  # rows of a step up to which its products are these


@dataclass(frozen=True)
class GemvTile:
    """Tile of a GEMV: rows and inputs that a program takes at once, and its warps."""

    rows: int
    inputs: int
    warps: int


def choose_tile(linear: Linear, sets: int) -> GemvTile:
    """Choose the tile that was fastest, or nearly, on an H100 over shapes of 0.1 to 8 billion parameters.

    A thread holds 64 weights, so that 8 loads of 16 bytes are in flight, and a row that fits is read in one pass.
    Of int4 weights (in groups), rows of a program share what is done to its inputs, which are made integers. int8
    weights take more instructions per byte and do better in small tiles; so do rows of up to 4,096 inputs of
    which a pass would leave a fifth or more of its lanes empty, if there are enough rows to fill the GPU. Rows of more
    than 8,192 are read by 4,096 at a time, or where that leaves much of the last pass empty, by 2,048 (on an H200).
    """
    outputs, inputs = linear.full.shape
    if linear.group:
        return GemvTile(4, 2048, 2) if inputs > 4096 else GemvTile(4, triton.next_power_of_2(inputs), 4)
    if linear.scale is not None:
        return GemvTile(4, 512, 2)
    wide = triton.next_power_of_2(inputs)
    if 5 * inputs <= 4 * wide <= 4 * 4096 and outputs >= 2048:
        return GemvTile(4 // sets, 512, 2)
    if wide > 8192:
        return GemvTile(2, 2048, 8) if -inputs % 4096 > inputs // 7 else GemvTile(1, 4096, 4)
    rows, warps = {1024: (8, 4), 2048: (4, 4), 4096: (4, 8), 8192: (2, 8)}.get(wide, (8, 1))
    return GemvTile(max(1, rows // sets), wide, warps)


def tiling(tile: GemvTile, inputs: int) -> dict[str, Any]:
    return {"BN": tile.rows, "BK": tile.inputs, "ONCE": inputs <= tile.inputs, "num_warps": tile.warps}


def narrow(linear: Linear) -> dict[str, Any]:
    """Return a kernel's constants for the quantisation of a product's weights."""
    group = linear.group
    return {"SCALE": linear.scale is not None and not group, "GROUP": group, "ZERO": linear.zero is not None}


def scales_of(linear: Linear, absent: Tensor) -> tuple[Tensor, Tensor]:
    """Return (scales, zero points) of a product, with a placeholder for absent ones."""
    return absent if linear.scale is None else linear.scale, absent if linear.zero is None else linear.zero
