"""Launches one decode step's kernels for a batch of a fixed size; only enqueues, so a CUDA graph can hold it.

A layer runs in one of two forms. Up to `GEMV_ROWS` rows, every product is a Triton kernel that streams the weights
once per row and fuses the operations around it: five launches per layer. Above, products are cuBLAS's, which reads the
weights once for all rows, with small kernels between them.

With tensor parallelism, the outputs of `out` and `down` are partial sums. In Triton's products, rank 0 adds its part to
the residual stream and the other ranks replace the stream with theirs, so that the all-reduce yields it in no further
kernel. Outputs of cuBLAS's products are all-reduced in the model's dtype. A parallel layer has one all-reduce.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import triton  # type: ignore[import-not-found,unused-ignore]
from torch import Tensor

from scoring.decoder.absent import affine, epsilon, given, kind
from scoring.decoder.block_pool import BLOCK
from scoring.decoder.buffers import allocate, packed
from scoring.decoder.expert_step import ExpertLaunches
from scoring.decoder.fold_norm import gains_of, joint_bias, normed_products
from scoring.decoder.gemv_config import GemvTile, choose_tile, reading
from scoring.decoder.head_norms import HeadNorms
from scoring.decoder.head_shapes import Heads, KeyTile, key_tile
from scoring.decoder.kv_cache import FORBIDDEN, KVCache
from scoring.decoder.model import DecoderLayer, DecoderModel, Linear, Mixture, Mlp, Norm, shapes_of
from scoring.kernels import (
    decode_attention,
    decode_elementwise,
    decode_gemv,
    decode_int4_gemv,
    decode_sampling,
)

_MULTIPROCESSORS = 132
_SPAN = BLOCK  # keys of a span, at least
_LEAST = 64  # keys below which a span is not split
_SPLITS = 64  # most programs for one key head of a row: the last of them joins their results one by one
_FAR = 2048  # keys of a program, above which a step splits its long rows further
_FAR_LEAST = 1024  # keys below which a span is not split then
_FAR_PROGRAMS = 64 * _MULTIPROCESSORS  # of that step, if all rows were long
_CHUNK = 2048  # logits that one program of the sampling scan reads
_BLOCK = 256  # logits of which that scan leaves the highest and the mass
_AT_ONCE = 16  # blocks that the sampler's choice reads at a time
_GATHERED = 4096  # tokens among which it looks for thresholds; with more candidates it reads whole rows


@dataclass
class Launcher(HeadNorms, ExpertLaunches):
    """One decode step over a model and its state. `pdl` overlaps each kernel's start with the end of the one before.

    `rows` bounds the rows of a step, `picked` those that get logits and a token (0: all of them).
    """

    model: DecoderModel
    state: KVCache
    rows: int
    pdl: bool = True
    picked: int = 0
    tiles: dict[str, GemvTile] = field(default_factory=dict)  # by kernel name, for measurements

    def __post_init__(self) -> None:
        model = self.model
        self.shapes = {own: key_tile(own, self.queries(own), model.dtype.itemsize) for own in shapes_of(model)}
        self.wide = max(own.wide for own in self.shapes)
        self.least = _LEAST
        self.gathered = _GATHERED
        self.chunks = triton.cdiv(model.vocabulary, _CHUNK)
        self.precision = "ieee" if model.dtype == torch.float32 else "tf32"
        folded = normed_products(model) if self.folds else []
        self._gains = {id(linear): gains_of(norm, linear) for norm, linear in folded}
        picked = self.picked or self.rows
        self.far = False  # the step being enqueued splits long rows further
        self.buffers = allocate(model, self.rows, picked, self._parts(picked), self.chunks, _CHUNK // _BLOCK, _GATHERED)
        self.reserve_experts(self.rows)
        self._stream = self.buffers.x  # the residual stream, but for `_open`
        self._open: Norm | None = None  # the norm through which y is still to be added to it
        self._first = model.team is None or model.team.first
        self._in_turn = torch.arange(picked, dtype=torch.int32, device=model.device)
        self._both = {id(layer): joint_bias(layer) for layer in model.layers if layer.parallel}

    def queries(self, heads: Heads) -> int:
        """Queries of an attention program: at least as many as a matrix product takes."""
        return int(triton.next_power_of_2(max(16, heads.shared)))

    def spans(self, rows: int, heads: Heads) -> int:
        """Spans of keys over which steps of up to `rows` rows divide their attention."""
        return max(size * heads.keys * self.splits(size, True, heads) for size in range(1, rows + 1))

    def _parts(self, rows: int) -> tuple[int, int]:
        """Most numbers of the spans' results in any layer, and of their statistics."""
        each = [(self.spans(rows, own), own.wide, tile.queries) for own, tile in self.shapes.items()]
        return max(count * wide * queries for count, wide, queries in each), max(2 * one[0] * one[2] for one in each)

    def splits(self, rows: int, far: bool = False, heads: Heads | None = None) -> int:
        """Programs that share one key head of one row: enough to fill the GPU; with `far`, if few rows are long."""
        programs = rows * (self.model.kv_heads if heads is None else heads.keys)
        wanted = triton.cdiv(2 * _MULTIPROCESSORS, programs)
        if far and self.state.max_length > _FAR * min(wanted, _SPLITS):
            wanted = max(wanted, min(_SPLITS // 2, triton.cdiv(_FAR_PROGRAMS, programs)))
        return int(max(1, min(wanted, _SPLITS, triton.cdiv(self.state.max_length, _SPAN))))

    def is_far(self, rows: int, longest: int) -> bool:
        """Return True if a step is faster with its longest row, of `longest` tokens, split further."""
        each = ((self.splits(rows, False, own), self.splits(rows, True, own)) for own in self.shapes)
        return any(longest > _FAR * near < _FAR * far for near, far in each)

    def step(self, rows: int, far: bool = False) -> None:
        """Enqueue one step of the first `rows` rows; `far` splits long rows over more programs."""
        self.sample(rows, self.forward(rows, far), advance=True)

    def forward(self, rows: int, far: bool = False) -> Tensor:
        """Enqueue a step but for its sampling, which is to follow; logits [rows or more, vocabulary]."""
        self.far = far
        self.embed(rows)
        for index, layer in enumerate(self.model.layers):
            if rows <= self.gemv_rows:
                self._layer_gemv(rows, index, layer)
            else:
                self._layer_blas(rows, index, layer)
        self.head(rows)
        return self.logits_of(rows)

    def logits_of(self, rows: int) -> Tensor:
        """Memory of a step's logits."""
        return self.buffers.logits if rows <= self.gemv_rows else self.buffers.narrow

    def embed(self, rows: int) -> None:
        model, b = self.model, self.buffers
        norm, self._stream, self._open = model.embedding_norm, b.x, None
        decode_elementwise.embed[(rows,)](
            model.embedding, given(model.positions, b.x), *affine(norm, b.x), b.x, *self._fed(), model.embedding_scale,
            model.position_offset, model.hidden, epsilon(norm), BE=triton.next_power_of_2(model.hidden),
            LEARNED=model.positions is not None, NORM=kind(norm), PDL=self.pdl, num_warps=8, **self._launch(),
        )  # fmt: skip

    def _layer_gemv(self, rows: int, index: int, layer: DecoderLayer) -> None:
        b, first, factor = self.buffers, self._first, self.model.residual_scale
        self.qkv(rows, index, layer)
        if layer.attention.jointly:
            self.scatter_normed(rows, index, layer, None)
        self.attention(rows, index, layer)
        if layer.parallel:
            assert isinstance(layer.mlp, Mlp)
            self.up(rows, layer)
            stream = self._stream
            self.gemv("out", b.attended, layer.attention.out, stream, rows, add=first, biased=first, factor=factor)
            self.gemv("down", b.inner, layer.mlp.down, stream, rows, add=True, biased=first, factor=factor)
            self._sum(stream[:rows])
            return
        self._residual(rows, "out", b.attended, layer.attention.out, layer.post1)
        if isinstance(layer.mlp, Mixture):
            self.experts_gemv(rows, layer, layer.mlp)
            return
        self.up(rows, layer)
        self._residual(rows, "down", b.inner, layer.mlp.down, layer.post2)

    def _residual(self, rows: int, name: str, x: Tensor, linear: Linear, post: Norm | None) -> None:
        """Add the product of x to the residual stream; if it is normalised first, the next product's kernel does it."""
        b, first = self.buffers, self._first
        if post is None:
            self.gemv(name, x, linear, self._stream, rows, add=first, biased=first, factor=self.model.residual_scale)
            self._sum(self._stream[:rows])
            return
        self.gemv(name, x, linear, b.y, rows, biased=first)
        self._sum(b.y[:rows])
        self._open = post

    def _taken(self, x: Tensor | None = None, factor: float = 1.0) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
        """Inputs of a product and how they are read: x, or the residual stream with what is still to be added to it."""
        b, post, stream = self.buffers, self._open, self._stream
        if x is not None or post is None:
            return (stream if x is None else x,) * 4, {"post_eps": 0.0, "factor": factor, "POST": False}
        self._stream, self._open = (b.other if stream is b.x else b.x), None
        told = {"post_eps": post.eps, "factor": self.model.residual_scale, "POST": True}
        return (stream, b.y, post.gain, self._stream), told

    def _layer_blas(self, rows: int, index: int, layer: DecoderLayer) -> None:
        b = self.buffers
        if index == 0:
            self.add_norm(rows, None, None, layer.norm1)
        self.product(b.normed, layer.attention.qkv, b.qkv, rows)
        self.scatter(rows, index, layer)
        self.attention(rows, index, layer)
        self.product(b.attended, layer.attention.out, b.y, rows)
        if layer.parallel:
            if layer.norm2 is not layer.norm1:
                self.add_norm(rows, None, None, layer.norm2)
        else:
            self._sum(b.y[:rows])
            self.add_norm(rows, b.y, layer.attention.out.bias, layer.norm2, layer.post1)
        bias = self._mlp_blas(rows, layer)
        self._sum(b.y[:rows])
        following = self.model.layers[index + 1].norm1 if index + 1 < len(self.model.layers) else self.model.norm
        self.add_norm(rows, b.y, bias, following, layer.post2)

    def _mlp_blas(self, rows: int, layer: DecoderLayer) -> Tensor | None:
        """Compute up and down products into y; return the bias that y still lacks.

        A parallel layer's attention output is still in y: it is added to x before down overwrites it, or down to it if
        both are parts.
        """
        b, mlp = self.buffers, layer.mlp
        if isinstance(mlp, Mixture):
            self.experts_grouped(rows, mlp)
            return None
        self.product(b.normed, mlp.up, b.up, rows)
        self.activate(rows, mlp, mlp.down.full.shape[1])
        joint = layer.parallel and self.model.team is not None
        if layer.parallel and not joint:
            self.add_norm(rows, b.y, layer.attention.out.bias, None, read=False)
        self.product(b.inner, mlp.down, b.y, rows, add=joint)
        return self._both[id(layer)] if joint else mlp.down.bias

    def head(self, rows: int) -> None:
        b, model = self.buffers, self.model
        if rows <= self.gemv_rows:
            if self._open is not None:  # the head's many programs would each add it
                self.add_norm(rows, b.y, None, None, self._open, read=False)
                self._open = None
            self.gemv("head", None, model.head, b.logits, rows, norm=model.norm)
            model.finish(b.logits[:rows])
            return
        self.product(b.normed, model.head, b.narrow, rows)
        if model.head.bias is not None:
            b.narrow[:rows] += model.head.bias
        model.finish(b.narrow[:rows])

    def qkv(self, rows: int, index: int, layer: DecoderLayer) -> None:
        b, linear, norm = self.buffers, layer.attention.qkv, layer.norm1
        if layer.attention.q_norm is not None:  # norms over whole heads are left to a later kernel
            self.gemv("qkv", None, linear, b.qkv, rows, norm=norm)
            return
        pairs, inputs = linear.full.shape[0] // 2, linear.full.shape[1]
        tile, cache = self.tile("qkv", linear, 2), self.state.layer(index)
        gains, bias = self._bias(norm, linear)
        sources, taking = self._taken()
        _kernels(linear).gemv_qkv[tile.grid(pairs, rows)](
            *sources, affine(norm, b.x)[0], linear.weight, given(linear.scale, b.x), gains, bias, b.q, cache.keys,
            cache.values, *self._tables(layer), b.slots, self.state.lengths, cache.table, self.state.long, inputs,
            *self._paging(), epsilon(norm), **taking, **reading(linear, tile, b.x), BLOCK=BLOCK, NORM=kind(norm),
            BIAS=bias is not b.x, **self._heads(index, layer), PER_HEAD=layer.attention.per_head, LONG=_second(layer),
            ROWS=rows, PDL=self.pdl, **self._launch(),
        )  # fmt: skip

    def up(self, rows: int, layer: DecoderLayer) -> None:
        mlp, b, norm = layer.mlp, self.buffers, layer.norm2
        assert isinstance(mlp, Mlp)
        if not mlp.gated:
            self.gemv("up", None, mlp.up, b.inner, rows, norm=norm, act=mlp.activation)
            return
        outputs, inputs = mlp.up.full.shape[0] // 2, mlp.up.full.shape[1]
        tile = self.tile("gated", mlp.up, 2)
        gains, bias = self._bias(norm, mlp.up)
        sources, taking = self._taken()
        _kernels(mlp.up).gemv_gated[tile.grid(outputs, rows)](
            *sources, affine(norm, b.x)[0], mlp.up.weight, given(mlp.up.scale, b.x), gains, bias, b.inner,
            outputs, inputs, epsilon(norm), **taking, **reading(mlp.up, tile, b.x), NORM=kind(norm), ACT=mlp.activation,
            BIAS=bias is not b.x, ROWS=rows, PDL=self.pdl, **self._launch(),
        )  # fmt: skip

    def gemv(self, name: str, x: Tensor | None, linear: Linear, out: Tensor, rows: int, *, norm: Norm | None = None,
             act: str = "none", add: bool = False, biased: bool = True, factor: float = 1.0) -> None:  # fmt: skip
        """Compute out [rows, N] = factor act(norm(x) W^T + bias), or += with `add`; another rank may add the bias.

        Without x, of the residual stream.
        """
        outputs, inputs = linear.full.shape
        tile = self.tile(name, linear, 1)
        gains, bias = self._bias(norm, linear)
        absent = self.buffers.x
        sources, taking = self._taken(x, factor)
        _kernels(linear).gemv[tile.grid(outputs, rows)](
            *sources, absent if norm is None else norm.gain, linear.weight, given(linear.scale, absent), gains, bias,
            out, outputs, inputs, epsilon(norm), **taking, **reading(linear, tile, absent), NORM=kind(norm), ACT=act,
            ADD=add, BIAS=biased and bias is not absent, ROWS=rows, PDL=self.pdl, **self._launch(),
        )  # fmt: skip

    def attention(self, rows: int, index: int, layer: DecoderLayer) -> None:
        model, b, state, own = self.model, self.buffers, self.state, layer.attention
        far, normed, cache = self.far and not own.window, own.by_head, state.layer(index)
        heads, tile = self.shape(index)
        splits, least = self.splits(rows, far, heads), _FAR_LEAST if far else self.least
        bias = own.qkv.bias if normed and rows > self.gemv_rows else None  # the product still lacks it
        decode_attention.attend[(rows * heads.keys, splits)](
            b.qkv if normed else b.q, cache.keys, cache.values, b.attended, b.part, b.stats, b.arrived,
            given(model.alibi, b.x), b.slots, state.lengths, given(bias, b.x), *self._gains_of_heads(own),
            *self._tables(layer), cache.table, given(own.sinks, b.x), *self._paging(), own.scale, own.cap,
            epsilon(own.q_norm), **self._heads(index, layer), BLOCK=BLOCK,
            DP=heads.wide, GP=tile.queries, BT=tile.keys, LEAST=least, SPLITS=splits, WINDOW=own.window,
            ALIBI=model.alibi is not None, CAP=own.cap > 0, SINKS=own.sinks is not None, NORMED=normed,
            BIAS=bias is not None, PRECISION=self.precision, PDL=self.pdl,
            num_warps=tile.warps, **self._launch(),
        )  # fmt: skip

    def shape(self, index: int) -> tuple[Heads, KeyTile]:
        """Return a layer's heads, and how programs of its attention read keys."""
        heads = self.model.heads_of(index)
        return heads, self.shapes[heads]

    def product(self, x: Tensor, linear: Linear, out: Tensor, rows: int, add: bool = False) -> None:
        """Compute out [rows, N] = x W^T by cuBLAS, or += with `add`; the bias is left to the next kernel."""
        outputs, inputs = linear.full.shape
        source, target = packed(x, rows, inputs), packed(out, rows, outputs)
        self.lower(linear.adapters, source)
        if add:
            target.addmm_(source, linear.full.t())
        else:
            torch.mm(source, linear.full.t(), out=target)
        self.lift(linear.adapters, target)

    def scatter(self, rows: int, index: int, layer: DecoderLayer) -> None:
        """Copy queries out of the fused product, keys and values into the cache; heads normed one by one are left."""
        b, linear = self.buffers, layer.attention.qkv
        if layer.attention.jointly:
            self.scatter_normed(rows, index, layer, linear.bias)
        if layer.attention.q_norm is not None:
            return
        pairs, cache = linear.full.shape[0] // 2, self.state.layer(index)
        decode_elementwise.scatter_qkv[(rows, triton.cdiv(pairs, 512))](
            b.qkv, given(linear.bias, b.x), b.q, cache.keys, cache.values, *self._tables(layer),
            b.slots, self._fed()[2], cache.table, self.state.long, *self._paging(), BN=512, BLOCK=BLOCK,
            BIAS=linear.bias is not None, OWN=self.own, **self._heads(index, layer),
            PER_HEAD=layer.attention.per_head, LONG=_second(layer), PDL=self.pdl, num_warps=4, **self._launch(),
        )  # fmt: skip

    def activate(self, rows: int, mlp: Mlp, width: int) -> None:
        b, bias = self.buffers, mlp.up.bias
        decode_elementwise.activate[(rows, triton.cdiv(width, 1024))](
            b.up, given(bias, b.x), b.inner, width, BN=1024, ACT=mlp.activation, GATED=mlp.gated, BIAS=bias is not None,
            PDL=self.pdl, num_warps=4, **self._launch(),
        )  # fmt: skip

    def sample(self, rows: int, logits: Tensor, advance: bool, masks: Tensor | None = None,
               slots: Tensor | None = None, masked: Tensor | None = None) -> None:  # fmt: skip
        """Sample each row's token from logits [rows, vocabulary], of those that masks [masks, words] int32 allow.

        With `advance` the step's input counts as live, and constrained slots without a mask get a placeholder. `slots`
        [rows] of the rows are the step's unless they are told; `masked` [rows] int32 tells the mask of each, -1 for
        none; without it they are the rows' in turn.
        """
        slots = self.buffers.slots if slots is None else slots
        masked = self._in_turn if masked is None else masked
        b, s, vocabulary, lengths = self.buffers, self.state, self.model.vocabulary, self._fed()[2]
        words = 0 if masks is None else masks.shape[1]
        blocks = self.chunks * (_CHUNK // _BLOCK)
        decode_sampling.scan[(rows, self.chunks)](
            logits, b.scores, b.best, b.where, b.peaks, b.masses, slots, lengths, s.seen, s.temperature, s.penalty,
            s.seed, s.forbidden, s.forbidden_until, s.constrained, given(masks, b.slots), masked, vocabulary, words,
            BV=_CHUNK, SB=_BLOCK, CHUNKS=self.chunks, HELD=FORBIDDEN, MASKED=words > 0, ADVANCE=int(advance),
            OWN=self.own, PDL=self.pdl, num_warps=8, **self._launch(),
        )  # fmt: skip
        decode_sampling.choose[(rows,)](
            b.scores, b.best, b.where, b.peaks, b.masses, b.near, b.kept, b.places, b.out, slots, lengths, s.tokens,
            s.seen, s.temperature, s.top_k, s.top_p, s.min_p, s.seed, s.constrained, masked, vocabulary, s.slots,
            blocks, SB=_BLOCK, BP=triton.next_power_of_2(blocks), TB=_AT_ONCE, MOST=self.gathered, CHUNKS=self.chunks,
            CP=triton.next_power_of_2(self.chunks), MASKED=words > 0, ADVANCE=int(advance), OWN=self.own, PDL=self.pdl,
            num_warps=16, **self._launch(),
        )  # fmt: skip
        self._agree(s.tokens)

    def tile(self, name: str, linear: Linear, sets: int) -> GemvTile:
        """Tile of a product; `sets` row sets are read at once."""
        return self.tiles.get(name) or choose_tile(linear, sets)

    def _bias(self, norm: Norm | None, linear: Linear) -> tuple[Tensor, Tensor]:
        """Return (row sums of W g, bias) for a kernel to add; the residual buffer stands in for an absent one."""
        if norm is not None and norm.kind == "layer":
            return self._gains[id(linear)]
        return self.buffers.x, given(linear.bias, self.buffers.x)

    folds: ClassVar[bool] = True  # Triton's products take norms in, by constants of the model's
    #: True if each row has its own position; a decode step's rows are at their slots' lengths.
    own: ClassVar[bool] = False

    def _fed(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return (which, tokens, positions): row r is fed tokens[which[r]] at positions[which[r]]."""
        return self.buffers.slots, self.state.tokens, self.state.lengths


def _kernels(linear: Linear) -> Any:
    """Module of the kernels that read a product's weights."""
    return decode_int4_gemv if linear.group else decode_gemv


def _second(layer: DecoderLayer) -> int:
    """Row at which the second of a layer's rotary tables begins; 0 if there is one."""
    rotary = layer.attention.rotary
    return 0 if rotary is None else rotary.long
