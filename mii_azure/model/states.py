"""Recurrent states, as config.json tells them: which layers keep them, and their bytes for one sequence."""

from collections.abc import Callable
from typing import Any, NamedTuple

from mii_azure.model import configs
from scoring.passes.families import RECURRENT

_ATTENDING = ("attention", "full_attention", "sliding_attention", "hybrid", "hybrid_sliding")
_KEEPING = ("mamba", "linear_attention", "conv", "hybrid", "hybrid_sliding")
_WIDE = 4  # bytes of a number in float32, in which most modules keep their states, all of them on a CPU
_SYMBOLS = {"M": "mamba", "*": "attention"}
#: Types all of whose layers are of one kind, and distances of layers with attention where config.json tells none.
_ALL = {"falcon_h1": "hybrid", "zaya": "hybrid", "falcon_mamba": "mamba", "mamba": "mamba", "mamba2": "mamba"}
_EVERY = {"bailing_hybrid": 6}
_USUAL = 4


class States(NamedTuple):
    """Layers that keep keys and values, layers that keep recurrent states, and a sequence's numbers in one of these."""

    attending: int
    keeping: int
    numbers: int = 0

    @property
    def bytes(self) -> int:
        """Bytes of a sequence's states, in float32."""
        return self.keeping * self.numbers * _WIDE


def states(config: dict[str, Any], family: str, layers: int) -> States | None:
    """States of a type whose layers keep them; None for any other."""
    if family not in RECURRENT:
        return None
    text = configs.value(config, "text_config", dict) or config
    kinds = _kinds(text, family, layers)
    attending, keeping = (sum(kind in named for kind in kinds) for named in (_ATTENDING, _KEEPING))
    return States(attending, keeping, sum(_FORMS.get(family, _mamba2)(text)))


def _kinds(text: dict[str, Any], family: str, layers: int) -> list[str]:
    """Kinds of the layers, as told in any of the ways that configurations have."""
    for name in ("layer_types", "layers_block_type"):
        told = text.get(name)
        if isinstance(told, list) and len(told) == layers:
            return [str(kind) for kind in told]
    if family in _ALL:
        return [_ALL[family]] * layers
    if isinstance(pattern := text.get("hybrid_override_pattern"), str):
        return [_SYMBOLS.get(symbol, "mlp") for symbol in pattern]
    attending = _attending(text, family, layers)
    return ["attention" if layer in attending else "mamba" for layer in range(layers)]


def _attending(text: dict[str, Any], family: str, layers: int) -> set[int]:
    """Numbers of the layers with attention, where they are told by numbers or by distance."""
    linear = text.get("linear_attn_config")
    if isinstance(linear, dict) and isinstance(linear.get("full_attn_layers"), list):
        return {each - 1 for each in linear["full_attn_layers"] if isinstance(each, int)}
    for name in ("attn_layer_indices", "full_attn_idxs"):
        if isinstance(told := text.get(name), list):
            return {each for each in told if isinstance(each, int)}
    if period := _number(text, "attn_layer_period"):
        return set(range(_number(text, "attn_layer_offset"), layers, period))
    if family in ("bamba", "granitemoehybrid"):
        return set()
    every = _number(text, "full_attention_interval", "layer_group_size") or _EVERY.get(family, _USUAL)
    first = every if family == "kimi_linear" else every - 1
    return set(range(first, layers, every))


def _mamba2(text: dict[str, Any]) -> tuple[int, int]:
    """Numbers of a layer's convolution and of its recurrent state."""
    state, kernel = _number(text, "mamba_d_state", "ssm_state_size", "state_size"), _kernel(text)
    heads = _number(text, "mamba_n_heads", "mamba_num_heads", "n_mamba_heads", "num_heads")
    head = _number(text, "mamba_d_head", "mamba_head_dim", "mamba_headdim")
    inner = _number(text, "mamba_d_ssm") or heads * head or _inner(text)
    groups = _number(text, "mamba_n_groups", "mamba_ngroups", "n_groups") or 1
    return (inner + 2 * groups * state) * kernel, inner * state


def _mamba(text: dict[str, Any]) -> tuple[int, int]:
    inner = _number(text, "intermediate_size") if text.get("model_type") in ("mamba", "falcon_mamba") else 0
    inner = inner or _inner(text)
    return inner * _kernel(text), inner * _number(text, "mamba_d_state", "state_size", "ssm_state_size")


def _delta(text: dict[str, Any]) -> tuple[int, int]:
    linear = text.get("linear_attn_config")
    told = {f"linear_{name}": number for name, number in linear.items()} if isinstance(linear, dict) else {}
    text = text | told
    keys = _number(text, "linear_num_key_heads", "linear_num_heads", "num_attention_heads")
    values = _number(text, "linear_num_value_heads") or keys
    key = _number(text, "linear_key_head_dim", "linear_head_dim", "head_dim")
    value = _number(text, "linear_value_head_dim") or key
    return (2 * keys * key + values * value) * _kernel(text), values * key * value


def _convolution(text: dict[str, Any]) -> tuple[int, int]:
    return _number(text, "hidden_size") * (_number(text, "conv_L_cache") or 3), 0


def _zaya(text: dict[str, Any]) -> tuple[int, int]:
    heads, shared, width = (_number(text, name) for name in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    kernel = (_number(text, "cca_time0") or 2) + (_number(text, "cca_time1") or 2) - 2
    return (heads + shared) * width * kernel, shared * width // 2


def _inner(text: dict[str, Any]) -> int:
    return (_number(text, "mamba_expand", "expand") or 2) * _number(text, "hidden_size")


def _kernel(text: dict[str, Any]) -> int:
    names = ("mamba_d_conv", "conv_kernel", "linear_conv_kernel_dim", "linear_short_conv_kernel_size")
    return _number(text, *names, "short_conv_kernel_size") or 4


def _number(text: dict[str, Any], *keys: str) -> int:
    """The first size that is told under one of these names; 0 without any."""
    for key in keys:
        found = text.get(key)
        if isinstance(found, int) and not isinstance(found, bool) and 0 < found <= configs.LARGEST_FACT:
            return found
    return 0


_FORMS: dict[str, Callable[[dict[str, Any]], tuple[int, int]]] = {
    **dict.fromkeys(("falcon_mamba", "jamba", "mamba", "zamba"), _mamba),
    **dict.fromkeys(("bailing_hybrid", "kimi_linear", "olmo_hybrid"), _delta),
    **dict.fromkeys(("qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next"), _delta),
    **dict.fromkeys(("lfm2", "lfm2_moe", "lfm3"), _convolution),
    "zaya": _zaya,
}
