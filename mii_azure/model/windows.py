"""Windows of attention, as config.json tells them: how many layers see one, and how far."""

from typing import Any

from mii_azure.hardware.skus import load_data
from mii_azure.model import configs

SLIDING = "sliding_attention"
_SEES_WINDOW = "S"


def windows(config: dict[str, Any], layers: int) -> tuple[int, int]:
    """Return (window, layers that see no more): keys that a token sees, itself included; (0, 0) where all see all.

    Layers as `layer_types` says, else as transformers takes them for the type.
    """
    text = configs.value(config, "text_config", dict) or config
    window = _number(text, "sliding_window") or _number(text, "window_size")
    if not window or text.get("use_sliding_window") is False:
        return 0, 0
    count = sum(kind == SLIDING for kind in kinds_of_layers(config, layers))
    return (window, count) if count else (0, 0)


def kinds_of_layers(config: dict[str, Any], layers: int) -> list[str]:
    """Kind of each layer: SLIDING of one that sees a window."""
    text = configs.value(config, "text_config", dict) or config
    kinds = text.get("layer_types")
    known = isinstance(kinds, list) and len(kinds) == layers
    return [str(kind) for kind in kinds] if known else _usual(text, config, layers)  # type: ignore[union-attr]


def _usual(text: dict[str, Any], config: dict[str, Any], layers: int) -> list[str]:
    """Kinds of layers that a configuration leaves to transformers."""
    if text.get("use_sliding_window"):
        first = text.get("max_window_layers")
        first = min(first, layers) if isinstance(first, int) else layers
        return [""] * first + [SLIDING] * (layers - first)
    if "window_size" in text and isinstance(text.get("attention_types"), list):
        return _expanded(text["attention_types"])
    every = _number(text, "sliding_window_pattern")
    if every:
        return ["" if (layer + 1) % every == 0 else SLIDING for layer in range(layers)]
    tables = load_data("model_types")["windows"]
    pattern = next((tables[name] for name in (text.get("model_type"), config.get("model_type")) if name in tables), "F")
    return [SLIDING if pattern[layer % len(pattern)] == _SEES_WINDOW else "" for layer in range(layers)]


def _expanded(types: list[Any]) -> list[str]:
    """Kinds of layers of GPT-Neo's form: [[[kind, kind], times], ...]."""
    found: list[str] = []
    for each in types:
        if isinstance(each, list) and len(each) == 2 and isinstance(each[0], list) and isinstance(each[1], int):
            found += [SLIDING if kind == "local" else "" for kind in each[0]] * min(each[1], 1000)
    return found


def _number(text: dict[str, Any], key: str) -> int:
    found = text.get(key)
    return found if isinstance(found, int) and not isinstance(found, bool) and found > 0 else 0
