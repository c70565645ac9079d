"""Converts decoders whose blocks are laid out like Llama's to a `DecoderModel`.

They differ in what a block adds to that layout, which is read from its modules: norms of queries and keys, norms after
attention and MLP, fused products, windows, layers without rotary positions, attention sinks, a mixture of experts in
place of the MLP, and factors on embedding, residual and logits. Queries and keys are normalised before rotation.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from scoring.decoder.adapters.parts import (
    ACTIVATIONS,
    activation_name,
    layer_norm,
    linear,
    rms_norm,
    rotary_tables,
    steady_rotary,
)
from scoring.decoder.model import Activation, Attention, DecoderLayer, DecoderModel, Linear, Mixture, Mlp, Norm, Rotary

#: model_type of the families.
FAMILIES = (
    "cohere2", "gemma", "gemma2", "gemma3_text", "glm4", "gpt_oss", "granite", "llama", "mistral", "mixtral", "olmo2",
    "olmo3", "phi3", "qwen2", "qwen3", "qwen3_moe", "smollm3", "starcoder2",
)  # fmt: skip
_OFFSET = ("gemma", "gemma2", "gemma3_text")  # their RMSNorm's gain is one plus its weight
_ROOT_SCALED = _OFFSET  # their embedding is multiplied by the square root of the hidden size, in the model's type
_SAME_WINDOW = ("mistral", "mixtral", "phi3", "qwen3_moe", "starcoder2")  # one window for all layers, in the config
_INTERLEAVED = ("cohere2", "glm4")  # neighbouring elements form the rotated pairs
_CAPPED = ("gemma2",)  # their attention's scores are capped; Gemma 3 has the setting, and passes over it
_POST_ONLY = ("olmo2", "olmo3")  # their blocks have norms after attention and MLP alone
_JOINT = _POST_ONLY  # their norms of queries and keys are over all heads together
_POST_NORMS = {
    "gemma2": ("post_attention_layernorm", "post_feedforward_layernorm"),
    "gemma3_text": ("post_attention_layernorm", "post_feedforward_layernorm"),
    "glm4": ("post_self_attn_layernorm", "post_mlp_layernorm"),
    **dict.fromkeys(_POST_ONLY, ("post_attention_layernorm", "post_feedforward_layernorm")),
}


def build(model: Any, positions: int) -> DecoderModel:
    """Build the `DecoderModel`, with rotary tables for `positions` tokens."""
    body, config = model.model, model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rotary = _rotaries(model, positions, head_dim)
    return DecoderModel(
        config.model_type,
        body.embed_tokens.weight.data,
        [_layer(block, index, config, rotary) for index, block in enumerate(body.layers)],
        _norm(body.norm, config),
        linear(model.lm_head),
        config.num_attention_heads,
        config.num_key_value_heads,
        head_dim,
        embedding_scale=_embedding_scale(model),
        residual_scale=float(getattr(config, "residual_multiplier", 1.0)),
        logits_scale=float(getattr(config, "logit_scale", None) or 1 / getattr(config, "logits_scaling", 1.0)),
        logits_cap=float(getattr(config, "final_logit_softcapping", None) or 0),
        max_positions=config.max_position_embeddings,
        steady=steady_rotary(config),
    )


def _layer(block: Any, index: int, config: Any, rotary: dict[str, Rotary]) -> DecoderLayer:
    norm1, norm2 = _norms_before(block, config)
    posts = [_norm(getattr(block, name), config) for name in _POST_NORMS.get(config.model_type, ())]
    if config.model_type == "cohere2":
        return DecoderLayer(
            norm1, _attention(block.self_attn, index, config, rotary), norm2, _mlp(block.mlp, config), True
        )
    return DecoderLayer(
        norm1,
        _attention(block.self_attn, index, config, rotary),
        norm2,
        _mlp(block.mlp, config),
        post1=posts[0] if posts else None,
        post2=posts[1] if posts else None,
    )


def _norms_before(block: Any, config: Any) -> tuple[Norm | None, Norm | None]:
    """Norms before attention and before the MLP."""
    if config.model_type in _POST_ONLY:
        return None, None
    first = _norm(block.input_layernorm, config)
    if config.model_type == "cohere2":
        return first, first
    return first, _norm(getattr(block, "pre_feedforward_layernorm", None) or block.post_attention_layernorm, config)


def _attention(module: Any, index: int, config: Any, rotary: dict[str, Rotary]) -> Attention:
    fused = getattr(module, "qkv_proj", None)
    qkv = linear(fused) if fused is not None else linear(module.q_proj, module.k_proj, module.v_proj)
    normed = getattr(module, "q_norm", None) is not None
    return Attention(
        qkv,
        linear(module.o_proj),
        float(module.scaling),
        _window(index, config),
        q_norm=_norm(module.q_norm, config) if normed else None,
        k_norm=_norm(module.k_norm, config) if normed else None,
        jointly=config.model_type in _JOINT,
        rotary=_rotary_of(module, index, config, rotary),
        cap=float(config.attn_logit_softcapping or 0) if config.model_type in _CAPPED else 0.0,
        sinks=module.sinks.data if hasattr(module, "sinks") else None,
    )


def _mlp(module: Any, config: Any) -> Mlp | Mixture:
    activation = ACTIVATIONS[activation_name(config)]
    if hasattr(module, "experts"):  # some layers of a model may have an MLP
        return _experts(module, activation)
    if hasattr(module, "c_fc"):  # Starcoder 2
        return Mlp(linear(module.c_fc), linear(module.c_proj), activation)
    fused = getattr(module, "gate_up_proj", None)
    up = linear(fused) if fused is not None else linear(module.gate_proj, module.up_proj)
    return Mlp(up, linear(module.down_proj), activation, gated=True)


def _experts(module: Any, activation: Activation) -> Mixture:
    router, experts = getattr(module, "gate", None) or module.router, module.experts
    turned = hasattr(experts, "gate_up_proj_bias")  # gpt-oss has its weights by inputs
    return Mixture(
        Linear(router.weight.data, None if getattr(router, "bias", None) is None else router.bias.data),
        _by_outputs(experts.gate_up_proj, turned),
        _by_outputs(experts.down_proj, turned),
        activation,
        int(router.top_k),
        bool(getattr(router, "norm_topk_prob", True)),
        experts.gate_up_proj_bias.data if turned else None,
        experts.down_proj_bias.data if turned else None,
        interleaved=turned,
        alpha=float(getattr(experts, "alpha", 0.0)),
        limit=float(getattr(experts, "limit", 0.0)),
    )


def _by_outputs(weight: Any, turned: bool) -> Tensor:
    """Weights [X, outputs, inputs], packed, which the module's parameter then views."""
    packed: Tensor = (weight.data.transpose(1, 2) if turned else weight.data).contiguous()
    weight.data = packed.transpose(1, 2) if turned else packed
    return packed


def _norm(module: Any, config: Any) -> Norm:
    if "LayerNorm" in type(module).__name__:
        return layer_norm(module)
    return rms_norm(module, float(config.model_type in _OFFSET))


def _window(index: int, config: Any) -> int:
    if config.model_type not in _SAME_WINDOW:
        kinds = getattr(config, "layer_types", None)  # by which masks are made, whatever modules say of windows
        if kinds is None or kinds[index] != "sliding_attention":
            return 0
    return int(getattr(config, "sliding_window", None) or 0)


def _rotaries(model: Any, positions: int, head_dim: int) -> dict[str, Rotary]:
    """Rotary tables by layer type; under "" if one serves all layers."""
    module, interleaved = model.model.rotary_emb, model.config.model_type in _INTERLEAVED
    if steady := steady_rotary(model.config):
        long, factor = ROPE_INIT_FUNCTIONS["longrope"](model.config, module.inv_freq.device, seq_len=steady + 1)
        return {"": rotary_tables(module.original_inv_freq, positions, head_dim, interleaved, float(factor), long)}
    kinds = getattr(module, "layer_types", None)
    prefixes = {"": ""} if kinds is None else {kind: f"{kind}_" for kind in kinds}
    return {
        kind: rotary_tables(
            getattr(module, f"{prefix}inv_freq"),
            positions,
            head_dim,
            interleaved,
            float(getattr(module, f"{prefix}attention_scaling")),
        )
        for kind, prefix in prefixes.items()
    }


def _rotary_of(module: Any, index: int, config: Any, rotary: dict[str, Rotary]) -> Rotary | None:
    if not getattr(module, "use_rope", True):  # SmolLM3
        return None
    if config.model_type == "cohere2" and module.sliding_window is None:
        return None
    return rotary[""] if "" in rotary else rotary[config.layer_types[index]]


def _embedding_scale(model: Any) -> float:
    if model.config.model_type in _ROOT_SCALED:
        return float(torch.tensor(model.config.hidden_size**0.5).to(model.dtype))
    return float(getattr(model.config, "embedding_multiplier", 1.0))
