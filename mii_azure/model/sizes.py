"""Sizes that config.json tells of a model's tensors, and which tensors have them, by name."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from mii_azure.model import configs
from mii_azure.model.cached_layers import shapes_of_layers, shared_layers
from mii_azure.model.families import Family, fact
from mii_azure.model.safetensors import INPUTS, Tensor

_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|block)\.(\d+)\.")
# Parts of multimodal models that have sizes of their own, beside a text part.
_NOT_TEXT = re.compile(r"(?:^|\.)(?:vision|visual|image|audio|speech|embed_vision|embed_audio)[a-z_]*\.")
_TEXT = re.compile(r"(?:^|\.)(?:language_model|text_model)\.")
_SIDES = ("encoder", "decoder")
_SIDED = ("encoder-decoder", "speech")


class _Size(NamedTuple):
    """Axis of tensors whose length config.json tells under one of these keys, the first that is there."""

    tensors: re.Pattern[str]
    axis: int
    keys: tuple[str, ...]
    more: tuple[int, ...] = (0,)  # how many more the tensors may have


_EMBEDDED = ("embedding_size", "word_embed_proj_dim", "hidden_size", "d_model", "n_embd", "n_embed", "dim", "emb_dim")
_INNER = _Size(
    re.compile(
        r"(?:intermediate\.dense|mlp\.(?:up|gate)_proj|(?:^|\.)fc1|ffn\.lin1|dense_h_to_4h|DenseReluDense\.wi(?:_[01])?)"
        r"\.weight$"
    ),
    0,
    ("hidden_dim", "intermediate_size", "ffn_dim", "d_ff"),
)
_SIZES = (
    _Size(re.compile("|".join(f"(?:{re.escape(end)}$)" for end in INPUTS)), 1, _EMBEDDED),
    # Some tables begin with two rows for padding.
    _Size(
        re.compile(r"(?:position_embeddings|wpe|embed_positions)\.weight$"),
        0,
        ("max_position_embeddings", "n_positions"),
        (0, 2),
    ),
    _Size(re.compile(r"token_type_embeddings\.weight$"), 0, ("type_vocab_size",)),
    _INNER,
)
_ATTENTION = re.compile(r"\.(q|k|v)_proj\.weight$")


def has_told_size(tensor: Tensor) -> bool:
    """True if config.json tells a size of the tensor, or of the layers that it is one of, where names are known."""
    told = (_LAYER, *(size.tensors for size in _SIZES))
    return len(tensor.shape) == 2 and any(each.search(tensor.name) for each in told)


def disagreements(tensors: tuple[Tensor, ...], config: dict[str, Any], family: Family) -> Iterator[str]:
    """Sentences on tensors that have other sizes than config.json tells, and on stacks of fewer or more layers."""
    tensors = _of_text(tensors, config)
    for tensor in tensors:
        for size in _SIZES:
            told = _told(size.keys, tensor.name, config, family) if size.tensors.search(tensor.name) else None
            if told is not None and size is _INNER and _is_double(tensor.name, config, family):
                told = f"{told[0]}, doubled,", 2 * told[1]
            if told is not None and tensor.shape[size.axis] - told[1] not in size.more:
                yield f"{tensor.name} is {list(tensor.shape)}, and config.json's {told[0]} is {told[1]}."
        rows = _rows_of_attention(tensor.name, config, family)
        if rows and tensor.shape[0] != rows:
            yield f"{tensor.name} is {list(tensor.shape)}, and config.json's heads take {rows:,} rows."
    for stack, count in _stacks(tensors).items():
        layers = _layers(stack, config, family)
        if layers and count != layers:
            yield f"The weights have {count} layers under {stack or 'no name'}, and config.json tells of {layers}."


def _of_text(tensors: tuple[Tensor, ...], config: dict[str, Any]) -> tuple[Tensor, ...]:
    """Tensors of the text part, where config.json tells of several parts."""
    if not configs.value(config, "text_config", dict):
        return tensors
    named = tuple(tensor for tensor in tensors if _TEXT.search(tensor.name))
    return named or tuple(tensor for tensor in tensors if not _NOT_TEXT.search(tensor.name))


def _told(keys: tuple[str, ...], name: str, config: dict[str, Any], family: Family) -> tuple[str, int] | None:
    if family.kind == "speech" and "max_position_embeddings" in keys:
        return None  # each side has positions of its own
    side = next((each for each in _SIDES if each in name.split(".")), "") if family.kind in _SIDED else ""
    keys = tuple(f"{side}_{key}" for key in keys if key == "ffn_dim" and side) + keys
    nested = configs.value(config, "text_config", dict) or {}
    for key in keys:
        for place in (config, nested):
            if isinstance(found := place.get(key), int) and not isinstance(found, bool):
                return key, configs.bounded(found, key)
    return None


def _rows_of_attention(name: str, config: dict[str, Any], family: Family) -> int | None:
    """Rows of a product of queries, keys or values; None for other tensors, and for models of two sides."""
    found = _ATTENTION.search(name)
    heads, hidden = fact(config, family, "heads"), fact(config, family, "hidden_size")
    if found is None or family.kind != "decoder" or not heads or not hidden:
        return None
    shape = fact(config, family, "kv_heads") or heads, fact(config, family, "head_dim") or hidden // heads
    layers, layer = fact(config, family, "layers") or 0, _LAYER.search(name)
    if layer and (shapes := shapes_of_layers(config, layers, *shape)):
        shape = shapes[min(int(layer[1]), len(shapes) - 1)]
    return shape[1] * (heads if found[1] == "q" else shape[0])


def _is_double(name: str, config: dict[str, Any], family: Family) -> bool:
    """True for a tensor of a layer whose MLP is twice as wide as config.json says: one that keeps no keys, if told."""
    text, layer = configs.value(config, "text_config", dict) or config, _LAYER.search(name)
    layers = fact(config, family, "layers") or 0
    return bool(text.get("use_double_wide_mlp") and layer and int(layer[1]) >= layers - shared_layers(config, layers))


def _stacks(tensors: tuple[Tensor, ...]) -> dict[str, int]:
    """Layers of each stack, by the name that stands before their numbers."""
    found: dict[str, int] = {}
    for tensor in tensors:
        if layer := _LAYER.search(tensor.name):
            stack = tensor.name[: layer.start(1) - 1]
            found[stack] = max(found.get(stack, 0), int(layer[1]) + 1)
    return found


def _layers(stack: str, config: dict[str, Any], family: Family) -> int | None:
    layers = fact(config, family, "layers")
    if family.kind not in _SIDED:  # a decoder may be one side of its family
        return (fact(config, family, "decoder_layers") if family.kind == "decoder" else None) or layers
    side = next((each for each in _SIDES if each in stack.split(".")), "")
    return fact(config, family, f"{side}_layers") or layers if side else None
