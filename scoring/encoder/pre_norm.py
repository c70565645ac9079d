"""ModernBERT as a stack over packed tokens: norms before products, gated products, turned queries and keys."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from scoring.encoder.ops import GELU, RELU, EncoderOps, LayerNorm, Tables
from scoring.encoder.positions import Rotation
from scoring.encoder.stack import FusedStack
from scoring.passes.base import PassRefused

ACTIVATIONS = {"gelu": GELU, "relu": RELU}


@dataclass(frozen=True)
class PreNormLayer:
    """Weights of one layer; `norm` and `following` normalise the sums that they are read from."""

    qkv: Tensor  # [3H, H]
    qkv_bias: Tensor
    positions: Rotation
    out: Tensor  # [H, H]
    out_bias: Tensor
    norm: LayerNorm  # of what the gated product reads
    up: Tensor  # [2I, H]
    up_bias: Tensor | None
    down: Tensor  # [H, I]
    down_bias: Tensor
    following: LayerNorm  # of what the next layer reads, or of the end
    gated: ClassVar[bool] = True


class PreNormStack(FusedStack):
    """Embeddings and layers of one encoder whose first norm is its embeddings' own."""

    def __init__(self, tables: Tables, layers: Sequence[PreNormLayer], heads: int, act: int, ops: EncoderOps) -> None:
        super().__init__(tables, [], heads, act, ops)
        self.pre_norm = layers

    @property
    def depth(self) -> int:
        return len(self.pre_norm)

    def over(self, ops: EncoderOps, change: Callable[[Any], Any] = lambda layer: layer) -> "PreNormStack":
        return PreNormStack(self.tables, [change(layer) for layer in self.pre_norm], self.heads, self.act, ops)

    def __call__(self, ids: Tensor, mask: Tensor | None, types: Tensor | None) -> Tensor:
        ops = self.ops
        packing = ops.pack(ids, mask, self.tables.pad)
        x = ops.embed(ids, None, packing, self.tables, self.pre_norm[0].qkv)
        total, last = x.wide, self.pre_norm[-1]
        for layer in self.pre_norm:
            qkv = ops.linear(x, layer.qkv, layer.qkv_bias, 0, packing)
            context = ops.attention(qkv, self.heads, packing, layer.positions)
            total, x = ops.project_add(context, layer.out, layer.out_bias, total, layer.norm, packing, False)
            up = ops.gated(x, layer.up, layer.up_bias, self.act, packing)
            total, x = ops.project_add(up, layer.down, layer.down_bias, total, layer.following, packing, layer is last)
        return x.wide


def build_pre_norm(base: Any, ops: EncoderOps) -> PreNormStack:
    """Pack the weights of a ModernBERT; raises PassRefused for an unsupported variant."""
    config = base.config
    act = ACTIVATIONS.get(config.hidden_activation)
    if act is None:
        raise PassRefused(f"the activation {config.hidden_activation} is not covered; gelu and relu are")
    if config.hidden_size // config.num_attention_heads < 32:
        raise PassRefused("heads of less than 32 numbers are not covered where they are turned")
    turned = {kind: _rotary(base, kind) for kind in set(config.layer_types)}
    ends = [layer_norm(module.attn_norm) for module in base.layers[1:]] + [layer_norm(base.final_norm)]
    layers = [
        _layer(module, turned[module.attention_type], end, ops.multiple)
        for module, end in zip(base.layers, ends, strict=True)
    ]
    embeddings = base.embeddings
    tables = Tables(embeddings.tok_embeddings.weight.detach(), None, None, layer_norm(embeddings.norm))
    return PreNormStack(tables, layers, config.num_attention_heads, act, ops)


def rotation(base: Any, rope_type: str | None, reach: int = 0, kind: tuple[str, ...] = ()) -> Rotation:
    """Turns of an encoder at all its places; `kind` names those of some layers where they differ.

    Raises PassRefused for a scaling that depends on the length of the input.
    """
    if rope_type not in ("default", "linear"):
        raise PassRefused(f"positions of type {rope_type} are not covered")
    places = torch.arange(base.config.max_position_embeddings, device=base.device)[None]
    one = torch.zeros(1, device=base.device)  # float32: angles come in its type
    cos, sin = base.rotary_emb(one, places, *kind)
    half = cos.shape[-1] // 2
    return Rotation(cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous(), reach)


def _rotary(base: Any, kind: str) -> Rotation:
    reach = int(base.config.sliding_window) if kind == "sliding_attention" else 0
    return rotation(base, base.rotary_emb.rope_type.get(kind), reach, (kind,))


def _layer(module: Any, rotary: Rotation, following: LayerNorm, multiple: int) -> PreNormLayer:
    attention, mlp = module.attn, module.mlp
    up, up_bias, down = _filled(mlp, multiple)
    return PreNormLayer(
        qkv=attention.Wqkv.weight.detach(),
        qkv_bias=bias_of(attention.Wqkv),
        positions=rotary,
        out=attention.Wo.weight.detach(),
        out_bias=bias_of(attention.Wo),
        norm=layer_norm(module.mlp_norm),
        up=up,
        up_bias=up_bias,
        down=down,
        down_bias=bias_of(mlp.Wo),
        following=following,
    )


def _filled(mlp: Any, multiple: int) -> tuple[Tensor, Tensor | None, Tensor]:
    """Weights of a gated product, its width filled up to a multiple with zeros: act(0) * 0 is 0."""
    up, down = mlp.Wi.weight.detach(), mlp.Wo.weight.detach()
    more = -down.shape[1] % multiple if down.shape[1] > multiple else 0
    bias = mlp.Wi.bias
    if not more:
        return up, None if bias is None else bias.detach(), down
    halves = [F.pad(half, (0, 0, 0, more)) for half in up.chunk(2)]
    if bias is not None:
        bias = torch.cat([F.pad(half, (0, more)) for half in bias.detach().chunk(2)])
    return torch.cat(halves), bias, F.pad(down, (0, more)).contiguous()


def bias_of(module: nn.Linear) -> Tensor:
    """Bias of a product; one without is added zero."""
    return module.weight.new_zeros(module.out_features) if module.bias is None else module.bias.detach()


def layer_norm(module: nn.LayerNorm) -> LayerNorm:
    """Weights of a norm; one without a shift shifts by zero."""
    shift = torch.zeros_like(module.weight) if module.bias is None else module.bias
    return LayerNorm(module.weight.detach(), shift.detach(), module.eps)
