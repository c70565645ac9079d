"""State that a decoder keeps on the device: a paged KV cache, and one row of numbers per slot.

Keys and values lie in blocks of 64 tokens, for the layers of one group; a slot's table in that group tells which block
holds its tokens from 64 i on. There is one slot and one block more than asked for: the last are scratch, written by
rows that pad a batch. On a CPU the cache is only address space: it takes memory as tokens are written, and gives it
back when blocks are freed. On a GPU, of layers whose heads differ, each block is one piece of memory, which is read as
the heads of its group.
"""

import math
import mmap
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from scoring.decoder.block_pool import BLOCK, blocks_of
from scoring.decoder.layer_groups import LayerGroups, Shape, group_layers
from scoring.decoder.model import CachedModel

_NO_RESERVE = 0x4000  # Linux's MAP_NORESERVE, which Python names from 3.13 on
FP8 = torch.float8_e4m3fn  # three bits of mantissa, up to 448
FORBIDDEN = 4  # tokens that a slot can suppress until a length is reached: its end tokens


@dataclass(frozen=True)
class SamplingParams:
    """Sampling parameters of a slot; temperature 0 takes the likeliest token.

    `forbidden` tokens (at most 4) are suppressed while the slot holds fewer than `forbidden_until` tokens, prompt
    included. The same seed gives the same tokens, whatever shares the batch. All tokens of a `constrained` slot are
    picked by `Decoder.sample`, none by a step.
    """

    temperature: float = 0.0
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0
    forbidden: tuple[int, ...] = ()
    forbidden_until: int = 0
    constrained: bool = False
    min_p: float = 0.0  # 0: all


class LayerCache(NamedTuple):
    """A layer's keys and values [KV heads, blocks + 1, 64, D], and the table [slots + 1, width] of its group.

    Of an overlaid cache they are [heads of all, 64, D] from the layer's first head on: what the table says, plus the
    head's number, tells where a block's keys of a head are.
    """

    keys: Tensor
    values: Tensor
    table: Tensor


class Store(NamedTuple):
    """Keys and values [layers of a group, KV heads, blocks + 1, 64, D] of all layers whose heads have one shape.

    Of an overlaid cache they are [blocks + 1, numbers of a block], of all layers.
    """

    keys: Tensor
    values: Tensor


class KVCache:
    """Tensors over slots; `lengths` counts the tokens in the cache, `tokens` is each slot's next input.

    Keys and values, of each shape of heads, are of any slot's tokens, and of the model's type unless another is given;
    `table` [groups, slots + 1, width] int32 names the blocks of each group; `layer` finds a layer's.
    `blocks` 0: as many as all slots need at full length; slot s then begins in group g with its own, from
    (g * slots + s) * width on, and keeps them on a CPU (`in_place`).
    """

    def __init__(
        self,
        model: CachedModel,
        slots: int,
        max_length: int,
        blocks: int = 0,
        dtype: torch.dtype | None = None,
        groups: LayerGroups | None = None,
    ) -> None:
        device, dtype = model.device, dtype or model.dtype
        rows = slots + 1
        self.slots = slots
        self.max_length = max_length
        self.width = blocks_of(max_length)
        self.groups = groups or group_layers(model.kept, max_length)
        whole = self.groups.count * slots * self.width
        self.blocks = min(blocks or whole, whole)
        self.in_place = device.type == "cpu" and self.blocks == whole
        self.overlaid = _overlaid(device, self.groups)
        self.dtype = dtype
        self._mapped: list[tuple[mmap.mmap, Shape]] = []
        # Each shape has a place for every block, which on a CPU takes no memory until it is written.
        self.stores = {} if self.overlaid else {shape: self._store(shape, device) for shape in self.groups.shapes}
        pieces = (self.blocks + 1 if self.overlaid else 0, self.groups.size * BLOCK)
        self._pieces = Store(*(torch.zeros(pieces, dtype=dtype, device=device) for _ in range(2)))
        self._units = [self.groups.size // width if self.overlaid else 1 for _, width in self.groups.shapes]
        tables = (self.groups.count, rows, self.width)
        self.table = torch.full(tables, self.blocks, dtype=torch.int32, device=device)
        if self.blocks == whole:
            order = torch.arange(self.blocks, dtype=torch.int32, device=device)
            self.table[:, :slots] = order.view(self.groups.count, slots, -1)
        self.table *= torch.tensor(self._units, dtype=torch.int32, device=device)[:, None, None]
        self.lengths = torch.zeros(rows, dtype=torch.int32, device=device)
        self.tokens = torch.zeros(rows, dtype=torch.int64, device=device)
        self.seen = torch.zeros(rows, model.vocabulary, dtype=torch.uint8, device=device)
        self.temperature = torch.zeros(rows, dtype=torch.float32, device=device)
        self.top_k = torch.zeros(rows, dtype=torch.int32, device=device)
        self.top_p = torch.ones(rows, dtype=torch.float32, device=device)
        self.min_p = torch.zeros(rows, dtype=torch.float32, device=device)
        self.penalty = torch.ones(rows, dtype=torch.float32, device=device)
        self.seed = torch.zeros(rows, dtype=torch.int64, device=device)
        self.forbidden = torch.full((rows, FORBIDDEN), -1, dtype=torch.int32, device=device)
        self.forbidden_until = torch.zeros(rows, dtype=torch.int32, device=device)
        self.constrained = torch.zeros(rows, dtype=torch.int32, device=device)
        self.long = torch.zeros(rows, dtype=torch.int32, device=device)  # 1: the second of two rotary tables
        self.adapter = torch.full((rows,), -1, dtype=torch.int32, device=device)  # for kernels; -1: the base

    @property
    def keys(self) -> Tensor:
        """Keys of a model whose layers have heads of one shape."""
        [store] = self.stores.values()
        return store.keys

    @property
    def values(self) -> Tensor:
        """Values of a model whose layers have heads of one shape."""
        [store] = self.stores.values()
        return store.values

    def layer(self, index: int) -> LayerCache:
        """Keys, values and table of a layer."""
        group, place = self.groups.places[index]
        heads, width = self.groups.shapes[group]
        if self.overlaid:
            keys, values = (each.view(-1, BLOCK, width)[place * heads :] for each in self._pieces)
            return LayerCache(keys, values, self.table[group])
        store = self.stores[heads, width]
        return LayerCache(store.keys[place], store.values[place], self.table[group])

    @property
    def memory(self) -> list[Tensor]:
        """All memory of keys and values."""
        return [each for store in (*self.stores.values(), self._pieces) for each in store]

    @property
    def apart(self) -> int:
        """Blocks between those of a layer's heads, for kernels: in an overlaid cache a block's heads are together."""
        return 1 if self.overlaid else self.blocks + 1

    def in_order(self, index: int) -> tuple[Tensor, Tensor]:
        """A layer's keys and values [KV heads, slots, tokens, D], each slot's in order, of a cache in place."""
        group, place = self.groups.places[index]
        heads, width = self.groups.shapes[group]
        own = slice(group * self.slots * self.width, (group + 1) * self.slots * self.width)
        keys, values = (each[place, :, own] for each in self.stores[heads, width])
        return keys.view(heads, self.slots, -1, width), values.view(heads, self.slots, -1, width)

    @property
    def narrow(self) -> bool:
        """True if keys and values are kept in FP8, as they are, without a scale; else they are in the model's type."""
        return self.dtype == FP8

    def open(self, slot: int, sampling: SamplingParams, long: bool = False) -> None:
        """Empty a slot, set its sampling parameters and which of two rotary tables it uses.

        Raises ValueError for more than 4 forbidden tokens.
        """
        if len(sampling.forbidden) > FORBIDDEN:
            raise ValueError(f"{len(sampling.forbidden)} forbidden tokens; a slot holds {FORBIDDEN}")
        self.lengths[slot] = 0
        self.tokens[slot] = 0
        self.seen[slot].zero_()
        self.temperature[slot] = sampling.temperature
        self.top_k[slot] = sampling.top_k
        self.top_p[slot] = sampling.top_p
        self.min_p[slot] = sampling.min_p
        self.penalty[slot] = sampling.repetition_penalty
        self.seed[slot] = sampling.seed
        padded = [*sampling.forbidden, *[-1] * (FORBIDDEN - len(sampling.forbidden))]
        self.forbidden[slot] = torch.tensor(padded, dtype=torch.int32, device=self.forbidden.device)
        self.forbidden_until[slot] = sampling.forbidden_until
        self.constrained[slot] = sampling.constrained
        self.long[slot] = long

    def entries(self, grown: Iterable[tuple[int, int, int, int]]) -> list[tuple[int, int]]:
        """Places in the tables, counted through them, and what they say, of (group, slot, a block's number, block)."""
        rows, units = self.slots + 1, self._units
        return [
            ((group * rows + slot) * self.width + number, block * units[group]) for group, slot, number, block in grown
        ]

    def extend(self, grown: Iterable[tuple[int, int, int, int]]) -> None:
        """Enter blocks in the tables, as `entries` tells."""
        told = torch.tensor(self.entries(grown), dtype=torch.int64, device=self.table.device)
        self.table.view(-1)[told[:, 0]] = told[:, 1].int()

    def copy(self, group: int, source: int, target: int) -> None:
        """Copy a group's block, keys and values, to another block."""
        if self.overlaid:
            for piece in self._pieces:
                piece[target] = piece[source]
            return
        for cache in self.stores[self.groups.shapes[group]]:
            cache[:, :, target] = cache[:, :, source]

    def discard(self, blocks: Iterable[int]) -> None:
        """Give back the memory of blocks, if the platform can; their contents are lost."""
        if not self._mapped:
            return
        runs = list(_runs(sorted(blocks)))
        for mapped, (heads, width) in self._mapped:
            size = BLOCK * width * self.dtype.itemsize
            for row in range(self.groups.layers((heads, width)) * heads):
                for start, end in runs:
                    begin = (row * (self.blocks + 1) + start) * size
                    first, last = -(-begin // mmap.PAGESIZE), (begin + (end - start) * size) // mmap.PAGESIZE
                    if first < last:
                        mapped.madvise(mmap.MADV_DONTNEED, first * mmap.PAGESIZE, (last - first) * mmap.PAGESIZE)

    def _store(self, shape: Shape, device: torch.device) -> Store:
        """Keys and values of zeros."""
        heads, width = shape
        size = (self.groups.layers(shape), heads, self.blocks + 1, BLOCK, width)
        if device.type != "cpu" or sys.platform != "linux":
            return Store(*(torch.zeros(size, dtype=self.dtype, device=device) for _ in range(2)))
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE
        mapped = [mmap.mmap(-1, math.prod(size) * self.dtype.itemsize, flags=flags) for _ in range(2)]
        self._mapped += [(each, shape) for each in mapped]
        return Store(*(torch.frombuffer(each, dtype=self.dtype).view(size) for each in mapped))

    def bytes(self) -> int:
        """Most bytes of keys and values that blocks hold."""
        return 2 * (self.blocks + 1) * self.groups.size * BLOCK * self.dtype.itemsize


def _overlaid(device: torch.device, groups: LayerGroups) -> bool:
    """True if groups whose heads differ are to read the same memory: on a GPU each place of a block takes some."""
    return device.type != "cpu" and len(set(groups.shapes)) > 1


def _runs(blocks: list[int]) -> Iterable[tuple[int, int]]:
    """Cut ascending numbers into runs of consecutive ones: first, and one past the last."""
    start = 0
    for place in range(1, len(blocks) + 1):
        if place == len(blocks) or blocks[place] != blocks[place - 1] + 1:
            yield blocks[start], blocks[place - 1] + 1
            start = place
