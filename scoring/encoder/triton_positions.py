"""Launches of `scoring.kernels.encoder_positions`: attention that reads positions, gated products, sums with norms."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from scoring.encoder.ops import LayerNorm, Packing
from scoring.encoder.positions import Relative, Rotation
from scoring.encoder.tiles import GemmTile, lines, power_of_two

LOG2_E = 1.4426950408889634
_COLUMNS = 64  # a tile of a table of distances
_GATE = 1024  # numbers of a program that only gates


@dataclass(frozen=True)
class AttentionTile:
    """Queries and keys of a block, and pipeline stages."""

    bm: int
    bn: int
    stages: int


def attention_tile(packing: Packing, heads: int, dim: int, hopper: bool) -> AttentionTile:
    """Choose small blocks of queries where little work must fill the GPU; large ones read keys less often."""
    bm = 16 if packing.batch * heads * packing.length <= 16 * 264 else 64
    bn = min(128 if dim <= 64 else 64, max(16, power_of_two(packing.length)))
    return AttentionTile(bm, bn, 3 if bm == 64 and hopper else 2)


class PositionedLaunches:
    """Launches on one GPU; `hopper`: with programmatic launch and prefetching."""

    def __init__(self, hopper: bool) -> None:
        from scoring.kernels import encoder_positions

        self._kernels: Any = encoder_positions
        self._hopper = hopper
        self._launch = {"launch_pdl": True} if hopper else {}

    def rotary(self, qkv: Tensor, heads: int, packing: Packing, rotary: Rotation) -> Tensor:
        """Attention with turned queries and keys: [R, H]."""
        width = qkv.shape[1] // 3
        dim = width // heads
        out = qkv.new_empty(packing.rows, width)
        tile = attention_tile(packing, heads, dim, self._hopper)
        self._kernels.rotary_attention_kernel[(-(-packing.length // tile.bm), heads, packing.batch)](
            qkv,
            out,
            packing.places,
            packing.bounds,
            rotary.cos,
            rotary.sin,
            LOG2_E / dim**0.5,
            packing.length,
            HEADS=heads,
            HALF=rotary.half,
            REACH=rotary.reach if packing.length > rotary.reach else 0,
            BM=tile.bm,
            BN=min(tile.bn, 64) if rotary.reach else tile.bn,
            PDL=self._hopper,
            num_warps=4,
            num_stages=tile.stages,
            **self._launch,
        )
        return out

    def relative(self, qkv: Tensor, heads: int, packing: Packing, relative: Relative) -> Tensor:
        """Attention with scores of distances: [R, H]."""
        width = qkv.shape[1] // 3
        dim = width // heads
        low, count = relative.distances.window(packing.length)
        columns = -(-count // _COLUMNS) * _COLUMNS
        by_query, by_key = self._by_distance(qkv, heads, packing, relative, low, columns)
        bias = relative.bias
        out = qkv.new_empty(packing.rows, width)
        tile = attention_tile(packing, heads, dim, self._hopper)
        self._kernels.relative_attention_kernel[(-(-packing.length // tile.bm), heads, packing.batch)](
            qkv,
            out,
            packing.places,
            packing.bounds,
            out if by_query is None else by_query,
            out if by_key is None else by_key,
            relative.distances.columns if bias is None else bias,
            relative.distances.columns,
            LOG2_E * relative.scale(dim),
            packing.rows,
            low,
            HEADS=heads,
            D=dim,
            W=columns,
            REACH=relative.distances.reach,
            C=0 if bias is None else bias.shape[1],
            BY_QUERY=by_query is not None,
            BY_KEY=by_key is not None,
            BIAS=bias is not None,
            BM=tile.bm,
            BN=min(tile.bn, 64),
            PDL=self._hopper,
            num_warps=4,
            num_stages=2,
            **self._launch,
        )
        return out

    def _by_distance(
        self, qkv: Tensor, heads: int, packing: Packing, relative: Relative, low: int, columns: int
    ) -> tuple[Tensor | None, Tensor | None]:
        """Products of queries, and of keys, with the tables' columns from `low` on, each [heads, R, columns]."""
        if not (tables := relative.tables):
            return None, None
        dim = qkv.shape[1] // 3 // heads
        out = qkv.new_empty(len(tables), heads, packing.rows, columns)
        self._kernels.distance_kernel[(columns // _COLUMNS, packing.rows // 64, len(tables) * heads)](
            qkv,
            tables[0],
            tables[-1],
            out,
            packing.bounds[packing.batch :],
            packing.rows,
            low,
            len(tables[0]),
            HEADS=heads,
            D=dim,
            W=columns,
            FIRST=0 if relative.keys is not None else 1,
            BM=64,
            BN=_COLUMNS,
            PDL=self._hopper,
            num_warps=4,
            num_stages=1,
            **self._launch,
        )
        return (out[0] if relative.keys is not None else None, out[-1] if relative.queries is not None else None)

    def gated(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, act: int, packing: Packing, tile: GemmTile
    ) -> Tensor:
        """Gated product in one kernel: [R, I]."""
        width, depth = weight.shape[0] // 2, weight.shape[1]
        out = x.new_empty(packing.rows, width)
        self._kernels.gated_kernel[(width // tile.bn, packing.rows // tile.bm)](
            x,
            weight,
            weight if bias is None else bias,
            out,
            packing.bounds[packing.batch :],
            N=width,
            K=depth,
            ACT=act,
            HAS_BIAS=bias is not None,
            BM=tile.bm,
            BN=tile.bn,
            BK=tile.bk,
            SKIP=packing.batch > 1,
            PREFETCH=lines(depth, 128 // x.itemsize) if self._hopper else 0,
            LINE=128 // x.itemsize,
            PDL=self._hopper,
            num_warps=tile.warps,
            num_stages=tile.stages,
            **self._launch,
        )
        return out

    def gate(self, x: Tensor, act: int) -> Tensor:
        """The gate alone, of a product [R, 2I] that a library has made: [R, I]."""
        rows, width = x.shape[0], x.shape[1] // 2
        out = x.new_empty(rows, width)
        block = min(_GATE, power_of_two(width))
        self._kernels.gate_kernel[(rows, -(-width // block))](x, out, N=width, BLOCK=block, ACT=act, num_warps=4)
        return out

    def add_and_norm(
        self, parts: Tensor, bias: Tensor, residual: Tensor, norm: LayerNorm, packing: Packing, last: bool
    ) -> tuple[Tensor, Tensor]:
        """Sum [R, H] of parts [slices, R, H], bias and residual, and its norm, [B, S, H] if it is the `last`."""
        width, tokens = residual.shape[1], packing.batch * packing.length
        total = residual.new_empty(packing.rows, width)
        out = residual.new_empty(tokens if last else packing.rows, width)
        self._kernels.add_and_norm_kernel[(tokens,)](
            parts,
            bias,
            residual,
            norm.gamma,
            norm.beta,
            total,
            out,
            packing.places,
            packing.bounds[packing.batch :],
            packing.rows,
            N=width,
            BLOCK=power_of_two(width),
            SPLIT=len(parts),
            EPS=norm.eps,
            UNPACK=last,
            PDL=self._hopper,
            num_warps=8,
            **self._launch,
        )
        return total, out.view(packing.batch, packing.length, width) if last else out
