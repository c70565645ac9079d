"""Conversion of a GGUF file into an ordinary Hugging Face folder in the cache, one tensor at a time."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from functools import partial
from hashlib import file_digest
from pathlib import Path
from typing import Any

from mii_azure.errors import TokenizerMissing
from mii_azure.model.gguf import GgufFile, processor, read_checkpoint
from mii_azure.model.model_cache import made_once
from mii_azure.model.resolved import INDEX, WEIGHTS
from mii_azure.model.safetensors import Tensor

REVISION = 1  # raise it when something else is written: the old folders are then left aside
SHARD_BYTES = 2_000_000_000


def converted(file: Path) -> Path:
    """Folder of a GGUF file's model in 16 bits (float32 if it is), made at the first call; never write into it.

    In memory are one tensor in float32 and one file of 2 GB. Raises what reading the header raises, TokenizerMissing
    for a vocabulary that transformers does not convert, and PackagedModelError for a cache that cannot be written.
    """
    import transformers

    found = read_checkpoint(file)
    with file.open("rb") as opened:
        digest = file_digest(opened, "sha256").hexdigest()
    name = f"gguf-{digest[:32]}-t{transformers.__version__}-r{REVISION}"
    return made_once(name, name, partial(_fill, found))


def _fill(found: GgufFile, draft: Path) -> None:
    """Write tokenizer, weights and config.json into draft/model."""
    target = draft / "model"
    target.mkdir()
    _write_tokenizer(found, target)
    wide = sum(each.bytes for each in found.wide)
    before = found.file.stat().st_size
    sys.stderr.write(
        f"Widening {found.file.name} from {found.kind} to {found.dtype}:"
        f" {before / 1e6:,.1f} MB become {wide / 1e6:,.1f} MB\n"
    )
    sys.stderr.flush()
    _write_weights(found, target)
    _write_config(found, target)


def _write_tokenizer(found: GgufFile, target: Path) -> None:
    from transformers import AutoTokenizer

    file = found.file
    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
    except Exception as error:  # whatever a vocabulary provokes in transformers and tokenizers
        raise TokenizerMissing(
            f"transformers does not convert the vocabulary of {file.name}: {error}.",
            "Give the model that it was made from, as a Hugging Face folder or hub id.",
        ) from error
    tokenizer.model_max_length = found.config["max_position_embeddings"]
    tokenizer.save_pretrained(target)


def _write_config(found: GgufFile, target: Path) -> None:
    from transformers import AutoConfig, GenerationConfig

    text = json.dumps(found.config, ensure_ascii=False, indent=2, sort_keys=True)
    (target / "config.json").write_text(text + "\n", encoding="utf-8")
    config = AutoConfig.from_pretrained(target, local_files_only=True)
    GenerationConfig.from_model_config(config).save_pretrained(target)


def _write_weights(found: GgufFile, target: Path) -> None:
    from safetensors.torch import save_file

    shards = list(_shards(found))
    index: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = WEIGHTS if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file({wide.name: _widened(found, each) for each, wide in shard}, target / name, {"format": "pt"})
        index |= {wide.name: name for _, wide in shard}
    if len(shards) > 1:
        told = {"metadata": {"total_size": sum(each.bytes for each in found.wide)}, "weight_map": index}
        (target / INDEX).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def _shards(found: GgufFile) -> Iterator[list[tuple[Any, Tensor]]]:
    """Tensors of each weight file, as they are and as they become."""
    shard: list[tuple[Any, Tensor]] = []
    size = 0
    for each, wide in zip(found.tensors, found.wide, strict=True):
        if shard and size + wide.bytes > SHARD_BYTES:
            yield shard
            shard, size = [], 0
        shard.append((each, wide))
        size += wide.bytes
    yield shard


def _widened(found: GgufFile, tensor: Any) -> Any:
    """Tensor of transformers: the stored number times its scale in float32, in transformers' order, rounded once."""
    import torch
    from gguf.quants import dequantize

    order = processor(found.architecture, found.config)
    weights = order.process(dequantize(tensor.data, tensor.tensor_type), tensor.name).weights
    return torch.from_numpy(weights.copy()).to(getattr(torch, found.dtype)).contiguous()
