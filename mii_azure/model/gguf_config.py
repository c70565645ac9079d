"""config.json of a GGUF file's model, from its key-values; a key that has no place there is refused, not dropped."""

from __future__ import annotations

import math
from typing import Any

from mii_azure.errors import ConfigMissing, NotAvailable, WeightsCorrupt
from mii_azure.model.gguf_architectures import Architecture, has_tensor
from mii_azure.model.gguf_header import COPY, ORIGINAL, Header
from mii_azure.model.rotary_factors import llama3_rotary, longrope

#: Tensors that tell factors of rotary frequencies, and are no parameters.
ROTARY = "rope_freqs.weight"
LONG, SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
_MOST = 2**31 - 1
_USUAL_BASE = 10_000.0
#: Keys that all architectures may have, and what reads them is below.
_READ = frozenset(
    [
        "context_length",
        "embedding_length",
        "block_count",
        "feed_forward_length",
        "vocab_size",
        "expert_count",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "attention.causal",
        "rope.dimension_count",
        "rope.freq_base",
        "rope.scaling.type",
        "rope.scaling.factor",
        "rope.scaling.original_context_length",
        "rope.scaling.attn_factor",
        "rope.scaling.yarn_beta_fast",
        "rope.scaling.yarn_beta_slow",
    ]
)
#: Keys that change no answer: whether a scale was trained with, and what embeddings are made of.
_SILENT = frozenset(("rope.scaling.finetuned", "pooling_type", "expert_used_count"))
#: How often a layer sees all keys, or which layers do not.
_PATTERNS = ("attention.sliding_window_pattern", "full_attention_interval")
#: Layers after the others that guess further tokens.
GUESSES = "nextn_predict_layers"
_SIZES = {"h": "embedding_length", "f": "feed_forward_length", "p": "context_length"}
_IDS = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "pad_token_id": "padding_token_id"}


def config_of(header: Header, found: Architecture) -> dict[str, Any]:
    """config.json, but for the type of the weights.

    Raises ConfigMissing for a key that is missing or no such number, NotAvailable for one that has no place, and
    WeightsCorrupt where keys and tensors disagree.
    """
    _refuse_unread(header, found)
    config: dict[str, Any] = {"model_type": found.model_type, "architectures": [found.model_class], **found.fixed}
    for key, name in found.settings.items():
        if key == "attention.head_count_kv":
            config[name] = _groups(header)
        elif (told := header.get(key)) is not None:
            config[name] = _checked(header, key, told)
        if config.get(name) != found.fixed.get(name, config.get(name)):
            raise NotAvailable(
                f"{header.file.name} has {header.architecture}.{key} {config[name]}; read is {found.fixed[name]}.",
                ORIGINAL,
            )
    epsilons = (key for key in found.settings if key.endswith("_epsilon"))
    sizes = (*_SIZES.values(), "block_count", "attention.head_count", "expert_count", "expert_used_count")
    usual = (key for key in sizes if key in found.settings)
    for key in (*usual, *epsilons, *found.required):
        if header.get(key) is None:
            raise _unusual(header, f"they have no {header.architecture}.{key}")
    for name, (tensor, axis) in found.sized.items():
        config[name] = next((each.shape[axis] for each in header.tensors if each.name == f"blk.0.{tensor}"), 0)
    for flag, tensors in found.flags.items():
        config[flag.lstrip("!")] = has_tensor(header.tensors, tensors[0]) is not flag.startswith("!")
    config[found.settings["block_count"]] = layers_of(header)
    config["vocab_size"] = _rows(header)
    config["tie_word_embeddings"] = not any(each.name == "output.weight" for each in header.tensors)
    config |= {name: header.fields.get(f"tokenizer.ggml.{key}") for name, key in _IDS.items()}
    _add_heads(header, found, config)
    _add_linear(header, config)
    _add_layers(header, found, config)
    if found.rope:
        _add_rotary(header, found, config)
    return config


def sizes_of(header: Header, config: dict[str, Any]) -> dict[str, int]:
    """Sizes of the tensors, by the letters of data/gguf.json."""
    sizes = {letter: number(header, key) for letter, key in _SIZES.items() if header.get(key)}
    heads, width = number(header, "attention.head_count"), _width(header)
    groups = _groups(header)
    sizes |= {"d": width, "n": heads, "g": groups, "q": heads * width, "k": groups * width}
    more = {
        "e": ("num_experts", "num_local_experts"),
        "m": ("moe_intermediate_size", "intermediate_size"),
        "v": ("vocab_size",),
    }
    more |= {
        "s": ("shared_expert_intermediate_size", "shared_intermediate_size"),
        "c": ("linear_conv_kernel_dim", "conv_L_cache"),
    }
    more |= {"H": ("linear_num_value_heads",), "y": ("linear_value_head_dim",)}
    for letter, names in more.items():
        sizes[letter] = next((config[name] for name in names if name in config), 0)
    sizes["K"] = config.get("linear_num_key_heads", 0) * config.get("linear_key_head_dim", 0)
    return sizes | {"V": sizes["H"] * sizes["y"]}


def layers_of(header: Header) -> int:
    """Layers, without those that guess further tokens, which transformers leaves out."""
    return number(header, "block_count") - (number(header, GUESSES) if header.get(GUESSES) else 0)


def _groups(header: Header) -> int:
    """Heads of keys and values, of a number for each layer those of the layers that have some."""
    told = header.get("attention.head_count_kv")
    if isinstance(told, list) and any(told) and header.architecture == "lfm2":
        told = next(filter(None, told))
        return int(told)
    return number(header, "attention.head_count_kv") if told else number(header, "attention.head_count")


def number(header: Header, key: str) -> int:
    """Whole number above 0 of a key of the architecture; raises ConfigMissing."""
    return int(_checked(header, key, header.get(key), whole=True))


def _checked(header: Header, key: str, told: Any, whole: bool = False) -> Any:
    """Value of a key: a number, of which a list has one kind, as some converters write a number for each layer."""
    if isinstance(told, list) and told and all(each == told[0] for each in told):
        told = told[0]
    kind = int if whole else int | float | bool
    if not isinstance(told, kind) or (whole and isinstance(told, bool)) or not _is_bounded(told, whole):
        raise _unusual(header, f"{header.architecture}.{key} is {_shown(told)}")
    return told


def _is_bounded(told: float, whole: bool) -> bool:
    return (1 if whole else -_MOST) <= told <= _MOST and math.isfinite(told)


def _shown(told: Any) -> str:
    return repr(told) if len(repr(told)) <= 60 else f"{repr(told)[:57]}..."


def _unusual(header: Header, what: str) -> ConfigMissing:
    return ConfigMissing(
        f"The metadata of {header.file.name} describe no model of transformers: {what}.", ORIGINAL, str(header.file)
    )


def _refuse_unread(header: Header, found: Architecture) -> None:
    """Raise NotAvailable for a key of the architecture that nothing here reads."""
    prefix = f"{header.architecture}."
    read = _READ | _SILENT | found.settings.keys() | set(found.ignored)
    read |= set(_PATTERNS) if found.full_every else set()
    read |= {"attention.scale"} if found.scaled_by_width_at else set()
    read |= {"rope.freq_base_swa"} if found.window_rope else set()
    for name, told in header.fields.items():
        key = name.removeprefix(prefix)
        if name.startswith(prefix) and key not in read and told not in (0, None, False):
            raise NotAvailable(
                f"{header.file.name} has {name} ({_shown(told)}), which has no place in transformers'"
                f" {found.model_class} here.",
                ORIGINAL,
            )
    if header.get("expert_count") and "expert_count" not in found.settings:
        raise NotAvailable(
            f"{header.file.name} is a mixture of experts of the architecture {header.architecture!r},"
            " which is not converted from GGUF.",
            ORIGINAL,
        )
    if header.get("attention.causal") is False:
        raise NotAvailable(f"{header.file.name} is no decoder: its attention looks ahead too.", ORIGINAL)


def _rows(header: Header) -> int:
    """Tokens that the model has embeddings for."""
    rows = next((each.shape[0] for each in header.tensors if each.name == "token_embd.weight"), 0)
    told, tokens = header.get("vocab_size"), header.fields["tokenizer.ggml.tokens"].length
    if rows and (told not in (None, rows) or tokens > rows):
        raise WeightsCorrupt(
            f"{header.file.name} has {rows} embeddings, {tokens} tokens, and says {told or rows}.",
            COPY,
            str(header.file),
        )
    return rows or tokens


def _width(header: Header) -> int:
    """Numbers of a head."""
    heads, hidden = number(header, "attention.head_count"), number(header, "embedding_length")
    if header.get("attention.key_length"):
        return number(header, "attention.key_length")
    return hidden // heads


def _add_heads(header: Header, found: Architecture, config: dict[str, Any]) -> None:
    width = _width(header)
    usual = number(header, "embedding_length") / number(header, "attention.head_count")
    if header.get("attention.value_length") not in (None, width):
        raise NotAvailable(f"{header.file.name} has keys and values of different widths.", ORIGINAL)
    if found.head_dim:
        config["head_dim"] = width
    elif width != usual:
        raise _unusual(header, f"a head has {width} numbers, and the model {usual:g} for each")
    if not found.scaled_by_width_at:
        return
    scale = header.get("attention.scale")
    by_width = number(header, "block_count") == found.scaled_by_width_at
    config["query_pre_attn_scalar"] = round(1 / scale**2) if scale else int(usual) if by_width else width


def _add_linear(header: Header, config: dict[str, Any]) -> None:
    """Add what linear attention has beside its settings, and the layers of LFM2 that have attention at all."""
    if heads := config.get("linear_num_value_heads"):
        config["linear_value_head_dim"] = number(header, "ssm.inner_size") // heads
    if "conv_L_cache" in config:
        told = header.get("attention.head_count_kv")
        if not isinstance(told, list) or len(told) != layers_of(header):
            raise _unusual(header, f"{_shown(told)} heads of keys do not tell which layers have attention")
        config["layer_types"] = ["full_attention" if each else "conv" for each in told]


def _add_layers(header: Header, found: Architecture, config: dict[str, Any]) -> None:
    """Add what differs from layer to layer, which most files leave to the architecture."""
    blocks = range(1, layers_of(header) + 1) if found.full_every or found.no_rope_every else ()
    if found.full_every and "attention.sliding_window" in found.settings and not header.get("attention.sliding_window"):
        config |= {"sliding_window": None, "layer_types": ["full_attention"] * len(blocks)}
    elif found.full_every:
        told = next((header.get(key) for key in _PATTERNS if header.get(key)), found.full_every)
        few = told if isinstance(told, list) else [block % told != 0 for block in blocks]
        if len(few) != len(blocks):
            raise _unusual(header, f"a pattern of {len(few)} layers stands for {len(blocks)}")
        config["layer_types"] = [found.few if each else "full_attention" for each in few]
    if found.no_rope_every:
        config["no_rope_layers"] = [int(block % found.no_rope_every != 0) for block in blocks]
    if config.get("sliding_window") == 0:
        config["sliding_window"] = None


def _add_rotary(header: Header, found: Architecture, config: dict[str, Any]) -> None:
    rotary: dict[str, Any] = {"rope_type": "default"}
    rotary["rope_theta"] = float(_checked(header, "rope.freq_base", header.get("rope.freq_base") or _USUAL_BASE))
    turned, width = header.get("rope.dimension_count") or _width(header), _width(header)
    if found.partial_rope:
        rotary["partial_rotary_factor"] = number(header, "rope.dimension_count") / width if turned != width else 1.0
    elif turned != width:
        raise NotAvailable(f"{header.file.name} turns {turned} of {width} numbers of a head.", ORIGINAL)
    rotary |= _scaling(header, found)
    if sections := header.get("rope.dimension_sections"):
        rotary |= {"mrope_section": [each for each in sections if each], "mrope_interleaved": True}
    factors = {each.name: each for each in header.tensors if each.name in (ROTARY, LONG, SHORT)}
    if ROTARY in factors:
        rotary = llama3_rotary(header, factors[ROTARY], rotary)
    if LONG in factors and SHORT in factors:
        rotary |= longrope(header, factors[LONG], factors[SHORT])
    if found.window_rope:
        base = header.get("rope.freq_base_swa") or found.window_rope
        near = {"rope_type": "default", "rope_theta": float(base)}
        config["rope_parameters"] = {"full_attention": rotary, "sliding_attention": near}
    else:
        config["rope_parameters"] = rotary


def _scaling(header: Header, found: Architecture) -> dict[str, Any]:
    """Rule by which positions are scaled, of those that transformers has by the same numbers."""
    kind, factor = header.get("rope.scaling.type"), header.get("rope.scaling.factor")
    if kind in (None, "none") or (kind == "linear" and factor in (None, 0, 1)):
        return {}
    original = header.get("rope.scaling.original_context_length")
    plain = not found.partial_rope and header.get("rope.scaling.attn_factor") in (None, 1.0)
    if plain and factor and (kind == "linear" or (kind == "yarn" and original)):
        told = {"rope_type": kind, "factor": float(_checked(header, "rope.scaling.factor", factor))}
        return told | (_yarn(header, found, original) if kind == "yarn" else {})
    raise NotAvailable(
        f"{header.file.name} scales its positions ({kind}) by numbers that are not read from GGUF.", ORIGINAL
    )


def _yarn(header: Header, found: Architecture, original: int) -> dict[str, Any]:
    """Numbers of YaRN beside its factor; what a file does not tell is transformers' own, but for an architecture's."""
    told = {key: header.get(f"rope.scaling.yarn_{key}") for key in ("beta_fast", "beta_slow")}
    betas = {
        key: float(_checked(header, f"rope.scaling.yarn_{key}", each)) for key, each in told.items() if each is not None
    }
    return {"original_max_position_embeddings": original} | found.yarn | betas
