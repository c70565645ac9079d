"""Executes a `DecoderModel` in plain torch so that a row is the same bits in every batch: `--batch-invariant`.

Libraries of a CPU choose a product's inner loop by its number of rows, the attention's by its numbers of queries and
keys, and some functions' by where a number lies in its tensor. So products run over the numbers of rows for which this
machine was found to give equal bits; queries in blocks of 4, placed and masked by their positions, over whole blocks of
keys; and activations by functions that treat every number alike.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from scoring.decoder.block_pool import BLOCK
from scoring.decoder.kv_cache import KVCache
from scoring.decoder.model import Activation, CachedModel, DecoderModel, Linear
from scoring.decoder.torch_attention import attention, places, write
from scoring.decoder.torch_backend import TorchBackend

SIZES = (256, 64, 16, 4)  # rows of which products are tried
_WIDE = 16_384  # outputs above which no more than 64 rows are tried: logits are of few rows
_QUERIES = 4  # of a block


class FixedTorchBackend(TorchBackend):
    """A `TorchBackend` whose rows do not depend on the rest of their batch; it serves no adapters."""

    def __init__(self, model: DecoderModel, state: KVCache) -> None:
        super().__init__(model, state)
        self._sizes: dict[tuple[int, ...], tuple[int, ...]] = {}

    def prefill(self, parts: Sequence[tuple[int, int, int]], tokens: Tensor) -> Tensor:
        hidden = self._run(tokens, BlockAttention(self.model, self.state, parts))
        last = torch.tensor([count for _, _, count in parts], device=tokens.device).cumsum(0) - 1
        return self.head(hidden[last])

    def speculate(self, parts: Sequence[tuple[int, int, int]], tokens: Tensor) -> Tensor:
        return self.head(self._run(tokens, BlockAttention(self.model, self.state, parts)))

    def step(self, slots: Tensor, longest: int) -> Tensor:
        parts = [(slot, at, 1) for slot, at in zip(slots.tolist(), self.state.lengths[slots].tolist(), strict=True)]
        return self.head(self._run(self.state.tokens[slots], BlockAttention(self.model, self.state, parts)))

    def product(self, x: Tensor, linear: Linear, biased: bool = True) -> Tensor:
        weight = linear.full
        sizes = self._sizes.get(tuple(weight.shape))
        if sizes is None:
            sizes = self._sizes[tuple(weight.shape)] = equal_sizes(weight)
        out = torch.cat([functional.linear(part, weight) for part in cut(x, sizes)])[: len(x)]
        return out if linear.bias is None or not biased else out + linear.bias

    def activate(self, x: Tensor, activation: Activation, gated: bool) -> Tensor:
        gate, up = x.chunk(2, -1) if gated else (x, None)
        y = _activated(gate, activation)
        return y if up is None else y * up


def _activated(x: Tensor, activation: Activation) -> Tensor:
    """Activation of x by functions whose vector loops have no other end: torch's silu has."""
    if activation == "relu":
        return functional.relu(x)
    if activation == "silu":
        return x / (1.0 + torch.exp(-x))
    if activation == "gelu":
        return 0.5 * x * (1.0 + torch.erf(x * math.sqrt(0.5)))
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def cut(x: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Cut rows [T, K] into pieces of these numbers of rows, the largest first; the last is padded with zeros."""
    found, row, smallest = [], 0, sizes[-1]
    padded = functional.pad(x, (0, 0, 0, -len(x) % smallest)) if len(x) % smallest else x
    while row < len(padded):
        size = next(size for size in sizes if size <= len(padded) - row)
        found.append(padded[row : row + size])
        row += size
    return found


@torch.inference_mode()
def equal_sizes(weight: Tensor) -> tuple[int, ...]:
    """Numbers of rows, the largest first, for which products with a weight [N, K] give a row the same bits.

    Wherever the row stands among them; (1,) if there are none: then every row is a product of its own.
    """
    able = [size for size in SIZES if size <= 64 or len(weight) <= _WIDE]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(able[0] + 1, weight.shape[1], generator=generator).to(weight)
    found = {size: _steady(x, weight, size) for size in able}
    kept = [out for out in found.values() if out is not None]
    if not kept:
        return (1,)
    return tuple(size for size, out in found.items() if out is not None and torch.equal(out, kept[0]))


def _steady(x: Tensor, weight: Tensor, size: int) -> Tensor | None:
    """Products of all rows of x but the first and last, `size` at a time; None if they depend on a row's place."""
    one, other = (
        torch.cat([functional.linear(part, weight) for part in torch.split(rows, size)]) for rows in (x[:-1], x[1:])
    )
    return one[1:] if torch.equal(one[1:], other[:-1]) else None


class BlockAttention:
    """Attention of the layers over parts (slot, start position, number of tokens), query block by query block.

    A block holds the queries of a slot at positions 4 b to 4 b + 3, as far as they are there, over all keys up to the
    end of the last one's cache block: so each has one shape and one place, however its tokens came.
    """

    def __init__(self, model: CachedModel, state: KVCache, parts: Sequence[tuple[int, int, int]]) -> None:
        self.model, self.state = model, state
        self.positions = torch.cat([torch.arange(at, at + count) for _, at, count in parts])
        slots = torch.cat([torch.full((count,), slot) for slot, _, count in parts])
        self.long = state.long[slots]
        self._places = places(state, slots, self.positions)
        numbers = slots * (state.width * BLOCK) + self.positions // _QUERIES  # of each row, which block it is in
        _, inverse = torch.unique_consecutive(numbers, return_inverse=True)
        self._rows = inverse * _QUERIES + self.positions % _QUERIES  # places of rows in blocks
        firsts = torch.cat([torch.zeros(1, dtype=torch.int64), (inverse[1:] != inverse[:-1]).nonzero()[:, 0] + 1])
        begin = self.positions[firsts] // _QUERIES * _QUERIES
        self._groups = _grouped(slots[firsts], begin)
        self._blocks = len(firsts)
        self._begin = begin
        self._masks: dict[tuple[int, int], Tensor] = {}

    def attend(self, index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of a layer for q [T, heads, D], k and v [T, kv_heads, D]: [T, heads * D]."""
        layer, state = self.model.layers[index].attention, self.state
        cache, places = state.layer(index), self._places[state.groups.places[index][0]]
        write(cache.keys, places, k)
        write(cache.values, places, v)
        queries = q.new_zeros(self._blocks * _QUERIES, *q.shape[1:]).index_copy_(0, self._rows, q)
        queries = queries.view(self._blocks, _QUERIES, *q.shape[1:]).transpose(1, 2)
        out = torch.empty_like(queries)
        for number, (members, slots, length) in enumerate(self._groups):
            if (number, layer.window) not in self._masks:
                self._masks[number, layer.window] = self._mask(self._begin[members], length, layer.window)
            table = cache.table[slots, : length // BLOCK].long()
            keys, values = (
                each[:, table].transpose(0, 1).flatten(2, 3).to(q.dtype) for each in (cache.keys, cache.values)
            )
            mask = self._masks[number, layer.window]
            if len(slots) == 1:  # the blocks of one slot share its keys
                keys, values = (each.expand(len(members), -1, -1, -1) for each in (keys, values))
            out[members] = attention(layer, queries[members], keys, values, mask)
        return out.transpose(1, 2).reshape(self._blocks * _QUERIES, -1)[self._rows]

    def _mask(self, begin: Tensor, length: int, window: int) -> Tensor:
        """Mask, added: [blocks, 1 or heads, 4, length]."""
        distance = (begin[:, None] + torch.arange(_QUERIES))[:, None, :, None] - torch.arange(length)
        hidden = distance < 0
        if window:
            hidden = hidden | (distance >= window)
        bias = torch.zeros(distance.shape)
        if self.model.alibi is not None:
            bias = -self.model.alibi[None, :, None, None] * distance
        return bias.masked_fill(hidden, -math.inf).to(self.model.dtype)


def _grouped(slots: Tensor, begin: Tensor) -> list[tuple[Tensor, Tensor, int]]:
    """Group blocks of equal numbers of keys that are of one slot, or of single ones: (blocks, slots, keys)."""
    found: dict[tuple[int, int], list[int]] = {}
    for number, (slot, at) in enumerate(zip(slots.tolist(), begin.tolist(), strict=True)):
        found.setdefault((slot, -(-(at + _QUERIES) // BLOCK) * BLOCK), []).append(number)
    groups = []
    alone: dict[int, list[int]] = {}
    for (slot, length), members in found.items():
        if len(members) == 1:
            alone.setdefault(length, []).append(members[0])
        else:
            groups.append((torch.tensor(members), torch.tensor([slot]), length))
    return groups + [(torch.tensor(members), slots[members], length) for length, members in alone.items()]
