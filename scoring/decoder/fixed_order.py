"""Steps and chunks of prompts on a GPU whose rows are the same bits in every batch: for `--batch-invariant`.

Steps and prompts use the same kernels: one product for any number of rows, and one attention over spans of keys whose
length the deployment fixes. A row's number is then a function of its own tokens alone, whether they came as a prompt,
in pieces, out of a cached prefix or one by one.
"""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
import triton  # type: ignore[import-not-found,unused-ignore]
from torch import Tensor

from scoring.decoder.absent import given
from scoring.decoder.block_pool import BLOCK
from scoring.decoder.buffers import packed
from scoring.decoder.chunk_size import LONGEST_CHUNK, Span
from scoring.decoder.cuda_backend import CudaBackend
from scoring.decoder.decode_step import Launcher
from scoring.decoder.head_shapes import Heads
from scoring.decoder.kv_cache import KVCache, LayerCache
from scoring.decoder.model import CachedModel, DecoderLayer, Linear
from scoring.decoder.prefill import Prefiller
from scoring.decoder.product_tile import ProductTile
from scoring.decoder.prompt_attention import ChunkAttention, Run
from scoring.kernels import fixed_order

#: Returns the launch options of the next kernel.
Launch = Callable[[], dict[str, Any]]

#: Queries of an attention program, over its tokens and a group's heads, and its warps: of prompts, and of steps where
#: the smaller tile gives the same bits.
QUERIES, WARPS = 64, 4
FEWER, FEWER_WARPS = 16, 1
_TRIED = 64  # rows of a product that are compared, at its start, middle and end
_COMPARED = 1 << 20  # outputs at least, before two ways are taken for one
_MOST_DRAWS = 1 << 13
_LEAST_SPAN = 256  # keys of a span
_MOST_SPANS = 32  # of the longest sequence
_BUSY = 264  # programs that fill a GPU: from there on, a program takes all spans of its keys
_FAR_SPANS = 8  # spans of a row, above which a step divides them over programs all the same
_FAR_PROGRAMS = 16_384  # most programs of that step


#: Tiles by the most rows that they are for, for few outputs and for many; all add up a row's inputs in one order.
#: Those that were fastest on an H200 over the shapes of Llama-1.1B.
TILES = {
    64: (ProductTile(64, 16, 256, 4, 3), ProductTile(64, 128, 64, 4, 4)),
    256: (ProductTile(64, 64, 128, 4, 3), ProductTile(128, 128, 64, 4, 3)),
    1 << 30: (ProductTile(128, 128, 64, 8, 4), ProductTile(256, 128, 64, 8, 3)),
}
_FEW = 4096  # outputs
#: Tiles of experts' grouped products, which are the kernel's whatever the rows.
_GROUPED = {1 << 30: (ProductTile(64, 64, 64, 4, 4), ProductTile(64, 128, 64, 4, 4))}


def tile_of(rows: int, outputs: int, item: int) -> ProductTile:
    """Tile for a product of `rows` rows and `outputs` outputs, with numbers of `item` bytes and the stages that fit."""
    few, many = next(tiles for most, tiles in TILES.items() if rows <= most)
    tile = few if outputs <= _FEW else many
    return tile.fitting(item)


def multiply(x: Tensor, weight: Tensor, out: Tensor, pdl: bool, launch: dict[str, Any],
             tile: ProductTile | None = None) -> None:  # fmt: skip
    """Enqueue out [M, N] = x [M, K] W^T of a weight [N, K]."""
    (rows, inputs), outputs = x.shape, weight.shape[0]
    own = tile or tile_of(rows, outputs, x.dtype.itemsize)
    fixed_order.product[(triton.cdiv(rows, own.rows) * triton.cdiv(outputs, own.outputs),)](
        x, weight, out, rows, outputs, inputs, BM=own.rows, BN=own.outputs, BK=own.inputs,
        EVEN=inputs % own.inputs == 0, PRECISION="ieee" if x.dtype == torch.float32 else "tf32", PDL=pdl,
        num_warps=own.warps, num_stages=own.stages, **launch,
    )  # fmt: skip


class OrderedProducts:
    """Products of the shapes that launches have: cuBLAS's where it adds up in the kernel's order, else the kernel's.

    cuBLAS mostly does, and is faster; where it cuts the inputs into parts it does not. That is found by trying each
    shape before it is captured.
    """

    def __init__(self) -> None:
        self._alike: dict[tuple[int, int, int], bool] = {}

    def enqueue(self, x: Tensor, weight: Tensor, out: Tensor, pdl: bool, launch: Launch) -> None:
        """Enqueue out [M, N] = x [M, K] W^T; a shape that is captured before it was tried takes the kernel."""
        key = (len(x), *weight.shape)
        if key not in self._alike and x.device.type == "cuda" and not torch.cuda.is_current_stream_capturing():
            self._alike[key] = _alike(torch.empty_like(x), weight, torch.empty_like(out))
        if self._alike.get(key):
            launch()  # what it says of the next kernel is not for cuBLAS's
            torch.mm(x, weight.t(), out=out)
        else:
            multiply(x, weight, out, pdl, launch())


def _alike(x: Tensor, weight: Tensor, out: Tensor) -> bool:
    """Return True if cuBLAS gives rows of x [M, K] the bits that the kernel gives them; x and out are overwritten."""
    firsts = sorted({0, (len(x) - 1) // 2, max(0, len(x) - _TRIED)})
    generator = torch.Generator(x.device).manual_seed(0)

    def same() -> bool:
        x.normal_(generator=generator)
        torch.mm(x, weight.t(), out=out)
        for first in firsts:
            own = torch.empty_like(out[first : first + _TRIED])
            multiply(x[first : first + _TRIED], weight, own, False, {})
            if not torch.equal(own, out[first : first + _TRIED]):
                return False
        return True

    return _always(same, len(weight) * min(len(x), _TRIED * len(firsts)))


def _always(same: Callable[[], bool], outputs: int) -> bool:
    """Return True if two ways to compute `outputs` outputs give the same bits, on new inputs until enough are compared.

    Rounded to 16 bits, sums in another order differ in one number of thousands only. False where an output is of so few
    numbers that it would take too long.
    """
    draws = -(-_COMPARED // outputs)
    return draws <= _MOST_DRAWS and all(same() for _ in range(draws))


def span_keys(length: int) -> int:
    """Keys of a span, for sequences of up to `length` tokens: a power of two."""
    return max(_LEAST_SPAN, int(triton.next_power_of_2(-(-length // _MOST_SPANS))))


def attend(model: CachedModel, state: KVCache, index: int, q: Tensor, out: Tensor, tiled: Tensor, tiles: int,
           scratch: tuple[Tensor, Tensor, Tensor], splits: int, wide: int, pdl: bool,
           launch: dict[str, Any], fewer: bool = False) -> None:  # fmt: skip
    """Enqueue out [T, H, D] of q [T, H, D] for the first of `tiled` [4, tiles]; scratch: parts, statistics, counters.

    With several splits, and with `fewer` queries a program, tiles are of single tokens.
    """
    own, cache = model.layers[index].attention, state.layer(index)
    fixed_order.attend[(tiles * model.kv_heads, splits)](
        q, cache.keys, cache.values, out, *scratch, given(model.alibi, q), tiled, cache.table,
        given(own.sinks, q), tiled.shape[1], state.width, state.blocks + 1, own.scale, own.cap, BLOCK=BLOCK,
        H=model.heads, KV=model.kv_heads, D=model.head_dim, DP=wide, GG=group_of(model),
        GP=FEWER if fewer else QUERIES, BT=BLOCK,
        SPAN=span_keys(state.max_length), SPLITS=splits, WINDOW=own.window, ALIBI=model.alibi is not None,
        CAP=own.cap > 0, SINKS=own.sinks is not None, PRECISION="ieee" if model.dtype == torch.float32 else "tf32",
        PDL=pdl, num_warps=FEWER_WARPS if fewer else WARPS, num_stages=2, **launch,
    )  # fmt: skip


@torch.inference_mode()
def fewer_queries(model: CachedModel, wide: int) -> bool:
    """Return True if programs of fewer queries give the bits of those of more, over keys in two spans at random."""
    if group_of(model) > FEWER or model.device.type != "cuda":
        return False
    blocks, rows, width = 2 * _LEAST_SPAN // BLOCK, 5, model.heads * model.head_dim
    generator = torch.Generator(model.device).manual_seed(0)
    made: dict[str, Any] = {"dtype": model.dtype, "device": model.device}
    cache = torch.empty(2, 1, model.kv_heads, blocks + 1, BLOCK, model.head_dim, **made)
    q, scratch = torch.empty(rows, width, **made), torch.zeros(1, device=model.device)
    table = torch.arange(blocks, dtype=torch.int32, device=model.device)[None]
    own = LayerCache(cache[0, 0], cache[1, 0], table)
    state: Any = SimpleNamespace(layer=lambda index: own, width=blocks, blocks=blocks, max_length=blocks * BLOCK)
    positions = torch.tensor([0, 63, 200, 300, 511], dtype=torch.int32, device=model.device)
    order = torch.arange(rows, device=model.device)
    tiled = torch.stack((order, torch.ones_like(positions), 0 * positions, positions)).int()

    def same() -> bool:
        cache.normal_(generator=generator), q.normal_(generator=generator)
        found = []
        for fewer in (False, True):
            out = torch.zeros_like(q)
            attend(model, state, 0, q, out, tiled, rows, (scratch, scratch, scratch), 1, wide, False, {}, fewer)
            found.append(out)
        return torch.equal(*found)

    return _always(same, rows * width)


def group_of(model: CachedModel) -> int:
    """Queries of a key head, up to the next power of two."""
    return int(triton.next_power_of_2(model.heads // model.kv_heads))


class FixedStep(Launcher):
    """A `Launcher` of which every step, however many rows it has, runs the same products and attention."""

    folds: ClassVar[bool] = False
    grouped = _GROUPED

    @property
    def gemv_rows(self) -> int:
        return 0

    def __post_init__(self) -> None:
        self.keys = span_keys(self.state.max_length)
        self.products = OrderedProducts()
        super().__post_init__()
        device = self.model.device
        self.fewer = fewer_queries(self.model, self.wide)
        self.tiled = torch.zeros(4, self.rows, dtype=torch.int32, device=device)
        self.tiled[0] = torch.arange(self.rows, device=device)
        self.tiled[1] = 1

    def queries(self, heads: Heads) -> int:
        return group_of(self.model)

    def splits(self, rows: int, far: bool = False, heads: Heads | None = None) -> int:
        """Programs that share one key head of one row: one a span while they do not fill the GPU."""
        programs, spans = rows * self.model.kv_heads, triton.cdiv(self.state.max_length, self.keys)
        return int(spans if programs < _BUSY or (far and programs * spans <= _FAR_PROGRAMS) else 1)

    def is_far(self, rows: int, longest: int) -> bool:
        return longest > _FAR_SPANS * self.keys and self.splits(rows) < self.splits(rows, far=True)

    def forward(self, rows: int, far: bool = False) -> Tensor:
        slots = self.buffers.slots[:rows]
        self.tiled[2, :rows] = slots
        torch.index_select(self.state.lengths, 0, slots, out=self.tiled[3, :rows])
        return super().forward(rows, far)

    def attention(self, rows: int, index: int, layer: DecoderLayer) -> None:
        b = self.buffers
        attend(self.model, self.state, index, b.q, b.attended, self.tiled, rows, (b.part, b.stats, b.arrived),
               self.splits(rows, self.far), self.wide, self.pdl, self._launch(), self.fewer)  # fmt: skip

    def scatter(self, rows: int, index: int, layer: DecoderLayer) -> None:
        if layer.attention.q_norm is None:
            super().scatter(rows, index, layer)
        else:
            self.scatter_normed(rows, index, layer, layer.attention.qkv.bias)

    def product(self, x: Tensor, linear: Linear, out: Tensor, rows: int, add: bool = False) -> None:
        _product(self, self.products, x, linear, out, rows)


class FixedPrefiller(Prefiller):
    """A `Prefiller` with the products and the attention of a `FixedStep`."""

    grouped = _GROUPED

    def _attending(self, rows: int) -> "FixedAttention":
        self.products = OrderedProducts()
        return FixedAttention(self.model, self.state, rows, self.wide)

    def project(self, x: Tensor, linear: Linear, out: Tensor) -> None:
        self.products.enqueue(x, linear.full, out, False, dict)

    def product(self, x: Tensor, linear: Linear, out: Tensor, rows: int, add: bool = False) -> None:
        _product(self, self.products, x, linear, out, rows)


class FixedAttention(ChunkAttention):
    """A `ChunkAttention` by the kernel of steps; it takes nothing apart, so that a graph can hold it."""

    def __init__(self, model: CachedModel, state: KVCache, rows: int, wide: int) -> None:
        self.model, self.state, self.rows, self.wide = model, state, rows, wide
        self.queries = max(1, QUERIES // group_of(model))
        self._none = torch.zeros(1, dtype=torch.float32, device=model.device)
        self._arrived = torch.zeros(1, dtype=torch.int32, device=model.device)

    def spans(self, count: int, position: int, alone: bool = False, rows: int = LONGEST_CHUNK) -> list[Span]:
        return []

    def attend(self, index: int, q: Tensor, out: Tensor, tiled: Tensor, tiles: int, slopes: Tensor, pdl: bool,
               launch: dict[str, Any], runs: Sequence[Run] = ()) -> None:  # fmt: skip
        attend(self.model, self.state, index, q, out, tiled, tiles, (self._none, self._none, self._arrived), 1,
               self.wide, pdl, launch)  # fmt: skip

    def plan(self) -> None:
        return


def _product(launcher: Launcher, products: OrderedProducts, x: Tensor, linear: Linear, out: Tensor, rows: int) -> None:
    outputs, inputs = linear.full.shape
    source, target = packed(x, rows, inputs), packed(out, rows, outputs)
    products.enqueue(source, linear.full, target, launcher.pdl, launcher._launch)


class FixedCudaBackend(CudaBackend):
    """`CudaBackend` whose answers do not depend on the rest of their batch; it takes no drafts."""

    def _launchers(self, model: Any, state: KVCache, pdl: bool) -> tuple[Launcher, Prefiller]:
        return FixedStep(model, state, state.slots, pdl=pdl), FixedPrefiller(model, state, pdl=pdl)
