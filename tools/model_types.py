"""Writes mii_azure/data/model_types.json from the installed transformers: `.venv/bin/python -m tools.model_types`.

Planning reads that file, since importing transformers takes seconds.
"""

import inspect
import json
from pathlib import Path
from typing import Any

TARGET = Path(__file__).resolve().parent.parent / "mii_azure" / "data" / "model_types.json"
_ABOUT = (
    "Values of config.json's model_type that the pinned transformers loads. seq2seq: those with a model that writes "
    "text from text; image_text: those whose model reads images beside text, and writes text from text alone too; "
    "others: the rest. windows: of types whose layers see a sliding window unless config.json tells their kinds, S for "
    "a layer that does and F for one that sees all, repeated. Written by tools/model_types.py."
)
_KINDS = {"sliding_attention": "S", "full_attention": "F"}


def current() -> dict[str, Any]:
    """Return the tables as the installed transformers has them."""
    from transformers.models.auto import configuration_auto, modeling_auto

    known = set(configuration_auto.CONFIG_MAPPING_NAMES)
    seq2seq = set(modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES)
    classes = modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    image_text = {name for name, made in classes.items() if _answers_text(made)} - seq2seq
    tables = {"seq2seq": seq2seq, "image_text": image_text, "others": known - seq2seq - image_text}
    decoders = (set(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) | image_text) & known - seq2seq
    windows = {name: kinds for name in sorted(decoders) if "S" in (kinds := _windowed(name))}
    return {"about": _ABOUT, **{name: sorted(types) for name, types in tables.items()}, "windows": windows}


def _answers_text(made: str | tuple[str, ...]) -> bool:
    """True if a class of models, of several the first, writes text without being given an image."""
    import transformers

    generate = getattr(getattr(transformers, made if isinstance(made, str) else made[0]), "generate", None)
    needed = inspect.signature(generate).parameters.get("pixel_values") if generate else None
    return generate is not None and (needed is None or needed.default is not inspect.Parameter.empty)


def _windowed(name: str) -> str:
    """Kinds of a type's layers, the shortest part that repeats; empty if they are of other kinds, or none."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.for_model(name).get_text_config(decoder=True)
    except Exception:  # a type that has no default
        return ""
    if "sliding_window" not in config.to_dict():
        return ""
    told = getattr(config, "layer_types", None)
    if told is None:
        return "" if hasattr(config, "use_sliding_window") else "S"
    kinds = "".join(_KINDS.get(kind, "?") for kind in told)
    shortest = next(kinds[:size] for size in range(1, len(kinds) + 1) if (kinds[:size] * len(kinds)).startswith(kinds))
    return "" if "?" in shortest or 2 * len(shortest) > len(kinds) else shortest


if __name__ == "__main__":
    TARGET.write_text(json.dumps(current(), indent=2) + "\n", encoding="utf-8")
