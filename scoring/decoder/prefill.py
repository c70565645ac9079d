"""Prefill on a GPU: chunks of several slots' prompts in one forward, of a fixed shape so that a graph can hold it."""

import itertools
from collections.abc import Sequence

import numpy as np
import torch
import triton  # type: ignore[import-not-found,unused-ignore]
from torch import Tensor

from scoring.decoder.absent import given
from scoring.decoder.adapter_step import Tiles
from scoring.decoder.chunk_size import PARTS, Span, longest_chunk
from scoring.decoder.kv_cache import FORBIDDEN, KVCache, SamplingParams
from scoring.decoder.model import DecoderLayer, DecoderModel, Linear
from scoring.decoder.prompt_attention import ChunkAttention, Run
from scoring.decoder.token_rows import TokenRows
from scoring.kernels import decode_prefill

_RECORD = 11 + FORBIDDEN  # numbers of a slot's sampling record

Part = tuple[int, int, Sequence[int]]  # slot, position of the first token, tokens


class Layout:
    """Layout of a chunk's numbers in one int32 tensor, so that one copy uploads them all.

    Rows: token, slot and position. Parts: row of the last token, slot, length after it. Tiles [6, tiles], for
    the attention kernel: first row, tokens, slot, position, first key, spans of keys before it.
    """

    def __init__(self, rows: int, parts: int, tile: int) -> None:
        self.rows, self.parts, self.tile = rows, parts, tile
        self.tiles = rows // tile + parts
        self.size = 3 * rows + 3 * parts + 6 * self.tiles

    def cut(self, numbers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Split into rows [3, rows], parts [3, parts] and tiles [6, tiles]."""
        rows, parts, tiles = torch.split(numbers, [3 * self.rows, 3 * self.parts, 6 * self.tiles])
        return rows.view(3, -1), parts.view(3, -1), tiles.view(6, -1)

    def fill(self, numbers: Tensor, parts: Sequence[Part], scratch: int, spans: Sequence[Sequence[Span]] = ()) -> None:
        """Write a chunk, part after part; unused rows and parts go to the scratch slot, of length 0.

        `spans`: of each part, the spans of keys that the attention kernel does not read; without, it reads all.
        """
        tokens, ends, tiles = (view.numpy() for view in self.cut(numbers))
        row = tile = 0
        for number, (slot, position, ids) in enumerate(parts):
            count = len(ids)
            tokens[0, row : row + count] = ids
            tokens[1, row : row + count] = slot
            tokens[2, row : row + count] = np.arange(position, position + count)
            ends[:, number] = row + count - 1, slot, position + count
            offsets = np.arange(0, count, self.tile)
            taken = tiles[:, tile : tile + len(offsets)]
            taken[0], taken[1] = row + offsets, np.minimum(count - offsets, self.tile)
            taken[2], taken[3] = slot, position + offsets
            own = spans[number] if spans else ()
            taken[4], taken[5] = sum(keys for _, keys in own), len(own)
            row, tile = row + count, tile + len(offsets)
        tokens[:, row:] = [[0], [scratch], [0]]
        ends[:, len(parts) :] = [[0], [scratch], [0]]
        tiles[1, tile:] = 0


def pieces(parts: Sequence[Part], rows: int, most: int) -> list[list[tuple[int, Part]]]:
    """Cut parts into chunks of up to `rows` tokens and `most` parts, each part with its index among those given."""
    found: list[list[tuple[int, Part]]] = [[]]
    room = rows
    for place, (slot, position, ids) in enumerate(parts):
        done = 0
        while done < len(ids):
            if not room or len(found[-1]) == most:
                found.append([])
                room = rows
            some = ids[done : done + room]
            found[-1].append((place, (slot, position + done, some)))
            done, room = done + len(some), room - len(some)
    return found


def runs_of(parts: Sequence[Part], spans: Sequence[Sequence[Span]]) -> list[Run]:
    """Rows of a chunk's parts, with the spans of keys before each."""
    firsts = itertools.accumulate((len(ids) for _, _, ids in parts), initial=0)
    return [(row, len(ids), own) for row, (_, _, ids), own in zip(firsts, parts, spans, strict=False)]


class Prefiller(TokenRows):
    """Launches the kernels of one chunk; a row is a prompt's token, and a part's last row gets logits."""

    def __init__(self, model: DecoderModel, state: KVCache, pdl: bool = True) -> None:
        longest = longest_chunk(model)
        super().__init__(model, state, longest, pdl=pdl, picked=1)
        self.longest = longest
        self.attending = self._attending(longest)
        parts = min(PARTS, state.slots)
        self.layout = Layout(longest, parts, self.attending.queries)
        self.numbers = torch.zeros(self.layout.size, dtype=torch.int32, device=model.device)
        rows, self.ends, self.tiled = self.layout.cut(self.numbers)
        self.tokens, self.positions = rows[0], rows[2]
        self.attending.slots = self.ends[1]
        self.buffers.slots = rows[1]
        self.order = torch.arange(longest, dtype=torch.int32, device=model.device)
        self.last = torch.zeros(parts, model.hidden, dtype=model.dtype, device=model.device)
        self.logits = torch.zeros(parts, model.vocabulary, dtype=model.dtype, device=model.device)
        self.runs: Sequence[Run] = ()  # of the chunk being enqueued

    def piece(self, rows: int, runs: Sequence[Run] = ()) -> None:
        """Enqueue the chunk that `numbers` describes, of at most `rows` tokens; `logits` are those of its parts.

        `runs` are the parts, if the prefixes of some are taken apart.
        """
        self.runs = runs
        self.mark(rows)
        b, linear = self.buffers, self.model.head
        self.embed(rows)
        for index, layer in enumerate(self.model.layers):
            self._layer_blas(rows, index, layer)
        torch.index_select(b.normed, 0, self.ends[0], out=self.last)
        self.project(self.last, linear, self.logits)
        if linear.bias is not None:
            self.logits += linear.bias
        self.model.finish(self.logits)

    def _attending(self, rows: int) -> ChunkAttention:
        return ChunkAttention(self.model, self.state, rows)

    def project(self, x: Tensor, linear: Linear, out: Tensor) -> None:
        """Compute out [parts, N] = x W^T."""
        torch.mm(x, linear.full.t(), out=out)

    def tiles_of(self, rows: int) -> Tiles:
        return Tiles(self._tiles(rows), self.layout.tile, self.tiled, self.layout.tiles)

    def _tiles(self, rows: int) -> int:
        """Largest number of tiles of a chunk of `rows` rows."""
        return rows // self.layout.tile + self.layout.parts

    def mark(self, rows: int) -> None:
        """Mark the chunk's tokens as seen, and set the lengths of its slots."""
        b, s = self.buffers, self.state
        decode_prefill.mark[(triton.cdiv(rows, 256),)](
            self.tokens, b.slots, self.ends[1], self.ends[2], s.seen, s.lengths, rows, self.model.vocabulary,
            self.layout.parts, BT=256, BP=triton.next_power_of_2(self.layout.parts), PDL=self.pdl, num_warps=4,
            **self._launch(),
        )  # fmt: skip

    def attention(self, rows: int, index: int, layer: DecoderLayer) -> None:
        b = self.buffers
        self.attending.attend(
            index, b.q, b.attended, self.tiled, self._tiles(rows),
            given(self.model.alibi, b.x), self.pdl, self._launch(), self.runs,
        )  # fmt: skip


def record(slot: int, sampling: SamplingParams, long: bool = False) -> list[int]:
    """Record of a slot for `admit`; raises ValueError for more than 4 forbidden tokens."""
    if len(sampling.forbidden) > FORBIDDEN:
        raise ValueError(f"{len(sampling.forbidden)} forbidden tokens; a slot holds {FORBIDDEN}")
    told = (sampling.temperature, sampling.top_p, sampling.repetition_penalty, sampling.min_p)
    wide = np.array(told, dtype=np.float32)
    seed = np.array([sampling.seed], dtype=np.int64)
    held = [*sampling.forbidden, *[-1] * (FORBIDDEN - len(sampling.forbidden))]
    numbers = [
        *wide.view(np.int32).tolist(),
        *seed.view(np.int32).tolist(),
        int(sampling.constrained),
        int(long),
        *held,
    ]
    return [slot, sampling.top_k, sampling.forbidden_until, *numbers]


def admit(model: DecoderModel, state: KVCache, records: Tensor, count: int) -> None:
    """Enqueue the equivalent of `KVCache.open` for records [.., 15] int32; a prompt's first chunk sets its length."""
    decode_prefill.admit[(count, triton.cdiv(model.vocabulary, 4096))](
        records, state.seen, state.temperature, state.top_k, state.top_p, state.min_p, state.penalty, state.seed,
        state.forbidden, state.forbidden_until, state.constrained, state.long, model.vocabulary, WIDTH=_RECORD,
        HELD=FORBIDDEN, BV=4096, num_warps=4,
    )  # fmt: skip


def extend(state: KVCache, grown: Tensor) -> None:
    """Enqueue the equivalent of `KVCache.extend` for grown [n, 2] int32: a place in the tables, and the block."""
    decode_prefill.extend[(triton.cdiv(len(grown), 256),)](grown, state.table, len(grown), BN=256, num_warps=4)
