"""Parts of transformers' decoders as data: products, norms, activations and rotary tables, weights shared."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from scoring.decoder.model import Activation, Linear, Norm, Rotary

ACTIVATIONS: dict[str, Activation] = {
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}

#: Kinds of rotary positions that are the same at every length that a model takes: dynamic ones change beyond it.
_FIXED_ROTARY = ("default", "linear", "llama3", "yarn", "proportional", "dynamic")
_LONG = "longrope"  # of two kinds: for sequences of up to so many tokens, and for longer ones


class TextPart(NamedTuple):
    """Text part of a multimodal model, with the names that a decoder of that family has."""

    model: Any
    lm_head: Any
    config: Any
    dtype: torch.dtype


def text_part(model: Any) -> Any:
    """The decoder itself; of a multimodal model, its text part."""
    text = model.config.get_text_config(decoder=True)
    if text is model.config:
        return model
    return TextPart(model.get_decoder(), model.get_output_embeddings(), text, model.dtype)


def changing_rotary(config: Any) -> str:
    """Kind of rotary positions in a config that change with the length in a way not known; empty if none do."""
    kinds = [str(found.get("rope_type", "default")) for found in _rotaries(config)]
    return next((kind for kind in kinds if kind not in (*_FIXED_ROTARY, _LONG)), "")


def steady_rotary(config: Any) -> int:
    """Tokens of a sequence above which rotary positions differ; 0 if they never do within the model's context."""
    found = [each for each in _rotaries(config) if each.get("rope_type") == _LONG]
    own = [int(each.get("original_max_position_embeddings") or 0) for each in found]
    most = int(getattr(config, "max_position_embeddings", 0) or 0)
    return min((each for each in own if 0 < each < most), default=0)


def _rotaries(config: Any) -> list[dict[str, Any]]:
    """Rotary parameters of a config: of all layers, or of each kind."""
    parameters = getattr(config, "rope_parameters", None) or {}
    return [parameters] if "rope_type" in parameters else [p for p in parameters.values() if isinstance(p, dict)]


def activation_name(config: Any) -> str:
    """Name of the MLP's function in a config; families call the key differently."""
    for name in ("activation_function", "hidden_activation", "hidden_act"):
        if getattr(config, name, None):
            return str(getattr(config, name))
    return "gelu_new"  # BLOOM has no key for it


def linear(*modules: Any) -> Linear:
    """Fuse modules over the same input into one product; packed once, then viewed by the modules."""
    if type(modules[0]).__name__ == "Conv1D":  # GPT-2's keeps [K, N]
        (module,) = modules
        packed = module.weight.data.t().contiguous()
        module.weight.data = packed.t()
        return Linear(packed, module.bias.data)
    if len(modules) == 1:
        (module,) = modules
        module.weight.data = module.weight.data.contiguous()  # a slice along the inputs may not be contiguous
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


def layer_norm(module: Any) -> Norm:
    """LayerNorm as a `Norm`; zeros if it has no shift."""
    gain = module.weight.data.float()
    shift = getattr(module, "bias", None)
    return Norm("layer", gain, torch.zeros_like(gain) if shift is None else shift.data.float(), epsilon(module))


def rms_norm(module: Any, offset: float = 0.0) -> Norm:
    """An RMSNorm whose gain is its weight plus an offset, as Gemma's is."""
    return Norm("rms", module.weight.data.float() + offset, None, epsilon(module))


def epsilon(module: Any) -> float:
    """Epsilon that a norm adds to the variance."""
    return float(module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps)


def rotary_tables(
    inv_freq: Tensor,
    positions: int,
    head_dim: int,
    interleaved: bool,
    factor: float = 1.0,
    long: Tensor | None = None,
) -> Rotary:
    """Rotary tables for positions from 0, of inverse frequencies [pairs] and the factor on cosine and sine.

    `long` frequencies make a second part, for the same positions.
    """
    kinds = [inv_freq] if long is None else [inv_freq, long.to(inv_freq.device)]
    steps = torch.arange(positions, device=inv_freq.device).float()[:, None]
    angles = torch.cat([steps * each.float()[None, :] for each in kinds])
    half = angles.shape[1]
    cos = torch.ones(len(angles), head_dim // 2, device=inv_freq.device)
    sin = torch.zeros_like(cos)
    cos[:, :half] = angles.cos() * factor
    sin[:, :half] = angles.sin() * factor
    return Rotary(cos, sin, half, interleaved, 0 if long is None else positions)
