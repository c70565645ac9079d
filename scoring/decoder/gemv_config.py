"""Tiles for the products of single rows, and what tells their kernels of them and of narrow weights."""

from dataclasses import dataclass
from typing import Any

import triton  # type: ignore[import-not-found,unused-ignore]
from torch import Tensor

from scoring.decoder.model import Linear

GEMV_ROWS = 2  # rows of a step up to which its products are these
_MULTIPROCESSORS = 132
_STAYING = 16  # warps a multiprocessor of programs that stay


@dataclass(frozen=True)
class GemvTile:
    """Tile of a GEMV: rows and inputs that a program takes at once, its warps, and most programs (0: one a tile).

    With `ahead`, a program has the L2 cache fetch its rows whole before it waits for its inputs.
    """

    rows: int
    inputs: int
    warps: int
    programs: int = 0
    ahead: bool = False

    def grid(self, outputs: int, rows: int) -> tuple[int]:
        """Grid over the outputs of a product for so many batch rows."""
        tiles = triton.cdiv(outputs, self.rows)
        return (rows * (min(tiles, self.programs) if self.programs else tiles),)


def choose_tile(linear: Linear, sets: int) -> GemvTile:
    """Choose the tile that was fastest, or nearly, on an H100 or H200 over shapes of 0.1 to 8 billion parameters.

    A thread holds 64 weights, so that 8 loads of 16 bytes are in flight, and a row that fits is read in one pass.
    Rows of up to 4,096 inputs of which a pass would leave a fifth or more of its lanes empty do better in small tiles,
    if there are enough rows to fill the GPU; so do int8 weights, which take more instructions per byte. Rows of more
    than 8,192 are read by 4,096 at a time, or where that leaves much of the last pass empty, by 2,048 (on an H200).
    """
    if linear.group:
        return _staying(linear, sets)
    if linear.scale is not None:
        return GemvTile(4, 512, 2)
    outputs, inputs = linear.full.shape
    return wide_tile(outputs, inputs, sets)


def wide_tile(outputs: int, inputs: int, sets: int) -> GemvTile:
    """Tile of weights in the model's dtype."""
    wide = triton.next_power_of_2(inputs)
    if 5 * inputs <= 4 * wide <= 4 * 4096 and outputs >= 2048:
        return GemvTile(4 // sets, 512, 2)
    if wide > 8192:
        return GemvTile(2, 2048, 8) if -inputs % 4096 > inputs // 7 else GemvTile(1, 4096, 4)
    rows, warps = {1024: (8, 4), 2048: (4, 4), 4096: (4, 8), 8192: (2, 8)}.get(wide, (8, 1))
    rows = max(1, rows // sets)
    if wide == 2048 and outputs // sets < 4 * rows * _MULTIPROCESSORS:  # one wave, which some would have to wait for
        rows = max(1, rows // 2)
    return GemvTile(rows, wide, warps, ahead=outputs // sets >= 3 * rows * _MULTIPROCESSORS)


def _staying(linear: Linear, sets: int) -> GemvTile:
    """Tile of int4 weights, whose programs take all inputs, which they make integers once, and stay for several tiles.

    A lane has 32 inputs, of rows of up to 16,384; with more than those it takes fewer rows.
    """
    wide = max(1024, triton.next_power_of_2(linear.full.shape[1]))
    warps = min(16, wide // 1024)
    return GemvTile(max(1, min(4, 65536 // wide) // sets), wide, warps, _MULTIPROCESSORS * _STAYING // warps)


def reading(linear: Linear, tile: GemvTile, absent: Tensor) -> dict[str, Any]:
    """Arguments of a product's kernel for its tile and its weights, with a placeholder for what they lack."""
    told = {"BN": tile.rows, "BK": tile.inputs, "num_warps": tile.warps}
    if linear.group:
        zeros = absent if linear.zero is None else linear.zero
        return told | {"GROUP": linear.group, "ZERO": linear.zero is not None, "zeros_ptr": zeros}
    weight = linear.weight  # a bulk prefetch is of whole 16 bytes
    ahead = tile.ahead and weight.data_ptr() % 16 == weight.stride(0) * weight.element_size() % 16 == 0
    once = linear.full.shape[1] <= tile.inputs
    return told | {"ONCE": once, "SCALE": linear.scale is not None, "AHEAD": ahead}
