"""Brings a loaded transformers decoder into a `Form`; one function a family, weights shared with the model."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from scoring.decoder_form import Activation, Attention, Form, Layer, Linear, Mlp, Norm, Rotary
from scoring.decoder_team import Team
from scoring.errors import LoadError

_ACTIVATIONS: dict[str, Activation] = {
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


def build(model: Any, positions: int, team: Team | None = None) -> Form:
    """The model's form, with rotary tables for `positions` tokens; raises LoadError for what is not covered.

    With a team it is that of this rank's slice, as DeepSpeed's AutoTP cut it.
    """
    reason = unsupported(model.config)
    if reason:
        raise LoadError(f"The static decoder does not cover this model: {reason}.", "Serve it with plain transformers.")
    with torch.no_grad():
        form = _BUILDERS[model.config.model_type](model, positions)
    if team is not None:
        form.heads, form.kv_heads, form.team = form.heads // team.degree, form.kv_heads // team.degree, team
    return form


def unsupported(config: Any) -> str:
    """Why a configuration is not covered, or an empty string; needs no weights."""
    family = config.model_type
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
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope not in ("default", "linear", "llama3", "yarn"):
        return f"{rope} rotary positions change with the length"
    activation = _activation_name(config)
    if activation not in _ACTIVATIONS:
        return f"activation {activation}"
    return ""


def _activation_name(config: Any) -> str:
    for name in ("activation_function", "hidden_activation", "hidden_act"):
        if getattr(config, name, None):
            return str(getattr(config, name))
    return "gelu_new"  # BLOOM has no key for it


def _linear(*modules: Any) -> Linear:
    """One product out of one or more modules over the same input; packed once, the modules then view the pack."""
    if type(modules[0]).__name__ == "Conv1D":  # GPT-2's keeps [K, N]
        (module,) = modules
        packed = module.weight.data.t().contiguous()
        module.weight.data = packed.t()
        return Linear(packed, module.bias.data)
    if len(modules) == 1:
        (module,) = modules
        module.weight.data = module.weight.data.contiguous()  # a slice of the inputs may not be
        return Linear(module.weight.data, None if module.bias is None else module.bias.data)
    return Linear(
        _pack([m.weight for m in modules]), None if modules[0].bias is None else _pack([m.bias for m in modules])
    )


def _pack(parameters: list[nn.Parameter]) -> Tensor:
    packed = torch.cat([parameter.data for parameter in parameters])
    start = 0
    for parameter in parameters:
        size = parameter.shape[0]
        parameter.data = packed[start : start + size]
        start += size
    return packed


def _layer_norm(module: Any) -> Norm:
    return Norm("layer", module.weight.data.float(), module.bias.data.float(), float(module.eps))


def _rms_norm(module: Any, offset: float = 0.0) -> Norm:
    eps = module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps
    return Norm("rms", module.weight.data.float() + offset, None, float(eps))


def _tables(inv_freq: Tensor, positions: int, head_dim: int, interleaved: bool, factor: float = 1.0) -> Rotary:
    angles = torch.arange(positions, device=inv_freq.device).float()[:, None] * inv_freq.float()[None, :]
    half = angles.shape[1]
    cos = torch.ones(positions, head_dim // 2, device=inv_freq.device)
    sin = torch.zeros_like(cos)
    cos[:, :half] = angles.cos() * factor
    sin[:, :half] = angles.sin() * factor
    return Rotary(cos, sin, half, interleaved)


def _gpt2(model: Any, positions: int) -> Form:
    body, config = model.transformer, model.config
    activation = _ACTIVATIONS[config.activation_function]
    head_dim = config.n_embd // config.n_head
    layers = []
    for index, block in enumerate(body.h):
        scale = head_dim**-0.5 if config.scale_attn_weights else 1.0
        scale /= index + 1 if config.scale_attn_by_inverse_layer_idx else 1
        layers.append(
            Layer(
                _layer_norm(block.ln_1),
                Attention(_linear(block.attn.c_attn), _linear(block.attn.c_proj), scale),
                _layer_norm(block.ln_2),
                Mlp(_linear(block.mlp.c_fc), _linear(block.mlp.c_proj), activation),
            )
        )
    return Form(
        "gpt2",
        body.wte.weight.data,
        layers,
        _layer_norm(body.ln_f),
        _linear(model.lm_head),
        config.n_head,
        config.n_head,
        head_dim,
        positions=body.wpe.weight.data,
        max_positions=config.n_positions,
    )


def _gpt_neo(model: Any, positions: int) -> Form:
    body, config = model.transformer, model.config
    activation = _ACTIVATIONS[config.activation_function]
    layers = []
    for index, block in enumerate(body.h):
        attention = block.attn.attention
        window = config.window_size if config.attention_layers[index] == "local" else 0
        qkv = _linear(attention.q_proj, attention.k_proj, attention.v_proj)
        layers.append(
            Layer(
                _layer_norm(block.ln_1),
                Attention(qkv, _linear(attention.out_proj), 1.0, window),  # the family divides nothing
                _layer_norm(block.ln_2),
                Mlp(_linear(block.mlp.c_fc), _linear(block.mlp.c_proj), activation),
            )
        )
    return Form(
        "gpt_neo",
        body.wte.weight.data,
        layers,
        _layer_norm(body.ln_f),
        _linear(model.lm_head),
        config.num_heads,
        config.num_heads,
        config.hidden_size // config.num_heads,
        positions=body.wpe.weight.data,
        max_positions=config.max_position_embeddings,
    )


def _gptj(model: Any, positions: int) -> Form:
    body, config = model.transformer, model.config
    head_dim = config.n_embd // config.n_head
    activation = _ACTIVATIONS[config.activation_function]
    layers = []
    for block in body.h:
        norm, attention = _layer_norm(block.ln_1), block.attn
        qkv = _linear(attention.q_proj, attention.k_proj, attention.v_proj)
        mlp = Mlp(_linear(block.mlp.fc_in), _linear(block.mlp.fc_out), activation)
        layers.append(Layer(norm, Attention(qkv, _linear(attention.out_proj), head_dim**-0.5), norm, mlp, True))
    size = config.rotary_dim or head_dim
    steps = torch.arange(0, size, 2, dtype=torch.int64, device=body.wte.weight.device)
    return Form(
        "gptj",
        body.wte.weight.data,
        layers,
        _layer_norm(body.ln_f),
        _linear(model.lm_head),
        config.n_head,
        config.n_head,
        head_dim,
        rotary=_tables(1.0 / 10000 ** (steps / size), positions, head_dim, True),
        max_positions=config.n_positions,
    )


def _gpt_neox(model: Any, positions: int) -> Form:
    body, config = model.gpt_neox, model.config
    head_dim = config.hidden_size // config.num_attention_heads
    activation = _ACTIVATIONS[config.hidden_act]
    layers = []
    for block in body.layers:
        products = _linear(block.attention.query_key_value), _linear(block.attention.dense)
        layers.append(
            Layer(
                _layer_norm(block.input_layernorm),
                Attention(*products, head_dim**-0.5, per_head=True),
                _layer_norm(block.post_attention_layernorm),
                Mlp(_linear(block.mlp.dense_h_to_4h), _linear(block.mlp.dense_4h_to_h), activation),
                bool(config.use_parallel_residual),
            )
        )
    rotary = body.rotary_emb
    return Form(
        "gpt_neox",
        body.embed_in.weight.data,
        layers,
        _layer_norm(body.final_layer_norm),
        _linear(model.get_output_embeddings()),
        config.num_attention_heads,
        config.num_attention_heads,
        head_dim,
        rotary=_tables(rotary.inv_freq, positions, head_dim, False, float(rotary.attention_scaling)),
        max_positions=config.max_position_embeddings,
    )


def _opt(model: Any, positions: int) -> Form:
    body, config = model.model.decoder, model.config
    head_dim = config.hidden_size // config.num_attention_heads
    activation = _ACTIVATIONS[config.activation_function]
    layers = []
    for block in body.layers:
        attention = block.self_attn
        qkv = _linear(attention.q_proj, attention.k_proj, attention.v_proj)
        layers.append(
            Layer(
                _layer_norm(block.self_attn_layer_norm),
                Attention(qkv, _linear(attention.out_proj), head_dim**-0.5),
                _layer_norm(block.final_layer_norm),
                Mlp(_linear(block.fc1), _linear(block.fc2), activation),
            )
        )
    return Form(
        "opt",
        body.embed_tokens.weight.data,
        layers,
        _layer_norm(body.final_layer_norm),
        _linear(model.lm_head),
        config.num_attention_heads,
        config.num_attention_heads,
        head_dim,
        positions=body.embed_positions.weight.data,
        position_offset=int(body.embed_positions.offset),
        max_positions=config.max_position_embeddings,
    )


def _bloom(model: Any, positions: int) -> Form:
    body, config = model.transformer, model.config
    heads = config.n_head
    head_dim = config.hidden_size // heads
    layers = []
    for block in body.h:
        products = _linear(block.self_attention.query_key_value), _linear(block.self_attention.dense)
        layers.append(
            Layer(
                _layer_norm(block.input_layernorm),
                Attention(*products, head_dim**-0.5, per_head=True),
                _layer_norm(block.post_attention_layernorm),
                Mlp(_linear(block.mlp.dense_h_to_4h), _linear(block.mlp.dense_4h_to_h), "gelu_tanh"),
            )
        )
    return Form(
        "bloom",
        body.word_embeddings.weight.data,
        layers,
        _layer_norm(body.ln_f),
        _linear(model.lm_head),
        heads,
        heads,
        head_dim,
        embedding_norm=_layer_norm(body.word_embeddings_layernorm),
        alibi=_alibi_slopes(heads).to(body.word_embeddings.weight.device),
    )


def _alibi_slopes(heads: int) -> Tensor:
    """Slopes of the ALiBi paper: a geometric row for the next lower power of two, then every other of the finer row."""
    whole = 2 ** math.floor(math.log2(heads))
    slopes = [2.0 ** (-8.0 * (index + 1) / whole) for index in range(whole)]
    slopes += [2.0 ** (-4.0 * (2 * index + 1) / whole) for index in range(heads - whole)]
    return torch.tensor(slopes, dtype=torch.float32)


def _llama(model: Any, positions: int) -> Form:
    """Llama, Mistral, Qwen2 and Gemma."""
    body, config = model.model, model.config
    gemma = config.model_type == "gemma"
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    activation = _ACTIVATIONS[_activation_name(config)]
    layers = []
    for block in body.layers:
        attention, mlp = block.self_attn, block.mlp
        qkv = _linear(attention.q_proj, attention.k_proj, attention.v_proj)
        window = int(getattr(attention, "sliding_window", None) or 0)
        if config.model_type == "mistral":
            window = int(config.sliding_window or 0)
        layers.append(
            Layer(
                _rms_norm(block.input_layernorm, float(gemma)),
                Attention(qkv, _linear(attention.o_proj), float(attention.scaling), window),
                _rms_norm(block.post_attention_layernorm, float(gemma)),
                Mlp(_linear(mlp.gate_proj, mlp.up_proj), _linear(mlp.down_proj), activation, gated=True),
            )
        )
    rotary = body.rotary_emb
    return Form(
        config.model_type,
        body.embed_tokens.weight.data,
        layers,
        _rms_norm(body.norm, float(gemma)),
        _linear(model.lm_head),
        config.num_attention_heads,
        config.num_key_value_heads,
        head_dim,
        embedding_scale=float(torch.tensor(config.hidden_size**0.5).to(model.dtype)) if gemma else 1.0,
        rotary=_tables(rotary.inv_freq, positions, head_dim, False, float(rotary.attention_scaling)),
        max_positions=config.max_position_embeddings,
    )


_BUILDERS: dict[str, Callable[[Any, int], Form]] = {
    "bloom": _bloom,
    "gemma": _llama,
    "gpt2": _gpt2,
    "gpt_neo": _gpt_neo,
    "gpt_neox": _gpt_neox,
    "gptj": _gptj,
    "llama": _llama,
    "mistral": _llama,
    "opt": _opt,
    "qwen2": _llama,
}
FAMILIES = tuple(sorted(_BUILDERS))
