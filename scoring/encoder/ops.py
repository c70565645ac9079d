"""Operations of an encoder over packed tokens, and their reference in plain torch, which runs anywhere.

`scoring.encoder.triton_ops` has the same operations as Triton kernels. Both take the same packed weights and give the
same numbers, so the packing is testable without a GPU. H is the hidden size, T the live tokens, R the row count of the
buffers (T or more). Weights are [N, K], as nn.Linear keeps them.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from scoring.encoder.positions import Positions
from scoring.quantization.int8 import quantize_per_row

NONE, GELU, RELU, SILU = 0, 1, 2, 3


@dataclass(frozen=True)
class Packing:
    """Places of the tokens of a batch [B, S] once packed; see `scoring.kernels.encoder`."""

    batch: int
    length: int
    rows: int  # R, a multiple of the tile
    places: Tensor  # [B * S] int32
    positions: Tensor  # [B * S] int32
    bounds: Tensor  # [B + 1] int32


@dataclass(frozen=True)
class LayerNorm:
    """A layer norm's weights, each [H]."""

    gamma: Tensor
    beta: Tensor
    eps: float


@dataclass(frozen=True)
class Tables:
    """Embedding tables; `pad` is the id that takes no position (RoBERTa), -1 where positions count from 0."""

    words: Tensor
    positions: Tensor | None  # None: only attention reads positions
    types: Tensor | None
    norm: LayerNorm
    pad: int = -1


@dataclass(frozen=True)
class Narrow:
    """A matrix [N, K] in eight bits: `values` times `scale` per row, for inputs multiplied by `smooth`."""

    values: Tensor  # [N, K] int8, or float8_e4m3fn
    scale: Tensor  # [N] float32
    smooth: Tensor  # [K] float32


Matrix = Tensor | Narrow


@dataclass(frozen=True)
class Hidden:
    """Hidden states, and the same in eight bits if the product that reads them needs that."""

    wide: Tensor  # [R, H]
    narrow: Tensor | None = None  # [R, H], after the product's `smooth`
    scale: Tensor | None = None  # [R] float32


class EncoderOps(ABC):
    """Implementation of each operation."""

    multiple = 1  # of a gated width, which zeros fill up, so that tiles divide it

    @abstractmethod
    def pack(self, ids: Tensor, mask: Tensor | None, pad: int) -> Packing:
        """Place the live tokens of ids [B, S] first."""

    @abstractmethod
    def embed(
        self, ids: Tensor, types: Tensor | None, packing: Packing, tables: Tables, then: Matrix | None = None
    ) -> Hidden:
        """Sum of the embeddings, normalised: [R, H]; `then` is the product that reads it."""

    @abstractmethod
    def linear(self, x: Hidden, weight: Matrix, bias: Tensor, act: int, packing: Packing) -> Tensor:
        """Product act(x w^T + b): [R, N]."""

    @abstractmethod
    def attention(self, qkv: Tensor, heads: int, packing: Packing, positions: Positions | None = None) -> Tensor:
        """Softmax attention over packed qkv [R, 3H], each row of the batch over its own live tokens: [R, H]."""

    @abstractmethod
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
        """LayerNorm(x w^T + b + residual): [R, H]; without a product `then` to read it, it is the last.

        The last is returned unpacked, [B, S, H] with zeros for padding.
        """

    @abstractmethod
    def gated(self, x: Hidden, weight: Tensor, bias: Tensor | None, act: int, packing: Packing) -> Tensor:
        """Product of x with both halves of w [2I, H], act(first) * second: [R, I]."""

    @abstractmethod
    def project_add(
        self, x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, norm: LayerNorm, packing: Packing, last: bool
    ) -> tuple[Tensor, Hidden]:
        """Sum x w^T + b + residual, and its LayerNorm, each [R, H]; the `last` norm is returned unpacked."""


class TorchOps(EncoderOps):
    """Reference of the fused operations in plain torch, on any device."""

    def pack(self, ids: Tensor, mask: Tensor | None, pad: int) -> Packing:
        live = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask != 0
        order = torch.argsort(~live.flatten(), stable=True)
        if pad >= 0:
            counted = (ids != pad).long()
            positions = counted.cumsum(1) * counted + pad
        else:
            positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        bounds = F.pad(live.sum(1).cumsum(0), (1, 0))
        batch, length = ids.shape
        return Packing(batch, length, batch * length, order.int(), positions.flatten()[order].int(), bounds.int())

    def embed(
        self, ids: Tensor, types: Tensor | None, packing: Packing, tables: Tables, then: Matrix | None = None
    ) -> Hidden:
        x = F.embedding(ids.flatten()[packing.places.long()], tables.words)
        if tables.positions is not None:
            x = x + F.embedding(packing.positions.long(), tables.positions)
        if tables.types is not None:
            kinds = torch.zeros_like(ids) if types is None else types
            x = x + F.embedding(kinds.flatten()[packing.places.long()], tables.types)
        return Hidden(_norm(x, tables.norm))

    def linear(self, x: Hidden, weight: Matrix, bias: Tensor, act: int, packing: Packing) -> Tensor:
        if isinstance(weight, Narrow):
            values, scale = quantize_per_row(x.wide.float() * weight.smooth, weight.values.dtype)
            y = values.float() @ weight.values.float().t() * scale * weight.scale
            y = (y + bias).to(x.wide.dtype)
        else:
            y = F.linear(x.wide, weight, bias)
        return activated(y, act)

    def attention(self, qkv: Tensor, heads: int, packing: Packing, positions: Positions | None = None) -> Tensor:
        rows, width = qkv.shape[0], qkv.shape[1] // 3
        out = torch.zeros(rows, width, dtype=qkv.dtype, device=qkv.device)
        for row, (start, end) in enumerate(pairwise(packing.bounds.tolist())):
            q, k, v = qkv[start:end].view(end - start, 3, heads, width // heads).permute(1, 2, 0, 3)
            if positions is None:
                found = F.scaled_dot_product_attention(q[None], k[None], v[None])[0]
            else:
                found = positions.attend(q, k, v, packing.places[start:end].long() - row * packing.length)
            out[start:end] = found.transpose(0, 1).reshape(end - start, width)
        return out

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
        y = _norm(F.linear(x, weight, bias) + residual.wide, norm)
        return Hidden(_unpacked(y, packing)) if then is None else Hidden(y)

    def gated(self, x: Hidden, weight: Tensor, bias: Tensor | None, act: int, packing: Packing) -> Tensor:
        first, second = F.linear(x.wide, weight, bias).chunk(2, -1)
        return activated(first, act) * second

    def project_add(
        self, x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, norm: LayerNorm, packing: Packing, last: bool
    ) -> tuple[Tensor, Hidden]:
        total = F.linear(x, weight, bias) + residual
        y = _norm(total, norm)
        return total, Hidden(_unpacked(y, packing) if last else y)


def activated(y: Tensor, act: int) -> Tensor:
    """Activation of a product."""
    return F.gelu(y) if act == GELU else F.relu(y) if act == RELU else F.silu(y) if act == SILU else y


def _unpacked(y: Tensor, packing: Packing) -> Tensor:
    """Packed tokens [R, H] in the batch's own places, [B, S, H], with zeros for padding."""
    y[int(packing.bounds[-1]) :] = 0
    out = torch.empty_like(y)
    out[packing.places.long()] = y
    return out.view(packing.batch, packing.length, -1)


def _norm(x: Tensor, norm: LayerNorm) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], norm.gamma, norm.beta, norm.eps)
