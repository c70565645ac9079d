"""Our own stack for post-norm encoders with absolute positions: seven kernels per layer, no work on padding."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from scoring.encoder.ops import GELU, RELU, EncoderOps, LayerNorm, Matrix, Tables, TorchOps
from scoring.encoder.triton_ops import TritonOps
from scoring.passes.base import PassRefused
from scoring.passes.families import FUSED_ENCODER, POSITIONS_AFTER_PADDING

_ACTIVATIONS = {"gelu": GELU, "relu": RELU}


@dataclass(frozen=True)
class EncoderLayer:
    """Weights of one layer, with query, key and value as one matrix."""

    qkv: Matrix  # [3H, H]
    qkv_bias: Tensor
    out: Tensor  # [H, H]
    out_bias: Tensor
    attention_norm: LayerNorm
    up: Matrix  # [I, H]
    up_bias: Tensor
    down: Tensor  # [H, I]
    down_bias: Tensor
    output_norm: LayerNorm


class FusedStack:
    """Embeddings and layers of one encoder, from token ids to the last hidden state."""

    def __init__(self, tables: Tables, layers: Sequence[EncoderLayer], heads: int, act: int, ops: EncoderOps) -> None:
        self.tables = tables
        self.layers = layers
        self.heads = heads
        self.act = act
        self.ops = ops

    def __call__(self, ids: Tensor, mask: Tensor | None, types: Tensor | None) -> Tensor:
        """Map ids [B, S] int64 and mask [B, S] (0: padding) to [B, S, H], zeros at padding."""
        ops = self.ops
        packing = ops.pack(ids, mask, self.tables.pad)
        x = ops.embed(ids, types, packing, self.tables, self.layers[0].qkv)
        for number, layer in enumerate(self.layers, 1):
            qkv = ops.linear(x, layer.qkv, layer.qkv_bias, 0, packing)
            context = ops.attention(qkv, self.heads, packing)
            x = ops.project_add_norm(context, layer.out, layer.out_bias, x, layer.attention_norm, packing, layer.up)
            up = ops.linear(x, layer.up, layer.up_bias, self.act, packing)
            following = self.layers[number].qkv if number < len(self.layers) else None
            x = ops.project_add_norm(up, layer.down, layer.down_bias, x, layer.output_norm, packing, following)
        return x.wide


def replace(model: Any, ops: EncoderOps | None = None) -> tuple[FusedStack, Callable[[], None]]:
    """Replace a model's encoder by a stack; return the stack and an undo.

    Raises PassRefused if the loaded model differs from what the kernels compute.
    """
    base = getattr(model, model.base_model_prefix, model)
    if ops is None and base.device.type == "cuda" and base.dtype not in (torch.float16, torch.bfloat16):
        raise PassRefused(f"its kernels run in 16 bits; the model is loaded in {str(base.dtype)[6:]}")
    stack = build(base, ops or _ops_for(base.device))
    base.forward = forward_over(base, stack, base.forward)
    unpad = _pad_vocabulary(model)

    def undo() -> None:
        del base.forward
        unpad()

    return stack, undo


def _ops_for(device: torch.device) -> EncoderOps:
    if device.type != "cuda":
        return TorchOps()
    return TritonOps(hopper=torch.cuda.get_device_capability(device) >= (9, 0))


def build(base: Any, ops: EncoderOps) -> FusedStack:
    """Pack the weights of an encoder of a supported family; raises PassRefused for an unsupported variant."""
    config = base.config
    distil = config.model_type == "distilbert"
    if config.model_type not in FUSED_ENCODER.served:
        raise PassRefused(f"{config.model_type} is not covered")
    act = _ACTIVATIONS.get(config.activation if distil else config.hidden_act)
    if act is None:
        raise PassRefused(f"the activation {config.hidden_act} is not covered; gelu and relu are")
    if getattr(config, "is_decoder", False):
        raise PassRefused("the model is configured as a decoder")
    if getattr(config, "position_embedding_type", "absolute") not in ("absolute", None):
        raise PassRefused(f"position embeddings of type {config.position_embedding_type} are not covered")
    if getattr(base, "embeddings_project", None) is not None:
        raise PassRefused("embeddings that are projected to the hidden size are not covered")
    read = _distilbert_layer if distil else _bert_layer
    modules = base.transformer.layer if distil else base.encoder.layer
    embeddings = base.embeddings
    tables = Tables(
        words=embeddings.word_embeddings.weight.detach(),
        positions=embeddings.position_embeddings.weight.detach(),
        types=None if distil else embeddings.token_type_embeddings.weight.detach(),
        norm=_norm(embeddings.LayerNorm),
        pad=config.pad_token_id if config.model_type in POSITIONS_AFTER_PADDING else -1,
    )
    return FusedStack(tables, [read(module) for module in modules], config.num_attention_heads, act, ops)


def _norm(module: nn.LayerNorm) -> LayerNorm:
    return LayerNorm(module.weight.detach(), module.bias.detach(), module.eps)


def _layer(
    qkv: Sequence[nn.Linear], out: nn.Linear, norm: nn.LayerNorm, up: nn.Linear, down: nn.Linear, last: nn.LayerNorm
) -> EncoderLayer:
    return EncoderLayer(
        qkv=torch.cat([part.weight.detach() for part in qkv]),
        qkv_bias=torch.cat([part.bias.detach() for part in qkv]),
        out=out.weight.detach(),
        out_bias=out.bias.detach(),
        attention_norm=_norm(norm),
        up=up.weight.detach(),
        up_bias=up.bias.detach(),
        down=down.weight.detach(),
        down_bias=down.bias.detach(),
        output_norm=_norm(last),
    )


def _bert_layer(module: Any) -> EncoderLayer:
    attention, output = module.attention.self, module.attention.output
    return _layer(
        (attention.query, attention.key, attention.value),
        output.dense,
        output.LayerNorm,
        module.intermediate.dense,
        module.output.dense,
        module.output.LayerNorm,
    )


def _distilbert_layer(module: Any) -> EncoderLayer:
    attention = module.attention
    return _layer(
        (attention.q_lin, attention.k_lin, attention.v_lin),
        attention.out_lin,
        module.sa_layer_norm,
        module.ffn.lin1,
        module.ffn.lin2,
        module.output_layer_norm,
    )


def forward_over(base: Any, stack: FusedStack, plain: Callable[..., Any]) -> Callable[..., Any]:
    """Forward of an encoder over a stack; what the stack does not compute, such as attentions, is asked of `plain`."""
    from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPoolingAndCrossAttentions

    pooler = getattr(base, "pooler", None)
    pooled = base.config.model_type not in ("distilbert", "electra")

    def forward(
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **rest: Any,
    ) -> Any:
        asked = any(value is not None and value is not False for key, value in rest.items() if key != "return_dict")
        if input_ids is None or asked or rest.get("return_dict") is False or _not_2d(attention_mask):
            types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
            return plain(input_ids=input_ids, attention_mask=attention_mask, **types, **rest)
        hidden = stack(input_ids, attention_mask, token_type_ids)
        if not pooled:
            return BaseModelOutput(last_hidden_state=hidden)
        top = None if pooler is None else pooler(hidden)
        return BaseModelOutputWithPoolingAndCrossAttentions(last_hidden_state=hidden, pooler_output=top)

    return forward


def _pad_vocabulary(model: Any) -> Callable[[], None]:
    """Pad the output layer to a multiple of eight rows: cuBLAS's fast kernels need aligned results (BERT has 30522)."""
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or head.out_features % 8 == 0:
        return lambda: None
    missing = -head.out_features % 8
    weight = F.pad(head.weight.detach(), (0, 0, 0, missing))
    bias = None if head.bias is None else F.pad(head.bias.detach(), (0, missing))
    width = head.out_features
    vars(head)["forward"] = lambda x: F.linear(x, weight, bias)[..., :width]

    def undo() -> None:
        del vars(head)["forward"]

    return undo


def _not_2d(mask: Tensor | None) -> bool:
    return mask is not None and mask.dim() != 2
