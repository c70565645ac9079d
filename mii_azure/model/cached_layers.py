"""Keys and values that a decoder's layers keep, as config.json tells it: windows, heads that differ, sharing."""

from collections import Counter
from typing import Any

from pydantic import BaseModel, ConfigDict

from mii_azure.model import configs
from mii_azure.model.windows import SLIDING, kinds_of_layers, windows
from scoring.decoder.layer_groups import Kept, Shape

#: Types whose layers that see all keys have heads of another size, and that size where config.json leaves it out.
_GLOBAL_HEADS = dict.fromkeys(("gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text"), 512)
#: Last layers that keep nothing, where config.json leaves them out.
_SHARED = {"gemma3n": 15, "gemma3n_text": 15}


class CachedLayers(BaseModel):
    """Layers of a decoder that see equally far, and keep keys and values of as many heads of one width."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: int
    readers: int = 0  # more layers, which keep none and read what one of these keeps
    window: int = 0  # keys that a token sees, itself included; 0: all
    heads: int
    head_dim: int

    @property
    def numbers(self) -> int:
        """Numbers of a token's keys that all of them keep."""
        return self.layers * self.heads * self.head_dim

    def read(self, tokens: int) -> int:
        """Numbers of keys that a step of a sequence of `tokens` tokens reads."""
        seen = min(tokens, self.window or tokens)
        return (self.layers + self.readers) * self.heads * self.head_dim * seen


def cached_layers(config: dict[str, Any], layers: int, heads: int, head_dim: int) -> tuple[CachedLayers, ...]:
    """Layers by what they keep, where they differ in their heads or some keep nothing; empty where all are alike.

    Heads of keys, and their size, are those of layers of which nothing else is told.
    """
    window, _ = windows(config, layers)
    shapes, kinds = shapes_of_layers(config, layers, heads, head_dim), _kinds(config, layers)
    own = [Kept(window if kind == SLIDING else 0, *shape) for kind, shape in zip(kinds, shapes, strict=True)]
    keeping = layers - shared_layers(config, layers)
    if keeping == layers and len({layer.shape for layer in own}) < 2:
        return ()
    count, more = Counter(own[:keeping]), Counter(own[keeping:])
    return tuple(
        CachedLayers(layers=count[kind], readers=more[kind], window=kind.window, heads=kind.heads, head_dim=kind.width)
        for kind in sorted(count)
    )


def shapes_of_layers(config: dict[str, Any], layers: int, heads: int, head_dim: int) -> list[Shape]:
    """Heads of keys and values of each layer, and their width."""
    kinds = _kinds(config, layers)
    return [_shape(config, kinds[layer], layer, heads, head_dim) for layer in range(layers)]


def shared_layers(config: dict[str, Any], layers: int) -> int:
    """Number of last layers that read what earlier ones keep, and keep nothing."""
    text = _text(config)
    usual = next((_SHARED[name] for name in _types(config) if name in _SHARED), 0)
    told = text.get("num_kv_shared_layers", usual)
    return told if isinstance(told, int) and 0 < told < layers else 0


def _kinds(config: dict[str, Any], layers: int) -> list[str]:
    kinds = kinds_of_layers(config, layers)
    return [*kinds[:-1], ""] if _global_size(config) else kinds  # there the last sees all, whatever is told


def _text(config: dict[str, Any]) -> dict[str, Any]:
    return configs.value(config, "text_config", dict) or config


def _types(config: dict[str, Any]) -> tuple[Any, Any]:
    return _text(config).get("model_type"), config.get("model_type")


def _global_size(config: dict[str, Any]) -> int:
    """Numbers of a head of layers that see all keys, where those of others have as many as `head_dim` says; 0: none."""
    told, names = _text(config).get("global_head_dim"), _types(config)
    usual = next((_GLOBAL_HEADS[name] for name in names if name in _GLOBAL_HEADS), 0)
    return told if usual and isinstance(told, int) and told > 0 else usual


def _shape(config: dict[str, Any], kind: str, layer: int, heads: int, head_dim: int) -> Shape:
    text = _text(config)
    differing = text.get("per_layer_config")
    if isinstance(differing, dict):
        numbers = (key for key in differing if str(key).isdecimal() and int(key) == layer)
        own = differing.get(next(numbers, ""))
        told = own if isinstance(own, dict) else {}
        found = told.get("num_key_value_heads", heads), told.get("head_dim", head_dim)
        return found if all(isinstance(each, int) and each > 0 for each in found) else (heads, head_dim)
    if kind == SLIDING or not (width := _global_size(config)):
        return heads, head_dim
    fewer = text.get("num_global_key_value_heads") if text.get("attention_k_eq_v") else None
    return fewer if isinstance(fewer, int) and fewer > 0 else heads, width
