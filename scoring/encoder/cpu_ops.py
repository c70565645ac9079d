"""Encoder operations on CPUs: no work on padding, weights laid out once by oneDNN, in float32, bfloat16 or int8.

Accumulation stays in float32: the residual stream, norms, and the sums inside products. H is the hidden size, T the
live tokens. Weights are [N, K].
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from scoring.encoder.ops import (
    GELU,
    NONE,
    RELU,
    EncoderOps,
    Hidden,
    LayerNorm,
    Matrix,
    Packing,
    Tables,
    TorchOps,
    activated,
)
from scoring.encoder.positions import Positions, Relative
from scoring.encoder.stack import FusedStack
from scoring.quantization.int8 import quantize_per_row

FLOAT32, BFLOAT16, INT8 = "float32", "bfloat16", "int8"

POST = {NONE: ("none", ""), GELU: ("gelu", "none"), RELU: ("relu", "")}  # oneDNN's name, and its variant
_SCORES = 1 << 22  # attention scores held at once: about what fits the last-level cache

#: oneDNN compiles a product for each new number of rows, and keeps hundreds of them, 0.3 MB each.
ROWS = 16
_MIDDLE = torch.tensor(128.5)  # of uint8, and half a step for rounding
LEAST_GELU = -0.17  # GELU falls no lower, ReLU not as low
_TRIED, _TRIES = 512, 20  # size of the square product that is tried in bfloat16, and how often


@cache
def bfloat16_pays() -> bool:
    """Time a product in bfloat16 against float32: flags tell what the chip has, not what oneDNN may use of it.

    False where oneDNN has none at all, as without AVX-512.
    """
    x, weight = torch.ones(_TRIED, _TRIED), torch.ones(_TRIED, _TRIED)
    try:
        products = [Product(weight, None, name) for name in (FLOAT32, BFLOAT16)]
    except RuntimeError:
        return False
    inputs = [x.to(product.dtype) for product in products]
    fastest = [math.inf, math.inf]
    for _ in range(_TRIES):
        for index, (product, given) in enumerate(zip(products, inputs, strict=True)):
            began = time.perf_counter()
            product(given)
            fastest[index] = min(fastest[index], time.perf_counter() - began)
    return fastest[1] < fastest[0]


def as_bytes(x: Tensor) -> Tensor:
    """Cut floats of 0 to 255 to uint8, by way of int32: three times as fast as straight from float."""
    return x.to(torch.int32).to(torch.uint8)


def quantize(x: Tensor, least: float | None = None) -> tuple[Tensor, Tensor]:
    """Quantize per token: uint8 values around 128, [T, K], and their scale, [T, 1] float32.

    With `least`, the caller promises that no number is below it.
    """
    x = x.float()
    high = x.amax(-1, keepdim=True)
    peak = torch.maximum(high, -x.amin(-1, keepdim=True)).clamp_min(1e-8) if least is None else high.clamp_min(-least)
    return as_bytes(torch.addcmul(_MIDDLE, x, 127 / peak)), peak / 127


class Product:
    """Product act(x w^T + b) of one weight, prepared once; x is [T, K] of any float type, the result [T, N]."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, precision: str, rows: int = 128, least: float | None = None
    ) -> None:
        self.least = least  # what its inputs do not fall below
        self.precision = precision
        self.dtype = torch.float32 if precision == INT8 else getattr(torch, precision)
        self.bias = None if bias is None else bias.detach().to(self.dtype)
        laid = weight.detach().to(self.dtype).contiguous()
        if precision == INT8:
            whole, scale = quantize_per_row(laid)
            self.scale = scale[:, 0]
            self.zeros = torch.zeros(len(laid), dtype=torch.int64)
            self.weight: Tensor = torch.ops.onednn.qlinear_prepack(whole, [rows, laid.shape[1]])
        else:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(laid, rows)

    def __call__(self, x: Tensor, act: int = NONE) -> Tensor:
        rows = len(x)
        if more := -rows % ROWS:
            return self._product(F.pad(x, (0, 0, 0, more)), act)[:rows]
        return self._product(x, act)

    def _product(self, x: Tensor, act: int) -> Tensor:
        if self.precision == INT8:
            return self._int8(x, act)
        post, variant = POST[act]
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), self.weight, self.bias, post, [], variant)
        return y

    def _int8(self, x: Tensor, act: int) -> Tensor:
        values, scale = quantize(x, self.least)
        y: Tensor = torch.ops.onednn.qlinear_pointwise(
            values, 1.0, 128, self.weight, self.scale, self.zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return activated(y * scale if self.bias is None else torch.addcmul(self.bias, y, scale), act)


class CpuOps(EncoderOps):
    """Operations of a `FusedStack` on a CPU; `prepare` its layers first."""

    def __init__(self, precision: str) -> None:
        self.precision = precision
        self._products: dict[int, Product] = {}  # by the id of the weight that the layer holds
        self._plain = TorchOps()

    def prepare(self, stack: FusedStack) -> FusedStack:
        """Copy of a stack over these operations, its weights in this precision and oneDNN's own layout."""
        return stack.over(self, self._prepared)

    def _prepared(self, layer: Any) -> Any:
        return replace(
            layer,
            qkv=self._take(layer.qkv, layer.qkv_bias),
            out=self._take(layer.out, layer.out_bias),
            up=self._take(layer.up, layer.up_bias),
            down=self._take(layer.down, layer.down_bias, None if layer.gated else LEAST_GELU),
            positions=self._narrowed(layer.positions),
        )

    def _narrowed(self, positions: Positions | None) -> Positions | None:
        """Positions as queries and keys of this precision are multiplied with them."""
        if self.precision == BFLOAT16 and isinstance(positions, Relative):
            return positions.narrowed(torch.bfloat16)
        return positions

    def _take(self, weight: Tensor, bias: Tensor | None, least: float | None = None) -> Tensor:
        product = Product(weight, bias, self.precision, least=least)
        self._products[id(product.weight)] = product
        return product.weight

    def pack(self, ids: Tensor, mask: Tensor | None, pad: int) -> Packing:
        whole = self._plain.pack(ids, mask, pad)
        live = int(whole.bounds[-1])
        more = -live % ROWS  # copies of the first token that no sequence owns: no product has to copy its input
        places, positions = (F.pad(each[:live], (0, more)) for each in (whole.places, whole.positions))
        return replace(whole, rows=live + more, places=places, positions=positions)

    def embed(
        self, ids: Tensor, types: Tensor | None, packing: Packing, tables: Tables, then: Matrix | None = None
    ) -> Hidden:
        return self._plain.embed(ids, types, packing, tables)

    def linear(self, x: Hidden, weight: Matrix, bias: Tensor, act: int, packing: Packing) -> Tensor:
        return self._products[id(weight)](x.wide, act)

    def attention(self, qkv: Tensor, heads: int, packing: Packing, positions: Positions | None = None) -> Tensor:
        if positions is not None:
            return self._plain.attention(qkv, heads, packing, positions)
        rows, width = qkv.shape[0], qkv.shape[1] // 3
        attend: Callable[..., Tensor] = F.scaled_dot_product_attention
        if self.precision == BFLOAT16 or (self.precision == INT8 and bfloat16_pays()):
            qkv, attend = qkv.to(torch.bfloat16), _attend
        parts = []
        for start, end, count in _groups(packing.bounds.tolist(), heads):
            shape = (count, (end - start) // count, 3, heads, width // heads)
            q, k, v = qkv[start:end].view(shape).permute(2, 0, 3, 1, 4)
            parts.append(attend(q, k, v).transpose(1, 2).reshape(end - start, width))
        if (tail := rows - int(packing.bounds[-1])) or not parts:
            parts.append(qkv.new_zeros(tail, width))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def project_add_norm(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        residual: Hidden,
        norm: LayerNorm,
        packing: Packing,
        then: Matrix | None = None,
    ) -> Hidden:
        _, y = self._added(x, weight, residual.wide, norm)
        return Hidden(y if then is not None else _unpacked(y, packing))

    def gated(self, x: Hidden, weight: Tensor, bias: Tensor | None, act: int, packing: Packing) -> Tensor:
        first, second = self._products[id(weight)](x.wide).chunk(2, -1)
        return activated(first, act) * second

    def project_add(
        self, x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, norm: LayerNorm, packing: Packing, last: bool
    ) -> tuple[Tensor, Hidden]:
        total, y = self._added(x, weight, residual, norm)
        return total, Hidden(_unpacked(y, packing) if last else y)

    def _added(self, x: Tensor, weight: Tensor, residual: Tensor, norm: LayerNorm) -> tuple[Tensor, Tensor]:
        """Sum of a product and what there was, and its norm."""
        total = self._products[id(weight)](x) + residual
        return total, F.layer_norm(total, total.shape[-1:], norm.gamma, norm.beta, norm.eps)


def _unpacked(y: Tensor, packing: Packing) -> Tensor:
    """Packed tokens [R, H] in the batch's own places, [B, S, H], with zeros for padding."""
    live = int(packing.bounds[-1])
    if live == packing.batch * packing.length:
        return y[:live].view(packing.batch, packing.length, -1)
    out = y.new_zeros(packing.batch * packing.length, y.shape[1])
    out[packing.places[:live].long()] = y[:live]
    return out.view(packing.batch, packing.length, -1)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention as two bfloat16 products around a softmax, twice as fast as torch's flash; each [B, heads, S, D]."""
    scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-1, -2))
    return torch.matmul(torch.softmax(scores, -1), v)


def _groups(bounds: Sequence[int], heads: int) -> list[tuple[int, int, int]]:
    """Neighbouring sequences of equal length that run as one: (first token, end, sequences)."""
    groups: list[tuple[int, int, int]] = []
    for start, end in pairwise(bounds):
        length = end - start
        if length == 0:
            continue
        if groups:
            first, last, count = groups[-1]
            if (last - first) == count * length and (count + 1) * heads * length**2 <= _SCORES:
                groups[-1] = (first, end, count + 1)
                continue
        groups.append((start, end, 1))
    return groups


def prepared_linear(module: Any, precision: str) -> Callable[[Tensor], Tensor]:
    """Forward of one nn.Linear over a prepared product, with float32 outputs."""
    product = Product(module.weight, module.bias, precision)

    def forward(x: Tensor) -> Tensor:
        return product(x.reshape(-1, x.shape[-1])).float().view(*x.shape[:-1], -1)

    return forward
