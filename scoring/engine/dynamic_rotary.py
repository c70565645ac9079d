"""Parts of a model that change with the length of the longest sequence in a forward.

Rotary positions of two kinds, longrope and dynamic NTK, and BigBird's attention.
"""

from collections.abc import Hashable, Iterator, Sequence
from typing import Any, NamedTuple

from scoring.engine import block_attention

_CHANGING = ("longrope", "su", "dynamic")  # "su" is what the first Phi-3 called longrope


class RotaryChange(NamedTuple):
    """One kind of change with the length, and the number of tokens up to which there is none."""

    kind: str
    tokens: int


def changes(config: Any) -> list[RotaryChange]:
    """Changes with the length in a model of that config; most models have none."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    found = []
    for rope in _ropes(text):
        kind = str(rope.get("rope_type", rope.get("type", "default")))
        if any(name in kind for name in _CHANGING):
            found.append(RotaryChange("dynamic" if "dynamic" in kind else "longrope", _trained(text, rope)))
    if most := block_attention.full_tokens(config):
        found.append(RotaryChange("blocks", most))
    return found


def _ropes(config: Any) -> Iterator[dict[str, Any]]:
    """Rotary parameters of every layer type: some configs have one set, some one per type."""
    told = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if not isinstance(told, dict):
        return
    nested = [each for each in told.values() if isinstance(each, dict)]
    yield from nested or [told]


def _trained(config: Any, rope: dict[str, Any]) -> int:
    own = rope.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
    return int(own or getattr(config, "max_position_embeddings", 0) or 0)


def length_class(known: Sequence[RotaryChange], prompt: int, total: int) -> Hashable:
    """Key of a row with `prompt` tokens before and `total` after generation: rows with equal keys may share a forward.

    Rows that never reach the change share one, as do longrope's that begin past it; any other row changes at
    a step of its own, shared only by rows with prompts of the same length.
    """
    found: list[Hashable] = []
    for kind, tokens in known:
        if total <= tokens:
            found.append("short")
        else:
            found.append("long" if kind == "longrope" and prompt > tokens else prompt)
    return tuple(found)


def forget(model: Any, tokens: int) -> None:
    """Reset what earlier sequences have changed in a model, before a forward of `tokens` tokens a row."""
    block_attention.pin(model, tokens)
    for module in model.modules():
        longest = getattr(module, "original_max_seq_len", None)
        if longest is None or "dynamic" not in str(getattr(module, "rope_type", "")):
            continue
        for name, buffer in list(module.named_buffers(recurse=False)):
            original = getattr(module, f"{name.removesuffix('inv_freq')}original_inv_freq", None)
            if name.endswith("inv_freq") and "original" not in name and original is not None:
                module.register_buffer(name, original.to(buffer.device, copy=True), persistent=False)
        for name in [name for name in vars(module) if name.endswith("max_seq_len_cached")]:
            setattr(module, name, longest)
