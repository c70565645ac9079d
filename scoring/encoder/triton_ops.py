"""Operations of an encoder as Triton kernels: the choice of tiles, and the launches."""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from scoring.encoder.ops import GELU, NONE, RELU, EncoderOps, Hidden, LayerNorm, Matrix, Narrow, Packing, Tables

LOG2_E = 1.4426950408889634
LIBRARY_ROWS = 1024  # measured: cuBLAS wins from here on, Triton below
ROWS = 64  # every buffer's row count is a multiple of this


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
    (128, 2304, 768): GemmTile(64, 64, 128, stages=3, tma=True),
    (128, 768, 768): GemmTile(64, 64, 64, split=2),
    (128, 3072, 768): GemmTile(128, 32, 128, stages=3, tma=True),
    (128, 768, 3072): GemmTile(64, 64, 128, split=4, tma=True),
    (384, 2304, 768): GemmTile(128, 64, 64, tma=True),
    (384, 768, 768): GemmTile(64, 64, 64),
    (384, 3072, 768): GemmTile(128, 128, 64, warps=8, tma=True),
    (384, 768, 3072): GemmTile(128, 64, 64, split=2, warps=8),
}

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
    bn, bk = _divisor(width, 64), _divisor(depth, 64)
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
        tile = replace(tile, bk=_divisor(depth, 2 * tile.bk))
        if rows >= 256 and rows % 128 == width % 128 == depth % 128 == 0:
            tile = GemmTile(128, 128, 128, warps=8, stages=3) if rows >= 768 else GemmTile(128, 64, 128, stages=4)
    return tile if hopper else _without_copy_engine(tile, 128)


def _divisor(value: int, most: int) -> int:
    return min(most, value & -value)


class TritonOps(EncoderOps):
    """One kernel per step; see `scoring.kernels.encoder` for programmatic launch and prefetching (`hopper`).

    From `library_rows` rows on, products are cuBLAS's.
    """

    def __init__(
        self,
        hopper: bool,
        library_rows: int = LIBRARY_ROWS,
        tiles: dict[tuple[int, int, int], GemmTile] | None = None,
    ) -> None:
        from scoring.kernels import encoder

        self._kernels: Any = encoder
        self._hopper = hopper
        self._library_rows = library_rows
        self._tiles = tiles or {}
        self._launch = {"launch_pdl": True} if hopper else {}

    def pack(self, ids: Tensor, mask: Tensor | None, pad: int) -> Packing:
        batch, length = ids.shape
        ints: Any = {"dtype": torch.int32, "device": ids.device}
        places, positions = torch.empty(batch * length, **ints), torch.empty(batch * length, **ints)
        bounds = torch.empty(batch + 1, **ints)
        self._kernels.pack_kernel[(batch,)](
            ids,
            ids if mask is None else mask,
            places,
            positions,
            bounds,
            S=length,
            BLOCK=_power_of_two(length),
            PAD=pad,
            HAS_MASK=mask is not None,
        )
        rows = -(-batch * length // ROWS) * ROWS
        return Packing(batch, length, rows, places, positions, bounds)

    def embed(
        self, ids: Tensor, types: Tensor | None, packing: Packing, tables: Tables, then: Matrix | None = None
    ) -> Hidden:
        width = tables.words.shape[1]
        out = _hidden(tables.words.new_empty(packing.rows, width), then)
        self._kernels.embed_kernel[(packing.batch * packing.length,)](
            ids,
            ids if types is None else types,
            packing.places,
            packing.positions,
            packing.bounds[packing.batch :],
            tables.words,
            tables.positions,
            tables.words if tables.types is None else tables.types,
            tables.norm.gamma,
            tables.norm.beta,
            *_pointers(out, then),
            N=width,
            NARROW=out.narrow is not None,
            BLOCK=_power_of_two(width),
            EPS=tables.norm.eps,
            HAS_TYPES=tables.types is not None,
            GIVEN_TYPES=types is not None,
            PDL=self._hopper,
            num_warps=4,
            **self._launch,
        )
        return out

    def linear(self, x: Hidden, weight: Matrix, bias: Tensor, act: int, packing: Packing) -> Tensor:
        if isinstance(weight, Narrow):
            return self._linear_narrow(x, weight, bias, act, packing)
        if packing.rows >= self._library_rows:
            y = F.linear(x.wide, weight, bias)
            return F.gelu(y) if act == GELU else F.relu(y) if act == RELU else y
        out = x.wide.new_empty(packing.rows, weight.shape[0])
        self._matmul(x.wide, weight, bias, out, act, packing, self._tile(packing.rows, weight, False), partial=False)
        return out

    def _linear_narrow(self, x: Hidden, weight: Narrow, bias: Tensor, act: int, packing: Packing) -> Tensor:
        """Product in eight bits: our kernel at every size, because it also activates and writes 16 bits."""
        width, depth = weight.values.shape
        tile = self._tiles.get((packing.rows, width, depth)) or choose_narrow(packing.rows, width, depth, self._hopper)
        if x.narrow is None or x.scale is None:
            raise ValueError("the hidden states were not made for a product in eight bits")
        out = x.wide.new_empty(packing.rows, width)
        scales = (x.scale, weight.scale)
        self._matmul(x.narrow, weight.values, bias, out, act, packing, tile, partial=False, scales=scales)
        return out

    def _tile(self, rows: int, weight: Tensor, partial: bool) -> GemmTile:
        width, depth = weight.shape
        return self._tiles.get((rows, width, depth)) or choose(rows, width, depth, partial, self._hopper)

    def _matmul(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        out: Tensor,
        act: int,
        packing: Packing,
        tile: GemmTile,
        partial: bool,
        scales: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        width, depth = weight.shape
        operands: tuple[Any, ...] = (x, weight)
        kernel = self._kernels.linear_kernel
        if tile.tma:
            from triton.tools.tensor_descriptor import TensorDescriptor  # type: ignore[import-not-found]

            kernel = self._kernels.linear_tma_kernel
            operands = (
                TensorDescriptor.from_tensor(x, [tile.bm, tile.bk]),
                TensorDescriptor.from_tensor(weight, [tile.bn, tile.bk]),
                weight,
            )
        kernel[(width // tile.bn, packing.rows // tile.bm, tile.split)](
            *operands,
            bias,
            *(scales or (bias, bias)),
            out,
            packing.bounds[packing.batch :],
            packing.rows,
            N=width,
            K=depth,
            SPLIT=tile.split,
            PARTIAL=partial,
            ACT=act,
            BM=tile.bm,
            BN=tile.bn,
            BK=tile.bk,
            SKIP=packing.batch > 1,
            PREFETCH=_lines(depth // tile.split, 128 // x.itemsize) if self._hopper else 0,
            LINE=128 // x.itemsize,
            NARROW=scales is not None,
            PDL=self._hopper,
            num_warps=tile.warps,
            num_stages=tile.stages,
            **self._launch,
        )

    def attention(self, qkv: Tensor, heads: int, packing: Packing) -> Tensor:
        width = qkv.shape[1] // 3
        dim = width // heads
        out = qkv.new_empty(packing.rows, width)
        # Small blocks of queries fill the GPU when there is little work; large ones read keys less often.
        bm = 16 if packing.batch * heads * packing.length <= 16 * 264 else 64
        bn = min(128 if dim <= 64 else 64, max(16, _power_of_two(packing.length)))
        self._kernels.attention_kernel[(-(-packing.length // bm), heads, packing.batch)](
            qkv,
            out,
            packing.bounds,
            LOG2_E / math.sqrt(dim),
            HEADS=heads,
            D=dim,
            BM=bm,
            BN=bn,
            PDL=self._hopper,
            num_warps=4,
            num_stages=3 if bm == 64 and self._hopper else 2,
            **self._launch,
        )
        return out

    def project_add_norm(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        residual: Hidden,
        norm: LayerNorm,
        packing: Packing,
        then: Matrix | None = None,
    ) -> Hidden:
        width = weight.shape[0]
        if packing.rows >= self._library_rows:
            parts = F.linear(x, weight)[None]
        else:
            tile = self._tile(packing.rows, weight, True)
            # bfloat16 would round the slices' sums too coarsely.
            kind = torch.float16 if x.dtype == torch.float16 else torch.float32
            parts = torch.empty(tile.split, packing.rows, width, dtype=kind, device=x.device)
            self._matmul(x, weight, bias, parts, NONE, packing, tile, partial=True)
        tokens, last = packing.batch * packing.length, then is None
        out = _hidden(x.new_empty(tokens if last else packing.rows, width), then)
        self._kernels.add_norm_kernel[(tokens,)](
            parts,
            bias,
            residual.wide,
            norm.gamma,
            norm.beta,
            *_pointers(out, then),
            packing.places,
            packing.bounds[packing.batch :],
            packing.rows,
            N=width,
            BLOCK=_power_of_two(width),
            SPLIT=len(parts),
            EPS=norm.eps,
            NARROW=out.narrow is not None,
            UNPACK=last,
            PDL=self._hopper,
            num_warps=8,
            **self._launch,
        )
        return Hidden(out.wide.view(packing.batch, packing.length, width)) if last else out


def _hidden(wide: Tensor, then: Matrix | None) -> Hidden:
    """Allocate hidden states, also in the format of the product that reads them."""
    if not isinstance(then, Narrow):
        return Hidden(wide)
    narrow = torch.empty_like(wide, dtype=then.values.dtype)
    return Hidden(wide, narrow, torch.empty(len(wide), dtype=torch.float32, device=wide.device))


def _pointers(out: Hidden, then: Matrix | None) -> tuple[Tensor, ...]:
    """Pointers of a kernel that writes hidden states; `out` stands in for absent ones."""
    if not isinstance(then, Narrow) or out.narrow is None or out.scale is None:
        return (out.wide,) * 4
    return out.wide, then.smooth, out.narrow, out.scale


def _lines(depth: int, line: int) -> int:
    """Largest power of two, at most 16, that divides the 128-byte lines of a slice of K numbers; 0 if not whole."""
    lines = depth // line
    return 0 if depth % line else min(16, lines & -lines)


def _power_of_two(value: int) -> int:
    return 1 << max(value - 1, 1).bit_length()
