"""Post-norm encoders as one stack over packed tokens: seven kernels a layer, no work on padding."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor

from scoring.encoder.ops import EncoderOps, LayerNorm, Matrix, Tables
from scoring.encoder.positions import Positions


@dataclass(frozen=True)
class EncoderLayer:
    """Weights of one layer, with query, key and value as one matrix."""

    qkv: Matrix  # [3H, H]
    qkv_bias: Tensor
    out: Tensor  # [H, H]
    out_bias: Tensor
    attention_norm: LayerNorm
    up: Matrix  # [I, H]; gated: [2I, H]
    up_bias: Tensor | None
    down: Tensor  # [H, I]
    down_bias: Tensor
    output_norm: LayerNorm
    positions: Positions | None = None  # what attention itself reads of them
    gated: bool = False


class FusedStack:
    """Embeddings and layers of one encoder, from token ids to the last hidden state."""

    def __init__(self, tables: Tables, layers: Sequence[EncoderLayer], heads: int, act: int, ops: EncoderOps) -> None:
        self.tables = tables
        self.layers = layers
        self.heads = heads
        self.act = act
        self.ops = ops

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self.layers)

    def over(self, ops: EncoderOps, change: Callable[[Any], Any] = lambda layer: layer) -> "FusedStack":
        """Copy that computes by other operations, each layer changed by a function that keeps its kind."""
        return FusedStack(self.tables, [change(layer) for layer in self.layers], self.heads, self.act, ops)

    def __call__(self, ids: Tensor, mask: Tensor | None, types: Tensor | None) -> Tensor:
        """Map ids [B, S] int64 and mask [B, S] (0: padding) to [B, S, H], zeros at padding."""
        ops = self.ops
        packing = ops.pack(ids, mask, self.tables.pad)
        x = ops.embed(ids, types, packing, self.tables, self.layers[0].qkv)
        for number, layer in enumerate(self.layers, 1):
            qkv = ops.linear(x, layer.qkv, layer.qkv_bias, 0, packing)
            context = ops.attention(qkv, self.heads, packing, layer.positions)
            x = ops.project_add_norm(context, layer.out, layer.out_bias, x, layer.attention_norm, packing, layer.up)
            if layer.gated:
                up = ops.gated(x, cast(Tensor, layer.up), layer.up_bias, self.act, packing)
            else:
                up = ops.linear(x, layer.up, cast(Tensor, layer.up_bias), self.act, packing)
            following = self.layers[number].qkv if number < len(self.layers) else None
            x = ops.project_add_norm(up, layer.down, layer.down_bias, x, layer.output_norm, packing, following)
        return x.wide
