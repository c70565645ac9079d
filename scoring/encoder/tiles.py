"""Tiles of an encoder's matrix products on a GPU: measured ones, and a rule for the rest."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class GemmTile:
    """Tiling of a matrix product: tile sizes, slices of K, warps, pipeline stages, loads by the copy engine."""

    bm: int
    bn: int
    bk: int
    split: int = 1
    warps: int = 4
    stages: int = 5
    tma: bool = False


#: Fastest in the whole model on an H100 (benchmarks/results/encoders-kernels.json), by (rows, N, K).
MEASURED = {
    (128, 3072, 1024): GemmTile(64, 64, 64, stages=4, tma=True),
    (128, 1024, 1024): GemmTile(64, 64, 64, split=4, stages=4, tma=True),
    (128, 4096, 1024): GemmTile(128, 32, 128, warps=8, stages=3, tma=True),
    (128, 1024, 4096): GemmTile(128, 64, 64, split=8, tma=True),
    (128, 1024, 2816): GemmTile(64, 64, 64, split=4, stages=4, tma=True),
    (128, 2304, 768): GemmTile(64, 64, 128, stages=3, tma=True),
    (128, 768, 768): GemmTile(64, 64, 64, split=2),
    (128, 3072, 768): GemmTile(128, 32, 128, stages=3, tma=True),
    (128, 768, 3072): GemmTile(64, 64, 128, split=4, tma=True),
    (384, 2304, 768): GemmTile(128, 64, 64, tma=True),
    (384, 768, 768): GemmTile(64, 64, 64),
    (384, 3072, 768): GemmTile(128, 128, 64, warps=8, tma=True),
    (384, 768, 3072): GemmTile(128, 64, 64, split=2, warps=8),
}

#: The same for gated products (benchmarks/results/encoder_families.json).
MEASURED_GATED = {(128, 2816, 1024): GemmTile(64, 64, 128, stages=3)}

#: The same for products in int8.
MEASURED_INT8 = {
    (128, 3072, 1024): GemmTile(64, 32, 256, stages=3, tma=True),
    (128, 4096, 1024): GemmTile(128, 32, 256, stages=3, tma=True),
    (128, 2304, 768): GemmTile(64, 32, 256, stages=3, tma=True),
    (128, 3072, 768): GemmTile(64, 64, 256, stages=3, tma=True),
}


def choose(rows: int, width: int, depth: int, partial: bool, hopper: bool) -> GemmTile:
    """Choose a measured tile, else one that fills 132 multiprocessors about once; `partial`: K may be split."""
    tile = MEASURED.get((rows, width, depth)) or _rule(rows, width, depth, partial)
    return tile if hopper else _without_copy_engine(tile, 64)


def _without_copy_engine(tile: GemmTile, deepest: int) -> GemmTile:
    """Choose a tile before Hopper, where a program may have only 99 KB of shared memory."""
    return replace(tile, bn=min(tile.bn, 128), bk=min(tile.bk, deepest), stages=3, tma=False)


def _rule(rows: int, width: int, depth: int, partial: bool) -> GemmTile:
    bn, bk = divisor(width, 64), divisor(depth, 64)
    aligned = rows % 128 == 0 and bn == bk == 64
    if aligned and width % 256 == 0 and rows * width >= 128 * 256 * 120:
        return GemmTile(128, 256, 64, warps=8, stages=4, tma=True)
    if aligned and width % 128 == 0 and rows * width >= 128 * 128 * 70:
        return GemmTile(128, 128, 64, warps=8, stages=4, tma=True)
    bm = 128 if aligned and rows * width >= 128 * 64 * 48 else 64
    tiles, split = rows // bm * (width // bn), 1
    while partial and split < 8 and tiles * split * 2 <= 140 and depth % (split * 4 * bk) == 0:
        split *= 2
    return GemmTile(bm, bn, bk, split, tma=aligned)


def choose_narrow(rows: int, width: int, depth: int, hopper: bool) -> GemmTile:
    """Choose a tile for a product in eight bits: measured, or by the rule, twice as deep for the same bytes."""
    tile = MEASURED_INT8.get((rows, width, depth))
    if tile is None:
        tile = _rule(rows, width, depth, False)
        tile = replace(tile, bk=divisor(depth, 2 * tile.bk))
        if rows >= 256 and rows % 128 == width % 128 == depth % 128 == 0:
            tile = GemmTile(128, 128, 128, warps=8, stages=3) if rows >= 768 else GemmTile(128, 64, 128, stages=4)
    return tile if hopper else _without_copy_engine(tile, 128)


def choose_gated(rows: int, width: int, depth: int, hopper: bool) -> GemmTile:
    """Choose a tile for a gated product, which holds two sums at once."""
    tile = MEASURED_GATED.get((rows, width, depth))
    if tile is not None and hopper:
        return tile
    return GemmTile(64, divisor(width, 64), divisor(depth, 64), stages=4 if hopper else 3)


def divisor(value: int, most: int) -> int:
    """Largest power of two, at most `most`, that divides a value."""
    return min(most, value & -value)


def lines(depth: int, line: int) -> int:
    """Largest power of two, at most 16, that divides the 128-byte lines of a slice of K numbers; 0 if not whole."""
    lines = depth // line
    return 0 if depth % line else min(16, lines & -lines)


def power_of_two(value: int) -> int:
    """Least power of two that is no smaller, from 2 on."""
    return 1 << max(value - 1, 1).bit_length()
