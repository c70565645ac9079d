"""Converts a loaded transformers decoder to a `DecoderModel`; one function per family, weights shared."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from scoring.decoder.adapters import llama
from scoring.decoder.adapters.parts import (
    ACTIVATIONS,
    activation_name,
    changing_rotary,
    layer_norm,
    linear,
    rotary_tables,
    steady_rotary,
    text_part,
)
from scoring.decoder.model import Attention, DecoderLayer, DecoderModel, Mlp
from scoring.distributed.tp_group import TensorParallelGroup
from scoring.errors import LoadError
from scoring.passes.families import WRAPPED


def build(model: Any, positions: int, team: TensorParallelGroup | None = None) -> DecoderModel:
    """Build the `DecoderModel`, with rotary tables for `positions` tokens; raises LoadError for an unsupported model.

    With a team, it is this rank's slice, as DeepSpeed's AutoTP cut it.
    """
    reason = unsupported(model.config)
    if reason:
        raise LoadError(f"The static decoder does not cover this model: {reason}.", "Serve it with plain transformers.")
    part = text_part(model)
    with torch.no_grad():
        built = _BUILDERS[part.config.model_type](part, positions)
    if part is not model:  # scale and cap of logits are of the family's own class, which has no part in this model
        built.logits_scale, built.logits_cap = 1.0, 0.0
    if team is not None:
        if any(each.inner == _expert_width(part.config) for each in built.mixtures):
            told = f"experts of width {_expert_width(part.config)} are not cut over {team.degree} ranks"
            raise LoadError(f"The static decoder does not cover this slice: {told}.", "Choose another degree.")
        built.heads, built.kv_heads, built.team = built.heads // team.degree, built.kv_heads // team.degree, team
    return built


def _expert_width(config: Any) -> int:
    return int(getattr(config, "moe_intermediate_size", None) or config.intermediate_size)


def unsupported(config: Any) -> str:
    """Reason why a configuration is not supported; empty if it is. Needs no weights."""
    whole, config = config, config.get_text_config(decoder=True)
    family = config.model_type
    if config is not whole and whole.model_type not in WRAPPED:
        return f"{whole.model_type} is not known to pass text to its {family} unchanged"
    if family not in _BUILDERS:
        return f"{family} is none of {', '.join(sorted(_BUILDERS))}"
    if family == "opt" and not (config.do_layer_norm_before and config.word_embed_proj_dim == config.hidden_size):
        return "OPT with norms after the blocks or projected embeddings"
    if family == "opt" and getattr(config, "_remove_final_layer_norm", False):
        return "OPT without a final norm"
    if family == "opt" and not config.layer_norm_elementwise_affine:
        return "OPT whose norms have neither weight nor bias"
    if family == "bloom" and config.apply_residual_connection_post_layernorm:
        return "BLOOM with its residual after the norm"
    if family == "gpt2" and config.add_cross_attention:
        return "GPT-2 with cross-attention"
    if getattr(config, "use_bidirectional_attention", False):
        return "attention in both directions"
    rope = changing_rotary(config)
    if rope:
        return f"{rope} rotary positions change with the length"
    if steady_rotary(config) and family not in TWICE_TURNED:
        return f"{family} with longrope rotary positions"
    activation = activation_name(config)
    if activation not in ACTIVATIONS:
        return f"activation {activation}"
    return ""


def _gpt2(model: Any, positions: int) -> DecoderModel:
    body, config = model.transformer, model.config
    activation = ACTIVATIONS[config.activation_function]
    head_dim = config.n_embd // config.n_head
    layers = []
    for index, block in enumerate(body.h):
        scale = head_dim**-0.5 if config.scale_attn_weights else 1.0
        scale /= index + 1 if config.scale_attn_by_inverse_layer_idx else 1
        layers.append(
            DecoderLayer(
                layer_norm(block.ln_1),
                Attention(linear(block.attn.c_attn), linear(block.attn.c_proj), scale),
                layer_norm(block.ln_2),
                Mlp(linear(block.mlp.c_fc), linear(block.mlp.c_proj), activation),
            )
        )
    return DecoderModel(
        "gpt2",
        body.wte.weight.data,
        layers,
        layer_norm(body.ln_f),
        linear(model.lm_head),
        config.n_head,
        config.n_head,
        head_dim,
        positions=body.wpe.weight.data,
        max_positions=config.n_positions,
    )


def _gpt_neo(model: Any, positions: int) -> DecoderModel:
    body, config = model.transformer, model.config
    activation = ACTIVATIONS[config.activation_function]
    layers = []
    for index, block in enumerate(body.h):
        attention = block.attn.attention
        window = config.window_size if config.attention_layers[index] == "local" else 0
        qkv = linear(attention.q_proj, attention.k_proj, attention.v_proj)
        layers.append(
            DecoderLayer(
                layer_norm(block.ln_1),
                Attention(qkv, linear(attention.out_proj), 1.0, window),  # this family does not scale attention scores
                layer_norm(block.ln_2),
                Mlp(linear(block.mlp.c_fc), linear(block.mlp.c_proj), activation),
            )
        )
    return DecoderModel(
        "gpt_neo",
        body.wte.weight.data,
        layers,
        layer_norm(body.ln_f),
        linear(model.lm_head),
        config.num_heads,
        config.num_heads,
        config.hidden_size // config.num_heads,
        positions=body.wpe.weight.data,
        max_positions=config.max_position_embeddings,
    )


def _gptj(model: Any, positions: int) -> DecoderModel:
    body, config = model.transformer, model.config
    head_dim = config.n_embd // config.n_head
    activation = ACTIVATIONS[config.activation_function]
    size = config.rotary_dim or head_dim
    steps = torch.arange(0, size, 2, dtype=torch.int64, device=body.wte.weight.device)
    rotary = rotary_tables(1.0 / 10000 ** (steps / size), positions, head_dim, True)
    layers = []
    for block in body.h:
        norm, attention = layer_norm(block.ln_1), block.attn
        qkv = linear(attention.q_proj, attention.k_proj, attention.v_proj)
        own = Attention(qkv, linear(attention.out_proj), head_dim**-0.5, rotary=rotary)
        mlp = Mlp(linear(block.mlp.fc_in), linear(block.mlp.fc_out), activation)
        layers.append(DecoderLayer(norm, own, norm, mlp, True))
    return DecoderModel(
        "gptj",
        body.wte.weight.data,
        layers,
        layer_norm(body.ln_f),
        linear(model.lm_head),
        config.n_head,
        config.n_head,
        head_dim,
        max_positions=config.n_positions,
    )


def _gpt_neox(model: Any, positions: int) -> DecoderModel:
    body, config = model.gpt_neox, model.config
    head_dim = config.hidden_size // config.num_attention_heads
    activation = ACTIVATIONS[config.hidden_act]
    module = body.rotary_emb
    rotary = rotary_tables(module.inv_freq, positions, head_dim, False, float(module.attention_scaling))
    layers = []
    for block in body.layers:
        products = linear(block.attention.query_key_value), linear(block.attention.dense)
        layers.append(
            DecoderLayer(
                layer_norm(block.input_layernorm),
                Attention(*products, head_dim**-0.5, per_head=True, rotary=rotary),
                layer_norm(block.post_attention_layernorm),
                Mlp(linear(block.mlp.dense_h_to_4h), linear(block.mlp.dense_4h_to_h), activation),
                bool(config.use_parallel_residual),
            )
        )
    return DecoderModel(
        "gpt_neox",
        body.embed_in.weight.data,
        layers,
        layer_norm(body.final_layer_norm),
        linear(model.get_output_embeddings()),
        config.num_attention_heads,
        config.num_attention_heads,
        head_dim,
        max_positions=config.max_position_embeddings,
    )


def _opt(model: Any, positions: int) -> DecoderModel:
    body, config = model.model.decoder, model.config
    head_dim = config.hidden_size // config.num_attention_heads
    activation = ACTIVATIONS[config.activation_function]
    layers = []
    for block in body.layers:
        attention = block.self_attn
        qkv = linear(attention.q_proj, attention.k_proj, attention.v_proj)
        layers.append(
            DecoderLayer(
                layer_norm(block.self_attn_layer_norm),
                Attention(qkv, linear(attention.out_proj), head_dim**-0.5),
                layer_norm(block.final_layer_norm),
                Mlp(linear(block.fc1), linear(block.fc2), activation),
            )
        )
    return DecoderModel(
        "opt",
        body.embed_tokens.weight.data,
        layers,
        layer_norm(body.final_layer_norm),
        linear(model.lm_head),
        config.num_attention_heads,
        config.num_attention_heads,
        head_dim,
        positions=body.embed_positions.weight.data,
        position_offset=int(body.embed_positions.offset),
        max_positions=config.max_position_embeddings,
    )


def _bloom(model: Any, positions: int) -> DecoderModel:
    body, config = model.transformer, model.config
    heads = config.n_head
    head_dim = config.hidden_size // heads
    layers = []
    for block in body.h:
        products = linear(block.self_attention.query_key_value), linear(block.self_attention.dense)
        layers.append(
            DecoderLayer(
                layer_norm(block.input_layernorm),
                Attention(*products, head_dim**-0.5, per_head=True),
                layer_norm(block.post_attention_layernorm),
                Mlp(linear(block.mlp.dense_h_to_4h), linear(block.mlp.dense_4h_to_h), "gelu_tanh"),
            )
        )
    return DecoderModel(
        "bloom",
        body.word_embeddings.weight.data,
        layers,
        layer_norm(body.ln_f),
        linear(model.lm_head),
        heads,
        heads,
        head_dim,
        embedding_norm=layer_norm(body.word_embeddings_layernorm),
        alibi=_alibi_slopes(heads).to(body.word_embeddings.weight.device),
    )


def _alibi_slopes(heads: int) -> Tensor:
    """Slopes of the ALiBi paper: a geometric row for the next lower power of two, then every other of the finer row."""
    whole = 2 ** math.floor(math.log2(heads))
    slopes = [2.0 ** (-8.0 * (index + 1) / whole) for index in range(whole)]
    slopes += [2.0 ** (-4.0 * (2 * index + 1) / whole) for index in range(heads - whole)]
    return torch.tensor(slopes, dtype=torch.float32)


_BUILDERS: dict[str, Callable[[Any, int], DecoderModel]] = {
    "bloom": _bloom,
    "gpt2": _gpt2,
    "gpt_neo": _gpt_neo,
    "gpt_neox": _gpt_neox,
    "gptj": _gptj,
    "opt": _opt,
    **dict.fromkeys(llama.FAMILIES, llama.build),
}
FAMILIES = tuple(sorted(_BUILDERS))
#: Families that may have two rotary tables: kernels that norm heads turn them by one.
TWICE_TURNED = ("llama", "mistral", "phi3", "qwen2")
