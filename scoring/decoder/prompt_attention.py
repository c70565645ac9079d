"""Attention of a chunk of prompts on a GPU: a kernel that reads the paged cache, and cuDNN over long prefixes.

The kernel serves every case and can be in a graph. Of a prompt's earlier keys, whole spans of `SPAN` are what cuDNN is
faster at: they are gathered, each span's result is kept, and the kernel goes on from these.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton  # type: ignore[import-not-found,unused-ignore]
from torch import Tensor

from scoring.decoder.block_pool import BLOCK
from scoring.decoder.chunk_size import SPAN, spans_of
from scoring.decoder.kv_cache import KVCache
from scoring.decoder.model import CachedModel
from scoring.kernels import decode_prefill

LEAST_QUERIES = 256  # of a part, below which the kernel alone is as fast
_COPIED = 2048  # numbers of a block that a program copies

Run = tuple[int, int, int, int]  # of a part: its first row in the chunk, tokens, slot, position


@dataclass(frozen=True)
class Tiling:
    """Tile of the attention kernel: queries of a program, keys of an iteration, and how they are launched."""

    queries: int
    keys: int
    warps: int
    stages: int
    described: bool = False  # keys and values are read through descriptors, by the card's copy engine


#: By bytes of a number and padded size of a head, up to which it holds.
TILINGS = {
    2: {64: Tiling(128, 64, 4, 3), 128: Tiling(128, 64, 8, 3), 256: Tiling(64, 32, 4, 2)},
    4: {64: Tiling(64, 32, 4, 1), 128: Tiling(32, 32, 4, 1), 256: Tiling(16, 32, 4, 1)},
}


def tiling_of(form: CachedModel, wide: int) -> Tiling:
    """Tiling for heads of `wide` numbers."""
    known = TILINGS[form.dtype.itemsize]
    return known[min(size for size in known if size >= wide)]


class PromptAttention:
    """Launches the attention of chunks of up to `rows` tokens of a form over its cache."""

    def __init__(self, form: CachedModel, state: KVCache, rows: int, wide: int) -> None:
        self.form, self.state, self.rows, self.wide = form, state, rows, wide
        self.tiling = tiling_of(form, wide)
        self.precision = "ieee" if form.dtype == torch.float32 else "tf32"
        self.spans = spans_of(form, state.max_length)
        made = {"dtype": form.dtype, "device": form.device}
        gathered = (2, form.kv_heads, SPAN if self.spans else 0, form.head_dim)
        self._keys, self._values = torch.empty(gathered, **made)
        self._part = torch.empty(self.spans, rows, form.heads, form.head_dim, **made)
        self._stats = torch.empty(self.spans, form.heads, rows, dtype=torch.float32, device=form.device)

    def prefix(self, count: int, position: int) -> int:
        """Keys of a part's prefix that cuDNN takes, in layers where it can; 0 for a part that the kernel takes."""
        return min(position // SPAN, self.spans) * SPAN if count >= LEAST_QUERIES else 0

    def attend(self, index: int, q: Tensor, out: Tensor, tiled: Tensor, tiles: int, slopes: Tensor, pdl: bool,
               launch: dict[str, Any], runs: Sequence[Run] = ()) -> None:  # fmt: skip
        """Enqueue out [T, H, D] of q [T, H, D] for the first tiles of `tiled`; `runs` are parts with a prefix."""
        form, state, own, tiling = self.form, self.state, self.form.layers[index].attention, self.tiling
        parted = bool(runs) and not own.window and not own.cap and own.sinks is None
        for row, count, slot, position in runs if parted else ():
            for span in range(self.prefix(count, position) // SPAN):
                self._span(index, q, row, count, slot, span)
        keys, values = (self._source(cache[index]) for cache in (state.keys, state.values))
        decode_prefill.attend_prompt[(tiles, form.heads)](
            q, keys, values, out, slopes, tiled, state.table, self._part, self._stats, tiled.shape[1], state.width,
            state.blocks + 1, self.rows, own.scale, own.cap, BLOCK=BLOCK, H=form.heads, KV=form.kv_heads,
            D=form.head_dim, DP=self.wide, BM=tiling.queries, BN=tiling.keys, SPAN=SPAN if parted else 0,
            WINDOW=own.window, ALIBI=form.alibi is not None, CAP=own.cap > 0, DESCRIBED=tiling.described,
            PRECISION=self.precision, PDL=pdl, num_warps=tiling.warps, num_stages=tiling.stages, **launch,
        )  # fmt: skip

    def _source(self, cache: Tensor) -> Any:
        """A layer's keys or values [KV, blocks, BLOCK, D] as the kernel takes them."""
        if not self.tiling.described:
            return cache
        from triton.tools.tensor_descriptor import TensorDescriptor  # type: ignore[import-not-found,unused-ignore]

        return TensorDescriptor.from_tensor(cache.view(-1, cache.shape[-1]), [self.tiling.keys, self.wide])

    def _span(self, index: int, q: Tensor, row: int, count: int, slot: int, span: int) -> None:
        """Enqueue the attention of a part over a span of its prefix, into its place among the results."""
        form, state, blocks = self.form, self.state, SPAN // BLOCK
        size = BLOCK * form.head_dim
        decode_prefill.gather[(blocks, form.kv_heads, triton.cdiv(size, _COPIED))](
            state.keys[index], state.values[index], state.table[slot], self._keys, self._values, span * blocks,
            state.blocks + 1, blocks, SIZE=size, BE=_COPIED, num_warps=4,
        )  # fmt: skip
        padded = min(self.rows, max(LEAST_QUERIES, triton.next_power_of_2(count)))
        first = min(row, self.rows - padded)
        queries = q.view(-1, form.heads, form.head_dim)[first : first + padded].transpose(0, 1)[None]
        found, stats = attend_whole(queries, self._keys[None], self._values[None], form.layers[index].attention.scale)
        own = slice(row - first, row - first + count)
        self._part[span, row : row + count].copy_(found[0, :, own].transpose(0, 1))
        self._stats[span, :, row : row + count].copy_(stats[0, :, own])


def attend_whole(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Attention of q [1, H, T, D] over all of k and v [1, KV, L, D]: the result, and its logarithms of sums [1, H, T].

    cuDNN's, on the CPU torch's own.
    """
    if q.device.type == "cpu":
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        found, stats = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, False, scale=scale)
        return found, stats
    told = torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, 0.0, False, False, scale=scale)
    return told[0], told[1].view(*q.shape[:3])
