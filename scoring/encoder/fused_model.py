"""Conversion of a loaded encoder to our own stack: weights packed, what is not computed refused, and the way back."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from scoring.encoder.ops import EncoderOps, Tables, TorchOps
from scoring.encoder.positions import Relative
from scoring.encoder.pre_norm import ACTIVATIONS, build_pre_norm, layer_norm
from scoring.encoder.relative import disentangled, distance_bias
from scoring.encoder.stack import EncoderLayer, FusedStack
from scoring.encoder.triton_ops import TritonOps
from scoring.passes.base import PassRefused
from scoring.passes.families import FUSED_ENCODER, POSITIONS_AFTER_PADDING

#: Names of a layer's query, key and value.
BERT, DEBERTA = ("query", "key", "value"), ("query_proj", "key_proj", "value_proj")


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
    if config.model_type not in FUSED_ENCODER.served:
        raise PassRefused(f"{config.model_type} is not covered")
    if config.model_type == "modernbert":
        return build_pre_norm(base, ops)
    distil = config.model_type == "distilbert"
    named = config.activation if distil else config.hidden_act
    act = ACTIVATIONS.get(named)
    if act is None:
        raise PassRefused(f"the activation {named} is not covered; gelu and relu are")
    if getattr(config, "is_decoder", False):
        raise PassRefused("the model is configured as a decoder")
    if getattr(config, "position_embedding_type", "absolute") not in ("absolute", None):
        raise PassRefused(f"position embeddings of type {config.position_embedding_type} are not covered")
    embeddings = base.embeddings
    projected = getattr(base, "embeddings_project", None), getattr(embeddings, "embed_proj", None)
    if any(each is not None for each in projected):
        raise PassRefused("embeddings that are projected to the hidden size are not covered")
    tables = Tables(
        words=embeddings.word_embeddings.weight.detach(),
        positions=_table(embeddings, "position_embeddings"),
        types=_table(embeddings, "token_type_embeddings"),
        norm=layer_norm(embeddings.LayerNorm),
        pad=_position_padding(base),
    )
    modules = base.transformer.layer if distil else base.encoder.layer
    return FusedStack(tables, _layers(base, modules), config.num_attention_heads, act, ops)


def _table(embeddings: Any, name: str) -> Tensor | None:
    table = getattr(embeddings, name, None)
    return None if table is None else table.weight.detach()


def _position_padding(base: Any) -> int:
    """Id that takes no position; -1 where positions count from 0."""
    if base.config.model_type not in POSITIONS_AFTER_PADDING:
        return -1
    return int(getattr(base.embeddings, "padding_idx", base.config.pad_token_id))


def _layers(base: Any, modules: Sequence[Any]) -> list[EncoderLayer]:
    family = base.config.model_type
    if family == "deberta-v2":
        tables = disentangled(base)
        return [_bert_layer(each, DEBERTA, given) for each, given in zip(modules, tables, strict=True)]
    if family == "mpnet":
        bias = distance_bias(base)
        return [_mpnet_layer(each, bias) for each in modules]
    return [_distilbert_layer(each) if family == "distilbert" else _bert_layer(each) for each in modules]


def _layer(
    qkv: Sequence[nn.Linear],
    out: nn.Linear,
    norm: nn.LayerNorm,
    up: nn.Linear,
    down: nn.Linear,
    last: nn.LayerNorm,
    positions: Relative | None = None,
) -> EncoderLayer:
    return EncoderLayer(
        qkv=torch.cat([part.weight.detach() for part in qkv]),
        qkv_bias=torch.cat([part.bias.detach() for part in qkv]),
        out=out.weight.detach(),
        out_bias=out.bias.detach(),
        attention_norm=layer_norm(norm),
        up=up.weight.detach(),
        up_bias=up.bias.detach(),
        down=down.weight.detach(),
        down_bias=down.bias.detach(),
        output_norm=layer_norm(last),
        positions=positions,
    )


def _bert_layer(module: Any, names: Sequence[str] = BERT, positions: Relative | None = None) -> EncoderLayer:
    attention, output = module.attention.self, module.attention.output
    return _layer(
        [getattr(attention, name) for name in names],
        output.dense,
        output.LayerNorm,
        module.intermediate.dense,
        module.output.dense,
        module.output.LayerNorm,
        positions,
    )


def _mpnet_layer(module: Any, bias: Relative) -> EncoderLayer:
    attention = module.attention.attn
    return _layer(
        (attention.q, attention.k, attention.v),
        attention.o,
        module.attention.LayerNorm,
        module.intermediate.dense,
        module.output.dense,
        module.output.LayerNorm,
        bias,
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
    pooled = hasattr(base, "pooler")

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
