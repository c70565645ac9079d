"""A CPU's decode step over narrow weights, in one call of compiled C for all layers (`scoring/kernels/decode_step.c`).

It serves models of Llama's kind in float32: one norm before each block, rotation by halves or none, no bias on scores.
Others keep torch's operations. Weights are laid out anew, in memory of their own.
"""

import ctypes
import mmap
import weakref
from collections.abc import Iterator
from contextlib import suppress
from ctypes import POINTER, Structure, c_float, c_int32, c_void_p
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from scoring.decoder.kv_cache import KVCache
from scoring.decoder.model import DecoderLayer, DecoderModel, Linear, Mlp, Norm
from scoring.decoder.native_build import NoNativeStep, library
from scoring.limits import cpus
from scoring.lora.stacks import StaticLowRank

#: Rows of a call of C at most.
ROWS = 8
_FORMATS = {torch.int8: 0, torch.int32: 1}
_NORMS = {"rms": 1, "layer": 2}
_ACTIVATIONS = {"relu": 0, "silu": 1, "gelu": 2, "gelu_tanh": 3}
_TILE, _UNIT, _HALF, _QUAD, _LONGEST_HEAD = 16, 64, 32, 4, 512
_GROUPS = (0, 32, 64, 128)
_HUGE = 1 << 21


class _Product(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("weight", "scale", "zero", "bias")),
        *((name, c_int32) for name in ("outputs", "inputs", "group", "format")),
    )


class _Norm(Structure):
    _fields_ = (("gain", c_void_p), ("shift", c_void_p), ("eps", c_float), ("kind", c_int32))


class _LowRank(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("down", "up", "ranks", "spans")),
        *((name, c_int32) for name in ("parts", "rank", "inputs", "outputs")),
    )


class _Layer(Structure):
    _fields_ = (
        *((name, _Norm) for name in ("norm1", "norm2", "q_norm", "k_norm")),
        *((name, _Product) for name in ("qkv", "out", "up", "down")),
        *((name, _LowRank) for name in ("to_qkv", "to_out", "to_up", "to_down")),
        *((name, c_void_p) for name in ("cos", "sin", "keys", "values", "table")),
        ("scale", c_float),
        *((name, c_int32) for name in ("half", "window", "activation", "gated")),
    )


_COUNTS = (
    "count",
    "hidden",
    "heads",
    "kv_heads",
    "head_dim",
    "blocks",
    "width",
    "inner",
    "longest",
    "threads",
    "alone",
)


class _Model(Structure):
    _fields_ = (
        ("layers", POINTER(_Layer)),
        ("norm", _Norm),
        ("head", _Product),
        ("residual_scale", c_float),
        *((name, c_int32) for name in _COUNTS),
    )


def unfit(model: Any, state: KVCache) -> str:
    """Reason why the step does not serve a model over a cache; empty if it does."""
    if not isinstance(model, DecoderModel):
        return "the products are transformers' own (generic tier)"
    if model.dtype != torch.float32 or model.team is not None:
        return "its step on a CPU is for whole models in float32"
    if state.dtype != torch.float32:
        return "its step on a CPU reads keys and values in float32 only"
    if model.head_dim > _LONGEST_HEAD:
        return f"its step takes heads of up to {_LONGEST_HEAD}, not of {model.head_dim}"
    if model.mixtures:
        return "its step chooses no experts"
    if any(mlp.down.full.shape[1] % _TILE for mlp in _mlps(model)):
        return f"its step takes MLPs of multiples of {_TILE}"
    if model.head.adapters is not None:
        return "its step adds nothing of adapters to logits"
    if model.alibi is not None or any(_peculiar(layer) for layer in model.layers):
        return f"its step on a CPU does not cover the layers of {model.family}"
    return ""


def _mlps(model: DecoderModel) -> list[Mlp]:
    return [layer.mlp for layer in model.layers if isinstance(layer.mlp, Mlp)]


def _peculiar(layer: DecoderLayer) -> bool:
    own = layer.attention
    turned = own.rotary is not None and (own.rotary.interleaved or own.rotary.cos.shape[1] < own.rotary.half)
    posts = layer.parallel or layer.post1 is not None or layer.post2 is not None
    turned |= own.rotary is not None and own.rotary.long > 0
    return posts or turned or own.per_head or bool(own.cap) or own.sinks is not None


class NativeStep:
    """The step of a model whose products have narrow weights, over a cache; raises NoNativeStep.

    It takes the products' narrow weights over: theirs are empty from then on. As many threads as torch's share
    a step, unless `use_threads` says otherwise; a step of one sequence may be left to one of them. Raises OSError
    or RuntimeError without memory for it.
    """

    def __init__(self, model: DecoderModel, state: KVCache) -> None:
        if reason := unfit(model, state):
            raise NoNativeStep(reason)
        self._library = library()
        self._library.decode_open.restype = c_void_p
        self._model, self._state = model, state
        self._held: list[Tensor] = []  # tensors that C reads
        self._low_rank: list[StaticLowRank] = []  # the same, which follow adapters as they come and go
        self._bank = next((each.adapters.bank for each in model.products() if each.adapters is not None), None)
        sizes = [_size(product) for product in model.products()]
        # Huge pages are for private memory.
        self._memory = mmap.mmap(-1, sum(sizes) + _HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with suppress(AttributeError, OSError):  # a kernel without them
            self._memory.madvise(mmap.MADV_HUGEPAGE)
        self._all = torch.frombuffer(self._memory, dtype=torch.uint8)
        self._used = -self._all.data_ptr() % _HUGE
        layers = (_Layer * len(model.layers))(*self._layers())
        self._told = self._described(layers)
        self._open()

    def __call__(self, slots: Tensor, hidden: Tensor) -> Tensor:
        """Feed embeddings [B, E] of a token each to slots [B]; logits [B, vocabulary], not finished.

        `hidden` is overwritten. Rows have the adapters of the forward that runs.
        """
        count, which = len(slots), self._bank.which if self._bank is not None else ()
        rows, lengths, hidden = slots.int(), self._state.lengths[slots], hidden.contiguous()
        places = torch.tensor(which, dtype=torch.int32)
        logits = torch.empty(count, self._model.vocabulary)
        for first in range(0, count, ROWS):
            some = slice(first, first + ROWS)
            adapted = any(place >= 0 for place in which[some])
            given = (rows[some], lengths[some], places[some] if adapted else None, hidden[some], logits[some])
            pointers = [None if each is None else c_void_p(each.data_ptr()) for each in given]
            self._library.decode_step(self._opened, min(ROWS, count - first), *pointers)
        return logits

    @property
    def threads(self) -> int:
        """Threads that share a step of several sequences."""
        return int(self._told.threads)

    @property
    def threads_of_one(self) -> int:
        """Threads that share a step of one sequence: all of them, or one."""
        return 1 if self._told.alone else self.threads

    def use_threads(self, count: int, alone: bool = False) -> None:
        """Have as many threads share a step, and one sequence's by one if `alone`; raises NoNativeStep."""
        self.close()
        self._told.threads, self._told.alone = count, alone
        self._open()

    def _open(self) -> None:
        with cpus.unbound():
            opened = self._library.decode_open(ctypes.byref(self._told))
        if not opened:
            raise NoNativeStep("there is no memory, or no threads, for its step")
        self._opened = c_void_p(opened)
        self._close = weakref.finalize(self, self._library.decode_close, self._opened)
        self._close.atexit = False  # the engine's thread may be inside a step; the process's end frees all

    def close(self) -> None:
        """End its threads; it must not be called any more."""
        self._close()

    def _described(self, layers: Any) -> _Model:
        model, state = self._model, self._state
        counts = {
            "count": len(model.layers),
            "hidden": model.hidden,
            "heads": model.heads,
            "kv_heads": model.kv_heads,
            "head_dim": model.head_dim,
            "blocks": state.blocks + 1,
            "width": state.width,
            "inner": model.widths[0],
            "longest": state.max_length + 1,
            "threads": torch.get_num_threads(),
            "alone": 0,
        }
        norm, head = self._norm(model.norm), self._product(model.head)
        return _Model(layers, norm, head, model.residual_scale, **counts)

    def _layers(self) -> Iterator[_Layer]:
        for index, (layer, mlp) in enumerate(zip(self._model.layers, _mlps(self._model), strict=True)):
            own, rotary = layer.attention, layer.attention.rotary
            norms = [self._norm(each) for each in (layer.norm1, layer.norm2, own.q_norm, own.k_norm)]
            products = [self._product(each) for each in (own.qkv, own.out, mlp.up, mlp.down)]
            low_rank = [self._beside(each) for each in (own.qkv, own.out, mlp.up, mlp.down)]
            tables = [None, None] if rotary is None else [self._numbers(rotary.cos), self._numbers(rotary.sin)]
            caches = [each.data_ptr() for each in self._state.layer(index)]
            kinds = _ACTIVATIONS[mlp.activation], mlp.gated
            half = 0 if rotary is None else rotary.half
            yield _Layer(*norms, *products, *low_rank, *tables, *caches, own.scale, half, own.window, *kinds)

    def _beside(self, linear: Linear) -> _LowRank:
        """Matrices of adapters beside a product, which follow them as they come and go."""
        if linear.adapters is None:
            return _LowRank()
        own = linear.adapters.lay_out()
        _, parts, rank, inputs = own.down.shape
        self._low_rank.append(own)
        self._held.append(torch.tensor(linear.adapters.spans, dtype=torch.int32))
        pointers = [each.data_ptr() for each in (own.down, own.up, own.ranks, self._held[-1])]
        return _LowRank(*pointers, parts, rank, inputs, own.up.shape[2])

    def _norm(self, norm: Norm | None) -> _Norm:
        if norm is None:
            return _Norm()
        return _Norm(self._numbers(norm.gain), self._numbers(norm.shift), norm.eps, _NORMS[norm.kind])

    def _numbers(self, tensor: Tensor | None) -> int | None:
        """Address of a tensor's numbers in float32, kept for as long as this is."""
        if tensor is None:
            return None
        self._held.append(tensor.detach().float().contiguous())
        return self._held[-1].data_ptr()

    def _product(self, linear: Linear) -> _Product:
        size = _size(linear)
        place = self._all[self._used : self._used + size]
        self._used += size
        outputs, inputs = linear.full.shape
        place.copy_(_octets(linear))
        grids = (None if each is None else _tiled(each, inputs) for each in (linear.scale, linear.zero))
        scale, zero = map(self._numbers, grids)
        bias = self._numbers(linear.bias)
        kind = _FORMATS[linear.weight.dtype]
        linear.weight = linear.weight.new_empty(outputs, 0)
        return _Product(place.data_ptr(), scale, zero, bias, outputs, inputs, linear.group, kind)


def _size(linear: Linear) -> int:
    """Bytes of a product's narrow weight, rows padded to whole units."""
    if linear.weight.dtype not in _FORMATS or linear.group not in _GROUPS:
        raise NoNativeStep(f"its step reads no groups of {linear.group} and no {str(linear.weight.dtype)[6:]}")
    outputs, inputs = linear.full.shape
    return _whole(outputs, _TILE) * _whole(inputs, _UNIT) // (2 if linear.group else 1)


def _whole(count: int, unit: int) -> int:
    return -(-count // unit) * unit


def _octets(linear: Linear) -> Tensor:
    """A product's narrow weight as the step reads it, as uint8 [bytes].

    int8 plus 128; int4 in units of 64 inputs, of which octet i holds numbers i and 32 + i, the first in its low half.
    Of 16 outputs, four octets each lie side by side.
    """
    weight = linear.weight
    missing = -linear.full.shape[1] % _UNIT
    if not linear.group:
        return _side_by_side(functional.pad(weight.contiguous().view(torch.uint8) ^ 128, (0, missing)))
    shifts = 4 * torch.arange(8, dtype=torch.int32)
    # Number j of a group's word i is its input j group/8 + i (`scoring.decoder.int4`).
    words = weight.view(len(weight), -1, 1, linear.group // 8)
    numbers = ((words >> shifts[:, None]) & 15).to(torch.uint8).view(len(weight), -1)
    units = functional.pad(numbers, (0, missing)).view(-1, 2, _HALF)
    return _side_by_side((units[:, 0] | units[:, 1] << 4).view(len(weight), -1))


def _tiled(numbers: Tensor, inputs: int) -> Tensor:
    """Numbers of rows [N] or of their groups [N, groups]: of 16 rows side by side, with zeros for what is missing."""
    if numbers.dim() == 1:
        return functional.pad(numbers, (0, -len(numbers) % _TILE))
    groups = numbers.shape[1] * _whole(inputs, _UNIT) // inputs
    padded = functional.pad(numbers, (0, groups - numbers.shape[1], 0, -len(numbers) % _TILE))
    return padded.view(-1, _TILE, groups).transpose(1, 2)


def _side_by_side(rows: Tensor) -> Tensor:
    padded = functional.pad(rows, (0, 0, 0, -len(rows) % _TILE))
    return padded.view(-1, _TILE, padded.shape[1] // _QUAD, _QUAD).transpose(1, 2).reshape(-1)
