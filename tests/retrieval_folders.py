"""Folders of sparse and late-interaction models around tiny ones, as the libraries that made them save them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.sentence_folders import HIDDEN

_NEW, _OLD = "sentence_transformers.base.modules", "sentence_transformers.sparse_encoder.models"
WIDTH = 16  # numbers of a token's vector
PUNCTUATION = ".,!?"
MARKERS = ("##a", "##e")  # tokens of the tiny vocabulary that a text's own characters never become


def write(path: Path, value: Any) -> None:
    """Write a JSON file, and the folders that it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def _modules(folder: Path, *types: tuple[str, str]) -> None:
    write(folder / "modules.json", [{"idx": n, "name": str(n), "path": p, "type": t} for n, (t, p) in enumerate(types)])


def splade(tiny: Path, folder: Path, old: bool = False, config: dict[str, Any] | None = None, **model: Any) -> Path:
    """A SparseEncoder's folder around a tiny masked language model; `old`: of before its Transformer had a purpose."""
    shutil.copytree(tiny, folder)
    first = f"{_OLD}.MLMTransformer" if old else f"{_NEW}.transformer.Transformer"
    _modules(folder, (first, ""), (f"{_OLD}.SpladePooling", "1_SpladePooling"))
    text = {"method": "forward", "method_output_name": "logits"}
    new = {"transformer_task": "fill-mask", "modality_config": {"text": text}, "module_output_name": "token_embeddings"}
    write(folder / "sentence_bert_config.json", {"max_seq_length": 100} if old else new)
    write(folder / "1_SpladePooling" / "config.json", {"pooling_strategy": "max", **(config or {})})
    write(folder / "config_sentence_transformers.json", {"model_type": "SparseEncoder", **model})
    return folder


def projection(seed: int = 3) -> torch.Tensor:
    """Weights of a projection, [WIDTH, HIDDEN]."""
    return torch.randn(WIDTH, HIDDEN, generator=torch.Generator().manual_seed(seed)) / HIDDEN**0.5


def _dense(folder: Path, **more: Any) -> None:
    config = {"in_features": HIDDEN, "out_features": WIDTH, "bias": False}
    write(folder / "config.json", config | {"activation_function": "torch.nn.modules.linear.Identity"} | more)
    save_file({"linear.weight": projection()}, folder / "model.safetensors")


def multi_vector(tiny: Path, folder: Path, expansion: dict[str, Any] | None = None, **model: Any) -> Path:
    """A MultiVectorEncoder's folder: projection, mask and norm are modules of their own."""
    shutil.copytree(tiny, folder)
    _modules(
        folder,
        (f"{_NEW}.transformer.Transformer", ""),
        (f"{_NEW}.dense.Dense", "1_Dense"),
        ("sentence_transformers.multi_vector_encoder.modules.multi_vector_mask.MultiVectorMask", "2_MultiVectorMask"),
        (f"{_NEW}.normalize.Normalize", "3_Normalize"),
    )
    text = {"method": "forward", "method_output_name": "last_hidden_state"}
    settings = {"transformer_task": "feature-extraction", "modality_config": {"text": text}}
    settings |= {"module_output_name": "token_embeddings", "document_length": 60}
    write(folder / "sentence_bert_config.json", settings | ({"query_expansion": expansion} if expansion else {}))
    tokens = {"module_input_name": "token_embeddings", "module_output_name": "token_embeddings"}
    _dense(folder / "1_Dense", **tokens)
    write(folder / "2_MultiVectorMask" / "config.json", {"skiplist_words": list(PUNCTUATION)})
    write(folder / "3_Normalize" / "config.json", tokens)
    write(folder / "config_sentence_transformers.json", {"model_type": "MultiVectorEncoder", **model})
    return folder


def pylate(tiny: Path, folder: Path, **model: Any) -> Path:
    """A folder of PyLate, whose mask and norm are in its code."""
    shutil.copytree(tiny, folder)
    transformer = "sentence_transformers.models.Transformer"
    _modules(folder, (transformer, ""), ("pylate.models.Dense.Dense", "1_Dense"))
    write(folder / "sentence_bert_config.json", {"max_seq_length": 90, "do_lower_case": False})
    _dense(folder / "1_Dense")
    told = {"model_type": "ColBERT", "query_prefix": "[Q] ", "document_prefix": "[D] ", "query_length": 12}
    write(folder / "config_sentence_transformers.json", told | {"document_length": 60} | model)
    return folder


def colbert(tiny: Path, folder: Path, **metadata: Any) -> Path:
    """A folder of ColBERT's own code: the projection is among the encoder's weights, the markers in the vocabulary."""
    shutil.copytree(tiny, folder)
    weights = load_file(folder / "model.safetensors")
    named = {f"bert.{name}": tensor for name, tensor in weights.items()}
    save_file({**named, "linear.weight": projection()}, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    write(folder / "config.json", config | {"architectures": ["HF_ColBERT"]})
    tokens = dict(zip(("query_token_id", "doc_token_id"), MARKERS, strict=True))
    told = {"dim": WIDTH, "query_maxlen": 12, "doc_maxlen": 60, "mask_punctuation": True, **tokens}
    write(folder / "artifact.metadata", told | metadata)
    return folder
