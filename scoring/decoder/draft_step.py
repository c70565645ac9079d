"""Launches one step with drafts: a slot's last token and those drafted after it are rows of one batch.

Their keys and values are written before attention reads them, so that each row is computed as if it were a step of its
own; the weights are read once for all.
"""

from collections.abc import Sequence

import numpy as np
import torch
import triton  # type: ignore[import-not-found,unused-ignore]
from torch import Tensor

from scoring.decoder.absent import given
from scoring.decoder.adapter_step import Tiles
from scoring.decoder.block_pool import BLOCK
from scoring.decoder.drafts import SIZES, SLOTS, Placed
from scoring.decoder.head_shapes import Heads
from scoring.decoder.kv_cache import KVCache
from scoring.decoder.model import DecoderLayer, DecoderModel, shapes_of
from scoring.decoder.token_rows import TokenRows
from scoring.kernels import decode_sampling, draft_attention

_QUERIES, _WIDE, _FEWER = 64, 256, 32  # of an attention program, over its tokens and a group's heads; of wider heads
_TOKENS = 8  # of these, tokens


class DraftLayout:
    """Layout of a step's numbers in one int32 tensor, so that one copy uploads them all.

    Rows: token, slot, position, and first row of the slot's. Tiles, for attention: first row, tokens, slot, position,
    and the slot's tokens before it.
    """

    def __init__(self, tile: int) -> None:
        self.tile = tile
        self.tiles = self.most(SIZES[-1])
        self.size = 4 * SIZES[-1] + 5 * self.tiles

    def most(self, rows: int) -> int:
        """Largest number of tiles of a step of `rows` rows: one of each slot is not full."""
        return min(rows, SLOTS + rows // self.tile)

    def cut(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Split into rows [4, rows] and tiles [5, tiles]."""
        rows, tiles = torch.split(numbers, [4 * SIZES[-1], 5 * self.tiles])
        return rows.view(4, -1), tiles.view(5, -1)

    def fill(self, numbers: Tensor, placed: Sequence[Placed], scratch: int) -> None:
        """Write the rows of slots, one after another; those left are of the scratch slot, of length 0."""
        rows, tiles = (view.numpy() for view in self.cut(numbers))
        row = tile = 0
        for slot, at, tokens in placed:
            own = rows[:, row : row + len(tokens)]
            own[0], own[1], own[2], own[3] = tokens, slot, np.arange(at, at + len(tokens)), row
            for first in range(0, len(tokens), self.tile):
                tiles[:, tile] = row + first, min(self.tile, len(tokens) - first), slot, at + first, first
                tile += 1
            row += len(tokens)
        rows[:3, row:] = [[0], [scratch], [0]]
        rows[3, row:] = np.arange(row, SIZES[-1])
        tiles[:, tile:] = 0


class DraftStep(TokenRows):
    """Launches the kernels of one step with drafts, of up to 32 rows of up to 8 slots; every row is sampled."""

    def __init__(self, model: DecoderModel, state: KVCache, pdl: bool = True) -> None:
        tokens = [(_QUERIES if own.wide <= _WIDE else _FEWER) // _group(own) for own in shapes_of(model)]
        self.layout = DraftLayout(max(1, min(_TOKENS, *tokens)))
        super().__init__(model, state, SIZES[-1], pdl=pdl)
        self.numbers = torch.zeros(self.layout.size, dtype=torch.int32, device=model.device)
        rows, self.tiled = self.layout.cut(self.numbers)
        self.tokens, self.positions, self.firsts = rows[0], rows[2], rows[3]
        self.buffers.slots = rows[1]
        self.order = torch.arange(SIZES[-1], dtype=torch.int32, device=model.device)

    def queries(self, heads: Heads) -> int:
        return max(16, self.layout.tile * _group(heads))

    def spans(self, rows: int, heads: Heads) -> int:
        return self.layout.most(rows) * heads.keys * self.splits(rows, False, heads)

    def splits(self, rows: int, far: bool = False, heads: Heads | None = None) -> int:
        return super().splits(2, False, heads)  # a step has few slots, and a tile holds several rows of one

    def tiles_of(self, rows: int) -> Tiles:
        return Tiles(self.layout.most(rows), self.layout.tile, self.tiled, self.layout.tiles)

    def attention(self, rows: int, index: int, layer: DecoderLayer) -> None:
        model, b, state, own = self.model, self.buffers, self.state, layer.attention
        (heads, tile), cache = self.shape(index), state.layer(index)
        splits = self.splits(rows, False, heads)
        draft_attention.attend_drafts[(self.layout.most(rows) * heads.keys, splits)](
            b.q, cache.keys, cache.values, b.attended, b.part, b.stats, b.arrived,
            given(model.alibi, b.x), self.tiled, cache.table, given(own.sinks, b.x), self.layout.tiles,
            *self._paging(), own.scale, own.cap,
            BLOCK=BLOCK, H=heads.queries, KV=heads.keys, D=heads.width, DP=heads.wide, GG=_group(heads),
            GP=tile.queries, BT=tile.keys, LEAST=self.least, SPLITS=splits, WINDOW=own.window,
            ALIBI=model.alibi is not None, CAP=own.cap > 0, SINKS=own.sinks is not None, PRECISION=self.precision,
            PDL=self.pdl, num_warps=4 if tile.queries * heads.wide <= 4096 else 8, **self._launch(),
        )  # fmt: skip

    def sample(self, rows: int, logits: Tensor, advance: bool, masks: Tensor | None = None,
               slots: Tensor | None = None, masked: Tensor | None = None) -> None:  # fmt: skip
        """Sample every row's token, and keep each slot's as far as they were fed."""
        b, s = self.buffers, self.state
        super().sample(rows, logits, advance, masks, slots, masked)
        decode_sampling.accept[(rows,)](
            b.out, self.tokens, b.slots, self.positions, self.firsts, s.tokens, s.seen, s.lengths, rows,
            self.model.vocabulary, s.slots, BR=SIZES[-1], PDL=self.pdl, num_warps=1, **self._launch(),
        )  # fmt: skip


def _group(heads: Heads) -> int:
    """Queries of a token that share a head of keys, padded."""
    return int(triton.next_power_of_2(heads.shared))
