"""Small model folders with real safetensors files, without torch: enough for everything that is decided."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

BERT = {
    "model_type": "bert",
    "architectures": ["BertForMaskedLM"],
    "num_hidden_layers": 2,
    "hidden_size": 8,
    "num_attention_heads": 2,
    "vocab_size": 30,
    "max_position_embeddings": 64,
}
LLAMA = BERT | {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_key_value_heads": 1}

Folder = Callable[..., Path]


def tensors() -> dict[str, np.ndarray]:
    return {
        "bert.embeddings.word_embeddings.weight": np.ones((30, 8), np.float32),
        "bert.encoder.layer.1.output.dense.weight": np.ones((8, 8), np.float32),
    }


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """`folder(config, **files)` writes a model: config.json, model.safetensors, and other files by name."""

    def write(config: dict[str, Any] | None = BERT, weights: bool = True, name: str = "model", **files: Any) -> Path:
        path = tmp_path / name
        path.mkdir()
        if config is not None:
            (path / "config.json").write_text(json.dumps(config))
        if weights:
            save_file(tensors(), path / "model.safetensors")
        for file, content in files.items():
            target = path / file.replace("__", "/")
            target.parent.mkdir(exist_ok=True)
            target.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write
