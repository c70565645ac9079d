"""Attention of a chunk of prompts on a GPU: a kernel that reads the paged cache, and cuDNN over long prefixes.

The kernel serves every case and can be in a graph. Over whole spans of a prompt's earlier keys cuDNN is faster: they
are gathered, each span's result is kept, and the kernel goes on from these.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton  # type: ignore[import-not-found,unused-ignore]
from torch import Tensor

from scoring.decoder.block_pool import BLOCK
from scoring.decoder.chunk_size import LONGEST_CHUNK, SPANS, Span, gathered_keys, is_plain, most_spans, spans_of
from scoring.decoder.head_shapes import Heads
from scoring.decoder.kv_cache import KVCache
from scoring.decoder.model import CachedModel, shapes_of
from scoring.kernels import decode_prefill

_COPIED = 2048  # numbers of a block that a program copies

Run = tuple[int, int, Sequence[Span]]  # of a part: its first row in the chunk, tokens, spans of keys before it
#: Tokens of pieces beside running sequences, where these leave time for no more.
IN_GRAPHS = (256, 512, 1024)


@dataclass(frozen=True)
class Tiling:
    """Tile of the attention kernel: queries of a program, keys of an iteration, and how they are launched."""

    queries: int
    keys: int
    warps: int
    stages: int
    described: bool = False  # keys and values are read through descriptors, by the card's copy engine


#: By bytes of a number and padded size of a head, up to which it holds (benchmarks/results/prompt_attention.json).
TILINGS = {
    2: {64: Tiling(64, 64, 4, 2), 128: Tiling(64, 64, 4, 3), 256: Tiling(64, 32, 4, 2), 512: Tiling(32, 16, 8, 2)},
    4: {64: Tiling(64, 32, 4, 1), 128: Tiling(32, 32, 4, 1), 256: Tiling(16, 32, 4, 1), 512: Tiling(16, 16, 8, 1)},
}
#: The same where cards have a copy engine and it gains.
DESCRIBED = {128: Tiling(128, 64, 4, 2, described=True)}
#: The same on Hopper, whose products are of 64 queries, and whose programs have 227 KiB of shared memory, not 99.
HOPPER = {512: Tiling(64, 32, 8, 2)}


def tilings_of(model: CachedModel, state: KVCache) -> dict[Heads, Tiling]:
    """Tilings of a model's shapes of heads: of equally many queries, since one layout of tiles is for all layers."""
    found = {own: _tiling(model, state, own) for own in shapes_of(model)}
    least = min(tiling.queries for tiling in found.values())
    return {own: replace(tiling, queries=least) for own, tiling in found.items()}


def _tiling(model: CachedModel, state: KVCache, heads: Heads) -> Tiling:
    known, wide = TILINGS[model.dtype.itemsize], heads.wide
    if model.device.type == "cuda" and model.dtype.itemsize == 2:
        capability = torch.cuda.get_device_capability(model.device)
        plain = not state.narrow and not state.overlaid  # keys as descriptors take them
        if capability >= (9, 0) and plain and wide in DESCRIBED and not heads.width % 8:
            return DESCRIBED[wide]
        known = known | HOPPER if capability[0] == 9 else known
    return known[min(size for size in known if size >= wide)]


class ChunkAttention:
    """Launches the attention of chunks of up to `rows` tokens of a model over its cache."""

    slots: Tensor  # [parts] int32, those of the chunk's parts

    def __init__(self, model: CachedModel, state: KVCache, rows: int) -> None:
        self.model, self.state, self.rows = model, state, rows
        self.tilings = tilings_of(model, state)
        self.queries = next(iter(self.tilings.values())).queries  # of a tile
        self.precision = "ieee" if model.dtype == torch.float32 else "tf32"
        made: dict[str, Any] = {"dtype": model.dtype, "device": model.device}
        longest = 0 if state.narrow else state.max_length  # cuDNN takes no keys in FP8
        self._room = gathered_keys(model, longest)
        gathered = model.kv_heads * self._room * model.head_dim
        self._keys, self._values = torch.empty(2, gathered, **made)
        spans = most_spans(model, longest)
        self._part = torch.empty(spans, rows, model.heads, model.head_dim, **made)
        self._stats = torch.empty(spans, model.heads, rows, dtype=torch.float32, device=model.device)
        self._few = min(max(IN_GRAPHS), rows)  # of a chunk of so few tokens there is room for more results

    def spans(self, count: int, position: int, alone: bool = False, rows: int = LONGEST_CHUNK) -> list[Span]:
        """Spans of keys before a part, in a chunk of `rows`, that cuDNN takes, in layers where it can.

        `alone` as in `spans_of`. In a chunk of few tokens these are short ones, which are computed several at once.
        """
        found = [] if self.state.narrow else spans_of(self.model, self.state.max_length, count, position, alone)
        if not (found and alone and rows <= self._few):
            return found
        keys, room = min(SPANS), len(self._part) * self.rows // self._few
        return [(number * keys, keys) for number in range(min(position // keys, room))]

    def in_graphs(self) -> dict[tuple[int, int], int]:
        """Pieces that are captured with their spans, by tokens and keys in spans: the position of one such.

        They are parts that are all of a chunk, as a long prompt's beside running sequences mostly are.
        """
        found: dict[tuple[int, int], int] = {}
        for position in range(min(SPANS), self.state.max_length - max(IN_GRAPHS) + 1, min(SPANS)):
            for count in (count for count in IN_GRAPHS if count <= self.rows):
                if keys := sum(keys for _, keys in self.spans(count, position, True, count)):
                    found.setdefault((count, keys), position)
        return found

    def attend(self, index: int, q: Tensor, out: Tensor, tiled: Tensor, tiles: int, slopes: Tensor, pdl: bool,
               launch: dict[str, Any], runs: Sequence[Run] = ()) -> None:  # fmt: skip
        """Enqueue out [T, H, D] of q [T, H, D] for the first tiles of `tiled`; `runs`: parts, if some have spans."""
        model, state, own = self.model, self.state, self.model.layers[index].attention
        heads, cache = model.heads_of(index), state.layer(index)
        tiling = self.tilings[heads]
        parted = bool(runs) and is_plain(own)
        rows, results = self.rows, (self._part, self._stats)
        if parted and sum(runs[-1][:2]) <= self._few:
            rows = self._few
            results = self._part.view(-1, rows, model.heads, model.head_dim), self._stats.view(-1, model.heads, rows)
        for part, (row, count, spans) in enumerate(runs) if parted else ():
            for number, some in _together(spans, self._room if rows == self._few else 0):
                self._spans(index, q, row, count, part, number, some, results)
        keys, values = (_source(each, tiling) for each in (cache.keys, cache.values))
        decode_prefill.attend_prompt[(tiles, heads.queries)](
            q, keys, values, out, slopes, tiled, cache.table, q if own.sinks is None else own.sinks, *results,
            tiled.shape[1], state.width, state.apart, rows, own.scale, own.cap, BLOCK=BLOCK,
            H=heads.queries, KV=heads.keys, D=heads.width, DP=heads.wide, BM=tiling.queries, BN=tiling.keys,
            SPANS=parted, WINDOW=own.window, ALIBI=model.alibi is not None, CAP=own.cap > 0,
            SINKS=own.sinks is not None, DESCRIBED=tiling.described, PRECISION=self.precision, PDL=pdl,
            num_warps=tiling.warps, num_stages=tiling.stages, **launch,
        )  # fmt: skip

    def plan(self) -> None:
        """Have cuDNN plan what it will be asked for: it keeps plans by thread, so this is for the one that attends."""
        scales = {layer.attention.scale for layer in self.model.layers if is_plain(layer.attention)}
        least = min(SPANS.values())
        for keys in SPANS if len(self._part) else ():
            fitting = range((self.rows // least).bit_length()) if keys < self.state.max_length else ()
            for queries in (self._part[0, : least << power] for power in fitting):
                for count in range(1, (self._room // keys if len(queries) <= self._few else 1) + 1):
                    for scale in scales:
                        attend_whole(_repeated(queries, count), *self._gathered(count, keys), scale)

    def _spans(self, index: int, q: Tensor, row: int, count: int, part: int, number: int, spans: Sequence[Span],
               results: tuple[Tensor, Tensor]) -> None:  # fmt: skip
        """Enqueue the attention of a part over spans of equally many keys, into their places among the results."""
        model, state, keys, size = self.model, self.state, spans[0][1], BLOCK * self.model.head_dim
        (k, v), cache = self._gathered(len(spans), keys), state.layer(index)
        for place, (first, _) in enumerate(spans):
            decode_prefill.gather[(keys // BLOCK, model.kv_heads, triton.cdiv(size, _COPIED))](
                cache.keys, cache.values, cache.table, self.slots, k[place], v[place], part, state.width,
                first // BLOCK, state.apart, keys // BLOCK, SIZE=size, BE=_COPIED, num_warps=4,
            )  # fmt: skip
        padded = min(self.rows, max(min(SPANS.values()), triton.next_power_of_2(count)))
        begin = min(row, self.rows - padded)
        queries = q.view(-1, model.heads, model.head_dim)[begin : begin + padded]
        found, stats = attend_whole(_repeated(queries, len(spans)), k, v, model.layers[index].attention.scale)
        own, places = slice(row - begin, row - begin + count), slice(number, number + len(spans))
        results[0][places, row : row + count].copy_(found[:, :, own].transpose(1, 2))
        results[1][places, :, row : row + count].copy_(stats[:, :, own])

    def _gathered(self, count: int, keys: int) -> tuple[Tensor, Tensor]:
        """Room for the keys and values [count, KV, keys, D] of spans."""
        shape = (count, self.model.kv_heads, keys, self.model.head_dim)
        k, v = (whole[: math.prod(shape)].view(shape) for whole in (self._keys, self._values))
        return k, v


def _source(cache: Tensor, tiling: Tiling) -> Any:
    """A layer's keys or values [KV, blocks, BLOCK, D] as the kernel takes them."""
    if not tiling.described:
        return cache
    from triton.tools.tensor_descriptor import TensorDescriptor  # type: ignore[import-not-found,unused-ignore]

    wide = triton.next_power_of_2(max(16, cache.shape[-1]))
    return TensorDescriptor.from_tensor(cache.view(-1, cache.shape[-1]), [tiling.keys, wide])


def _together(spans: Sequence[Span], room: int) -> list[tuple[int, Sequence[Span]]]:
    """Spans by how many are computed at once, of equally many keys and of no more than there is room for."""
    most = max(1, room // spans[0][1]) if spans and len({keys for _, keys in spans}) == 1 else 1
    return [(number, spans[number : number + most]) for number in range(0, len(spans), most)]


def _repeated(queries: Tensor, count: int) -> Tensor:
    """Queries [T, H, D] for so many spans, [count, H, T, D]: a chunk's few would keep a fraction of a GPU busy."""
    whole = queries.transpose(0, 1)[None]
    return whole if count == 1 else whole.repeat(count, 1, 1, 1)


def attend_whole(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Attention of q [N, H, T, D] over all of k and v [N, KV, L, D]: the result, and its logarithms of sums [N, H, T].

    cuDNN's, on the CPU torch's own.
    """
    if q.device.type == "cpu":
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        found, stats = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, False, scale=scale)
        return found, stats
    told = torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, 0.0, False, False, scale=scale)
    return told[0], told[1].view(*q.shape[:3])
