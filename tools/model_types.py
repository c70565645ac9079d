"""Writes mii_azure/data/model_types.json from the installed transformers: `.venv/bin/python -m tools.model_types`.

Planning reads that file, since importing transformers takes seconds.
"""

import json
from pathlib import Path
from typing import Any

TARGET = Path(__file__).resolve().parent.parent / "mii_azure" / "data" / "model_types.json"
_ABOUT = (
    "Values of config.json's model_type that the pinned transformers loads. seq2seq: those with a model that writes "
    "text from text; image_text: those whose model reads images beside text, and writes text from text alone too; "
    "others: the rest. Written by tools/model_types.py."
)


def current() -> dict[str, Any]:
    """Return the tables as the installed transformers has them."""
    from transformers.models.auto import configuration_auto, modeling_auto

    known = set(configuration_auto.CONFIG_MAPPING_NAMES)
    seq2seq = set(modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES)
    image_text = set(modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES) - seq2seq
    tables = {"seq2seq": seq2seq, "image_text": image_text, "others": known - seq2seq - image_text}
    return {"about": _ABOUT, **{name: sorted(types) for name, types in tables.items()}}


if __name__ == "__main__":
    TARGET.write_text(json.dumps(current(), indent=2) + "\n", encoding="utf-8")
