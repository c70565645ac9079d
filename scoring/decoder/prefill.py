"""Prefill on a GPU: chunks of several slots' prompts in one forward, of a fixed shape so that a graph can hold it."""

from collections.abc import Sequence

import numpy as np
import torch
import triton  # type: ignore[import-not-found,unused-ignore]
from torch import Tensor

from scoring.decoder.block_pool import BLOCK
from scoring.decoder.decode_step import _or
from scoring.decoder.kv_cache import FORBIDDEN, KVCache, SamplingParams
from scoring.decoder.model import DecoderLayer, DecoderModel
from scoring.decoder.token_rows import TokenRows
from scoring.kernels import decode_prefill

LONGEST = 1024  # most tokens of a chunk
_PARTS = 64  # slots whose prompts a chunk may hold
_QUERIES = {2: 64, 4: 16}  # queries of an attention program, over a group's heads, by bytes per element
_RECORD = 8 + FORBIDDEN  # numbers of a slot's sampling record

Part = tuple[int, int, Sequence[int]]  # slot, position of the first token, tokens


class Layout:
    """Layout of a chunk's numbers in one int32 tensor, so that one copy uploads them all.

    Rows: token, slot and position. Parts: row of the last token, slot, length after it. Tiles [4, tiles], for
    the attention kernel: first row, tokens, slot, position.
    """

    def __init__(self, rows: int, parts: int, tile: int) -> None:
        self.rows, self.parts, self.tile = rows, parts, tile
        self.tiles = rows // tile + parts
        self.size = 3 * rows + 3 * parts + 4 * self.tiles

    def cut(self, numbers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Split into rows [3, rows], parts [3, parts] and tiles [4, tiles]."""
        rows, parts, tiles = torch.split(numbers, [3 * self.rows, 3 * self.parts, 4 * self.tiles])
        return rows.view(3, -1), parts.view(3, -1), tiles.view(4, -1)

    def fill(self, numbers: Tensor, parts: Sequence[Part], scratch: int) -> None:
        """Write a chunk, part after part; unused rows and parts go to the scratch slot, of length 0."""
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


class Prefiller(TokenRows):
    """Launches the kernels of one chunk; a row is a prompt's token, and a part's last row gets logits."""

    def __init__(self, form: DecoderModel, state: KVCache, pdl: bool = True) -> None:
        super().__init__(form, state, LONGEST, pdl=pdl, picked=1)
        self.heads = triton.next_power_of_2(form.heads // form.kv_heads)
        parts = min(_PARTS, state.slots)
        self.layout = Layout(LONGEST, parts, max(1, _QUERIES[form.dtype.itemsize] // self.heads))
        self.numbers = torch.zeros(self.layout.size, dtype=torch.int32, device=form.device)
        rows, self.ends, self.tiled = self.layout.cut(self.numbers)
        self.tokens, self.positions = rows[0], rows[2]
        self.buffers.slots = rows[1]
        self.order = torch.arange(LONGEST, dtype=torch.int32, device=form.device)
        self.last = torch.zeros(parts, form.hidden, dtype=form.dtype, device=form.device)
        self.logits = torch.zeros(parts, form.vocabulary, dtype=form.dtype, device=form.device)
        narrow = form.dtype.itemsize < 4 and self.wide <= 128
        self.keys, self.stages = (64, 2) if narrow else (32, 2 if form.dtype.itemsize < 4 else 1)

    def piece(self, rows: int) -> None:
        """Enqueue the chunk that `numbers` describes, of at most `rows` tokens; `logits` are those of its parts."""
        self.mark(rows)
        b, linear = self.buffers, self.form.head
        self.embed(rows)
        for index, layer in enumerate(self.form.layers):
            self._layer_blas(rows, index, layer)
        torch.index_select(b.normed, 0, self.ends[0], out=self.last)
        torch.mm(self.last, linear.full.t(), out=self.logits)
        if linear.bias is not None:
            self.logits += linear.bias
        self.form.finish(self.logits)

    def mark(self, rows: int) -> None:
        """Mark the chunk's tokens as seen, and set the lengths of its slots."""
        b, s = self.buffers, self.state
        decode_prefill.mark[(triton.cdiv(rows, 256),)](
            self.tokens, b.slots, self.ends[1], self.ends[2], s.seen, s.lengths, rows, self.form.vocabulary,
            self.layout.parts, BT=256, BP=triton.next_power_of_2(self.layout.parts), PDL=self.pdl, num_warps=4,
            **self._launch(),
        )  # fmt: skip

    def attention(self, rows: int, index: int, layer: DecoderLayer) -> None:
        form, b, state = self.form, self.buffers, self.state
        decode_prefill.attend_prompt[(rows // self.layout.tile + self.layout.parts, form.kv_heads)](
            b.q, state.keys[index], state.values[index], b.attended, _or(form.alibi, b.x), self.tiled,
            state.table, self.layout.tiles, *self._paging(), layer.attention.scale, layer.attention.cap,
            BLOCK=BLOCK, H=form.heads, KV=form.kv_heads, D=form.head_dim, DP=self.wide, GP=self.heads,
            BM=self.layout.tile, BN=self.keys, WINDOW=layer.attention.window, ALIBI=form.alibi is not None,
            CAP=layer.attention.cap > 0, PRECISION=self.precision, PDL=self.pdl,
            num_warps=4, num_stages=self.stages, **self._launch(),
        )  # fmt: skip


def record(slot: int, sampling: SamplingParams) -> list[int]:
    """Record of a slot for `admit`; raises ValueError for more than 4 forbidden tokens."""
    if len(sampling.forbidden) > FORBIDDEN:
        raise ValueError(f"{len(sampling.forbidden)} forbidden tokens; a slot holds {FORBIDDEN}")
    wide = np.array([sampling.temperature, sampling.top_p, sampling.repetition_penalty], dtype=np.float32)
    seed = np.array([sampling.seed], dtype=np.int64)
    held = [*sampling.forbidden, *[-1] * (FORBIDDEN - len(sampling.forbidden))]
    numbers = [*wide.view(np.int32).tolist(), *seed.view(np.int32).tolist(), *held]
    return [slot, sampling.top_k, sampling.forbidden_until, *numbers]


def admit(form: DecoderModel, state: KVCache, records: Tensor, count: int) -> None:
    """Enqueue the equivalent of `KVCache.open` for records [.., 12] int32; a prompt's first chunk sets its length."""
    decode_prefill.admit[(count, triton.cdiv(form.vocabulary, 4096))](
        records, state.seen, state.temperature, state.top_k, state.top_p, state.penalty, state.seed, state.forbidden,
        state.forbidden_until, form.vocabulary, WIDTH=_RECORD, HELD=FORBIDDEN, BV=4096, num_warps=4,
    )  # fmt: skip


def extend(state: KVCache, grown: Tensor) -> None:
    """Enqueue the equivalent of `KVCache.extend` for grown [n, 2] int32: a place in the table, and the block."""
    decode_prefill.extend[(triton.cdiv(len(grown), 256),)](grown, state.table, len(grown), BN=256, num_warps=4)
