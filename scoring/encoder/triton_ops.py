"""Operations of an encoder as Triton kernels: their launches."""

import math
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from scoring.encoder.ops import GELU, NONE, RELU, EncoderOps, Hidden, LayerNorm, Matrix, Narrow, Packing, Tables
from scoring.encoder.positions import Positions, Rotation
from scoring.encoder.tiles import GemmTile, choose, choose_gated, choose_narrow, lines, power_of_two
from scoring.encoder.triton_positions import LOG2_E, PositionedLaunches, attention_tile

LIBRARY_ROWS = 1024  # measured: cuBLAS wins from here on, Triton below
ROWS = 64  # every buffer's row count is a multiple of this


class TritonOps(EncoderOps):
    """One kernel per step; see `scoring.kernels.encoder` for programmatic launch and prefetching (`hopper`).

    From `library_rows` rows on, products are cuBLAS's.
    """

    multiple = 256

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
        self._positioned = PositionedLaunches(hopper)

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
            BLOCK=power_of_two(length),
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
            tables.words if tables.positions is None else tables.positions,
            tables.words if tables.types is None else tables.types,
            tables.norm.gamma,
            tables.norm.beta,
            *_pointers(out, then),
            N=width,
            NARROW=out.narrow is not None,
            BLOCK=power_of_two(width),
            EPS=tables.norm.eps,
            HAS_POSITIONS=tables.positions is not None,
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
            PREFETCH=lines(depth // tile.split, 128 // x.itemsize) if self._hopper else 0,
            LINE=128 // x.itemsize,
            NARROW=scales is not None,
            PDL=self._hopper,
            num_warps=tile.warps,
            num_stages=tile.stages,
            **self._launch,
        )

    def attention(self, qkv: Tensor, heads: int, packing: Packing, positions: Positions | None = None) -> Tensor:
        if isinstance(positions, Rotation):
            return self._positioned.rotary(qkv, heads, packing, positions)
        if positions is not None:
            return self._positioned.relative(qkv, heads, packing, positions)
        width = qkv.shape[1] // 3
        dim = width // heads
        out = qkv.new_empty(packing.rows, width)
        tile = attention_tile(packing, heads, dim, self._hopper)
        self._kernels.attention_kernel[(-(-packing.length // tile.bm), heads, packing.batch)](
            qkv,
            out,
            packing.bounds,
            LOG2_E / math.sqrt(dim),
            HEADS=heads,
            D=dim,
            BM=tile.bm,
            BN=tile.bn,
            PDL=self._hopper,
            num_warps=4,
            num_stages=tile.stages,
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
        parts = self._parts(x, weight, packing)
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
            BLOCK=power_of_two(width),
            SPLIT=len(parts),
            EPS=norm.eps,
            NARROW=out.narrow is not None,
            UNPACK=last,
            PDL=self._hopper,
            num_warps=8,
            **self._launch,
        )
        return Hidden(out.wide.view(packing.batch, packing.length, width)) if last else out

    def _parts(self, x: Tensor, weight: Tensor, packing: Packing) -> Tensor:
        """Slices [slices, R, N] whose sum is a product without its bias."""
        if packing.rows >= self._library_rows:
            return F.linear(x, weight)[None]
        tile = self._tile(packing.rows, weight, True)
        # bfloat16 would round the slices' sums too coarsely.
        kind = torch.float16 if x.dtype == torch.float16 else torch.float32
        parts = torch.empty(tile.split, packing.rows, weight.shape[0], dtype=kind, device=x.device)
        self._matmul(x, weight, weight, parts, NONE, packing, tile, partial=True)
        return parts

    def gated(self, x: Hidden, weight: Tensor, bias: Tensor | None, act: int, packing: Packing) -> Tensor:
        if packing.rows >= self._library_rows:
            return self._positioned.gate(F.linear(x.wide, weight, bias), act)
        width, depth = weight.shape
        tile = self._tiles.get((packing.rows, width, depth)) or choose_gated(
            packing.rows, width // 2, depth, self._hopper
        )
        return self._positioned.gated(x.wide, weight, bias, act, packing, tile)

    def project_add(
        self, x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, norm: LayerNorm, packing: Packing, last: bool
    ) -> tuple[Tensor, Hidden]:
        parts = self._parts(x, weight, packing)
        total, normed = self._positioned.add_and_norm(parts, bias, residual, norm, packing, last)
        return total, Hidden(normed)


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
