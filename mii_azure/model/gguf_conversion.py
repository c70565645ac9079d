"""Conversion of a GGUF file into an ordinary Hugging Face folder in the cache, one tensor at a time."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from functools import partial
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

from mii_azure.errors import ConfigMissing
from mii_azure.model.gguf import GgufFile, read_checkpoint
from mii_azure.model.gguf_architectures import TensorPlace
from mii_azure.model.gguf_header import ORIGINAL, Entry, stored
from mii_azure.model.gguf_order import in_order
from mii_azure.model.gguf_tokenizer import ends_of, tokenizer_of
from mii_azure.model.model_cache import made_once
from mii_azure.model.resolved import INDEX, WEIGHTS

REVISION = 3  # raise it when something else is written: the old folders are then left aside
SHARD_BYTES = 2_000_000_000


def converted(file: Path) -> Path:
    """Folder of a GGUF file's model in 16 bits (float32 if it is), made at the first call; never write into it.

    In memory are one tensor in float32 and one file of 2 GB. Raises what reading the header raises, TokenizerMissing
    for a vocabulary that makes no tokenizer, ConfigMissing for metadata that make no configuration of transformers,
    and PackagedModelError for a cache that cannot be written.
    """
    import transformers

    found = read_checkpoint(file)
    name = f"gguf-{_digest(found.header.files)[:32]}-t{transformers.__version__}-r{REVISION}"
    return made_once(name, name, partial(_fill, found))


def _digest(files: tuple[Path, ...]) -> str:
    """SHA-256 of a file, or of its parts' one after the other."""
    digests = []
    for file in files:
        with file.open("rb") as opened:
            digests.append(file_digest(opened, "sha256").hexdigest())
    return digests[0] if len(digests) == 1 else sha256("".join(digests).encode()).hexdigest()


def _fill(found: GgufFile, draft: Path) -> None:
    """Write the folder as draft/model, and tell what it costs."""
    wide = sum(each.bytes for each in found.wide)
    sys.stderr.write(
        f"Widening {found.file.name} from {found.kind} to {found.dtype}:"
        f" {found.bytes / 1e6:,.1f} MB become {wide / 1e6:,.1f} MB\n"
    )
    sys.stderr.flush()
    (draft / "model").mkdir()
    write_folder(found, draft / "model")


def write_folder(found: GgufFile, target: Path) -> None:
    """Write config.json, tokenizer and weights into an empty folder; see `converted` for what is raised."""
    _write_config(found, target)
    tokenizer_of(found.header, found.settings["model_max_length"]).save_pretrained(target)
    _write_weights(found, target)


def _write_config(found: GgufFile, target: Path) -> None:
    from transformers import AutoConfig, GenerationConfig

    text = json.dumps(found.config, ensure_ascii=False, indent=2, sort_keys=True)
    (target / "config.json").write_text(text + "\n", encoding="utf-8")
    try:
        config = AutoConfig.from_pretrained(target, local_files_only=True)
        generation = GenerationConfig.from_model_config(config)
    except Exception as error:  # whatever the metadata's values provoke in transformers
        raise ConfigMissing(
            f"The metadata of {found.file.name} describe no model of transformers: {error}.", ORIGINAL, str(found.file)
        ) from error
    if ends := ends_of(found.header):
        generation.eos_token_id = ends if len(ends) > 1 else ends[0]
    generation.save_pretrained(target)


def _write_weights(found: GgufFile, target: Path) -> None:
    from safetensors.torch import save_file

    shards = list(_shards(found))
    index: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = WEIGHTS if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        wide = dict(each for tensor, place in shard for each in _widened(found, tensor, place))
        save_file(wide, target / name, {"format": "pt"})
        index |= dict.fromkeys(wide, name)
    if len(shards) > 1:
        told = {"metadata": {"total_size": sum(each.bytes for each in found.wide)}, "weight_map": index}
        (target / INDEX).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def _shards(found: GgufFile) -> Iterator[list[tuple[Entry, TensorPlace]]]:
    """Tensors of each weight file."""
    shard: list[tuple[Entry, TensorPlace]] = []
    size = 0
    for tensor, place in found.placed:
        more = sum(each.bytes for each in found.widened(place))
        if shard and size + more > SHARD_BYTES:
            yield shard
            shard, size = [], 0
        shard.append((tensor, place))
        size += more
    yield shard


def _widened(found: GgufFile, tensor: Entry, place: TensorPlace) -> Iterator[tuple[str, Any]]:
    """Tensors of transformers: each number times its scale in float32, in transformers' order, rounded once."""
    import torch
    from gguf.quants import dequantize

    if place.is_half:
        yield from _joined(found, place)
        return
    data, dtype = stored(tensor), getattr(torch, found.dtype)
    parts = data if place.undo == "each" else [data]
    for (name, shape), part in zip(place.wide, parts, strict=True):
        weights = in_order(found.found, found.config, tensor.name, place.undo, dequantize(part, tensor.kind))
        yield name, torch.from_numpy(weights.reshape(shape).copy()).to(dtype).contiguous()


def _joined(found: GgufFile, place: TensorPlace) -> Iterator[tuple[str, Any]]:
    """Tensor of transformers of two halves that are stored apart, told of with the first; one is wide at a time."""
    import torch
    from gguf.quants import dequantize

    for name, shape in place.wide:
        whole = torch.empty(shape, dtype=getattr(torch, found.dtype))
        for tensor, half in found.placed:
            if half.name == name:
                weights = dequantize(stored(tensor), tensor.kind)
                ordered = in_order(found.found, found.config, tensor.name, half.undo, weights)
                whole[half.within] = torch.from_numpy(ordered.copy())
        yield name, whole
