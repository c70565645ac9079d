"""NomicBERT and GTE as a stack over packed tokens: norms behind products, turned queries and keys, gated products."""

from typing import Any

import torch

from scoring.encoder.ops import SILU, EncoderOps, Tables
from scoring.encoder.positions import Rotation
from scoring.encoder.pre_norm import ACTIVATIONS, bias_of, layer_norm, rotation
from scoring.encoder.stack import EncoderLayer, FusedStack
from scoring.passes.base import PassRefused


def build_gated(base: Any, ops: EncoderOps) -> FusedStack:
    """Pack the weights of a NomicBERT or GTE; raises PassRefused for an unsupported variant."""
    config = base.config
    act = (ACTIVATIONS | {"silu": SILU}).get(config.hidden_act)
    if act is None:
        raise PassRefused(f"the activation {config.hidden_act} is not covered; gelu, relu and silu are")
    if base.layers[0].self_attn.head_dim * config.num_attention_heads != config.hidden_size:
        raise PassRefused("heads that are not cut from the hidden size are not covered")
    embeddings, types = base.embeddings, getattr(base.embeddings, "token_type_embeddings", None)
    tables = Tables(
        words=embeddings.word_embeddings.weight.detach(),
        positions=None,
        types=None if types is None else types.weight.detach(),
        norm=layer_norm(embeddings.LayerNorm),
    )
    turned = rotation(base, base.rotary_emb.rope_type)
    layers = [_layer(module, turned) for module in base.layers]
    return FusedStack(tables, layers, config.num_attention_heads, act, ops)


def _layer(module: Any, turned: Rotation) -> EncoderLayer:
    attention, mlp = module.self_attn, module.mlp
    qkv = (attention.q_proj, attention.k_proj, attention.v_proj)
    halves = (mlp.gate_proj, mlp.up_proj)
    return EncoderLayer(
        qkv=torch.cat([part.weight.detach() for part in qkv]),
        qkv_bias=torch.cat([bias_of(part) for part in qkv]),
        out=attention.o_proj.weight.detach(),
        out_bias=bias_of(attention.o_proj),
        attention_norm=layer_norm(module.post_attention_layernorm),
        up=torch.cat([half.weight.detach() for half in halves]),
        up_bias=None if mlp.up_proj.bias is None else torch.cat([half.bias.detach() for half in halves]),
        down=mlp.down_proj.weight.detach(),
        down_bias=bias_of(mlp.down_proj),
        output_norm=layer_norm(module.post_mlp_layernorm),
        positions=turned,
        gated=True,
    )
