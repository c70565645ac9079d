"""GGUF files as models: their header read and checked, without reading a weight that is quantised.

transformers' own mapping gives config.json and the tensors' names; what it does not carry over is refused, not dropped.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from mii_azure.errors import (
    ConfigMissing,
    MiiAzureError,
    NotAvailable,
    TokenizerMissing,
    WeightsCorrupt,
    WeightsMissing,
)
from mii_azure.model.folder import pickle_files, weigh
from mii_azure.model.resolved import WEIGHTS, Model
from mii_azure.model.rotary_factors import llama3_rotary
from mii_azure.model.safetensors import LFS_POINTER, Tensor

#: Architectures whose every tensor is one of transformers', by GGUF's names.
ARCHITECTURES = ("llama", "qwen2", "qwen3")
#: Tokenizers that transformers converts, by GGUF's names.
TOKENIZERS = ("gpt2", "llama")
ROTARY = "rope_freqs.weight"
_ORIGINAL = "Give the model that it was made from, as a Hugging Face folder or hub id."
_COPY = "Download or copy the file again."
_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
_MERGE = "Merge its parts, llama-gguf-split --merge FIRST-PART OUTPUT.gguf, and give the one file."


class GgufFile(NamedTuple):
    """GGUF file whose every tensor has its place in a model of transformers."""

    file: Path
    architecture: str  # by GGUF's name
    tensors: list[Any]  # gguf's ReaderTensor, in the file's order
    names: dict[str, str]  # transformers' names of them
    config: dict[str, Any]  # as config.json has it
    settings: dict[str, Any]  # as tokenizer_config.json has it, as far as planning reads it
    kind: str  # type that most bytes have, e.g. "Q4_K"
    dtype: str  # that it is widened to

    @property
    def wide(self) -> list[Tensor]:
        """Tensors as a safetensors file of the widened model has them."""
        short = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[self.dtype]
        return [Tensor(self.names[each.name], short, shape_of(each)) for each in self.tensors]


def gguf_file(path: Path) -> Path | None:
    """GGUF file that a path stands for: itself, or the only one of a folder without other weights; None without one.

    Raises NotAvailable for a folder of several.
    """
    if path.is_file():
        return path if path.suffix == ".gguf" else None
    found = sorted(each for each in path.glob("*.gguf") if not each.name.startswith("mmproj"))
    if not found or any(path.glob("*.safetensors")) or pickle_files(path):
        return None
    if len(found) > 1 and not _PART.search(found[0].name):
        raise NotAvailable(f"{path} holds {len(found)} GGUF files.", f"Give one of them, such as {found[0]}.")
    return found[0]


def read_gguf(file: Path, name: str) -> Model:
    """Read a GGUF file's facts; raises NotAvailable and the ModelError branch for one that cannot be served."""
    found = read_checkpoint(file)
    wide = found.wide
    weights = weigh(found.config, wide, sum(each.bytes for each in wide))
    widened = f"GGUF {found.kind}, {file.stat().st_size / 1e6:,.1f} MB"
    names = frozenset({"config.json", WEIGHTS, "tokenizer.json", "tokenizer_config.json"})
    settings = {"tokenizer_config.json": found.settings}
    return Model(name, "folder", found.config, weights._replace(widened=widened), None, None, settings, names)


def read_checkpoint(file: Path) -> GgufFile:
    """Read and check a GGUF file's header.

    Raises NotAvailable for what is not converted, WeightsCorrupt for a damaged file, and WeightsMissing, ConfigMissing
    or TokenizerMissing for a part that it lacks.
    """
    if _PART.search(file.name):
        raise NotAvailable(f"{file.name} is one part of a GGUF of several.", _MERGE)
    reader = _opened(file)
    fields, tensors = reader.fields, list(reader.tensors)
    _refuse_other_kinds(file, fields)
    _require_parts(file, fields, tensors)
    kinds: dict[str, int] = {}
    for tensor in tensors:
        kinds[tensor.tensor_type.name] = kinds.get(tensor.tensor_type.name, 0) + int(tensor.n_bytes)
    kind = max(kinds, key=lambda each: kinds[each])
    dtype = {"F32": "float32", "F16": "float16"}.get(kind, "bfloat16")
    config, names = _mapped(file, fields, tensors, dtype)
    settings = {"model_max_length": config.get("max_position_embeddings")}
    if template := value(fields, "tokenizer.chat_template"):
        settings["chat_template"] = template
    placed = [each for each in tensors if each.name != ROTARY]
    architecture = value(fields, "general.architecture")
    return GgufFile(file, architecture, placed, names, config, settings, kind, dtype)


def value(fields: Any, key: str) -> Any:
    """Value of a metadata key; None without it."""
    return fields[key].contents() if key in fields else None


def shape_of(tensor: Any) -> tuple[int, ...]:
    """Shape of a tensor in PyTorch's order."""
    return tuple(int(each) for each in reversed(tensor.shape))


def _opened(file: Path) -> Any:
    try:
        from gguf import GGUFReader
    except ModuleNotFoundError as error:
        raise NotAvailable(
            "Reading GGUF needs the package 'gguf'.", "pip install 'mii-azure[models]' brings it."
        ) from error
    with file.open("rb") as opened:
        magic = opened.read(len(LFS_POINTER))
    if magic == LFS_POINTER:
        raise WeightsMissing(f"{file.name} is a Git LFS pointer, not the weights.", "Run `git lfs pull`.", str(file))
    if magic[:4] != b"GGUF":
        raise WeightsCorrupt(f"{file.name} is not GGUF: it does not begin so.", _COPY, str(file))
    try:
        return GGUFReader(file)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError) as error:
        if "GGMLQuantizationType" in str(error):
            raise NotAvailable(f"{file.name} has tensors of a type unknown to gguf: {error}.", _ORIGINAL) from error
        raise WeightsCorrupt(f"{file.name} is damaged or cut short: {error}.", _COPY, str(file)) from error


def _refuse_other_kinds(file: Path, fields: Any) -> None:
    """Raise NotAvailable for files that hold no whole language model of a known architecture."""
    architecture, kind = value(fields, "general.architecture"), value(fields, "general.type")
    if (value(fields, "split.count") or 0) > 1:
        raise NotAvailable(f"{file.name} is one part of a GGUF of several.", _MERGE)
    if architecture == "clip" or kind == "mmproj":
        raise NotAvailable(f"{file.name} holds the eyes or ears of a model (mmproj).", "Give its text model's file.")
    if kind == "adapter":
        raise NotAvailable(f"{file.name} is an adapter in GGUF.", "Give it as PEFT saved it, by --adapter.")
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise NotAvailable(
            f"{file.name} is GGUF of the architecture {architecture!r}; converted are {known}.", _ORIGINAL
        )
    if value(fields, f"{architecture}.expert_count"):
        raise NotAvailable(f"{file.name} is a mixture of experts, which is not converted from GGUF.", _ORIGINAL)
    scaling = value(fields, f"{architecture}.rope.scaling.type")
    if scaling not in (None, "none"):
        raise NotAvailable(
            f"{file.name} scales its positions ({scaling}), which transformers does not read from GGUF.", _ORIGINAL
        )


def _require_parts(file: Path, fields: Any, tensors: list[Any]) -> None:
    """Raise for a file without weights or vocabulary, and for types that cannot be undone."""
    if not tensors:
        raise WeightsMissing(f"{file.name} holds no tensors, only a vocabulary.", "Give the model's own file.")
    tokenizer = value(fields, "tokenizer.ggml.model")
    if "tokenizer.ggml.tokens" not in fields or tokenizer in (None, "none", "no_vocab"):
        raise TokenizerMissing(f"{file.name} has no vocabulary.", "Convert it again without --no-vocab.")
    if tokenizer not in TOKENIZERS:
        raise NotAvailable(
            f"{file.name} has a tokenizer of the kind {tokenizer!r}; converted are {', '.join(TOKENIZERS)}.", _ORIGINAL
        )
    for kind in {each.tensor_type for each in tensors}:
        if not _undone(kind):
            raise NotAvailable(f"{file.name} has tensors in {kind.name}, which gguf does not undo.", _ORIGINAL)
    blocks = value(fields, f"{value(fields, 'general.architecture')}.block_count")
    if not isinstance(blocks, int) or not 0 < blocks <= len(tensors):
        raise WeightsCorrupt(f"{file.name} says {blocks!r} blocks and has {len(tensors)} tensors.", _COPY, str(file))


def _undone(kind: Any) -> bool:
    """True if gguf makes floats of a type: asked with one block of zeros."""
    import numpy as np
    from gguf.constants import GGML_QUANT_SIZES
    from gguf.quants import dequantize

    block = np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8)
    plain = {"F32": np.float32, "F16": np.float16}.get(kind.name)
    try:
        dequantize(block.view(plain) if plain else block, kind)
    except NotImplementedError:
        return False
    return True


def _mapped(file: Path, fields: Any, tensors: list[Any], dtype: str) -> tuple[dict[str, Any], dict[str, str]]:
    """config.json and transformers' names of the tensors, all of which fit; raises the ModelError branch."""
    try:
        config, shapes, names = _by_transformers(file, fields, tensors, dtype)
    except MiiAzureError:
        raise
    except Exception as error:  # whatever the metadata's values provoke in transformers
        raise ConfigMissing(
            f"The metadata of {file.name} describe no model of transformers: {error}.", _ORIGINAL, str(file)
        ) from error
    unplaced = [each.name for each in tensors if names.get(each.name) not in shapes and each.name != ROTARY]
    if unplaced:
        raise NotAvailable(
            f"transformers' {config['architectures'][0]} has no place for {len(unplaced)} of {len(tensors)} tensors of"
            f" {file.name}, {unplaced[0]} first.",
            _ORIGINAL,
        )
    held = {each.name: shape_of(each) for each in tensors if each.name != ROTARY}
    lost = shapes.keys() - {names[name] for name in held}
    lost -= {"lm_head.weight"} if config["tie_word_embeddings"] else set()
    if lost:
        raise WeightsCorrupt(f"{file.name} lacks {len(lost)} tensors, {min(lost)} first.", _COPY, str(file))
    for name, shape in held.items():
        if shape != shapes[names[name]]:
            raise WeightsCorrupt(
                f"{name} of {file.name} is {list(shape)}, and its metadata say {list(shapes[names[name]])}.",
                _COPY,
                str(file),
            )
    return config, {name: names[name] for name in held}


def _by_transformers(
    file: Path, fields: Any, tensors: list[Any], dtype: str
) -> tuple[dict[str, Any], dict[str, tuple[int, ...]], dict[str, str]]:
    """config.json, shapes by transformers' names, and those names by GGUF's."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import get_gguf_hf_weights_map

    architecture = value(fields, "general.architecture")
    config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
    if (width := value(fields, f"{architecture}.attention.key_length")) and hasattr(config, "head_dim"):
        config.head_dim = width
    for tensor in tensors:
        if tensor.name == ROTARY:
            config.rope_parameters = llama3_rotary(file, tensor, dict(config.rope_parameters))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    names = get_gguf_hf_weights_map(model, processor(architecture, config))
    config.architectures, config.dtype = [type(model).__name__], dtype
    told = json.loads(config.to_json_string())
    told.pop("_name_or_path", None)
    told["tie_word_embeddings"] = bool(config.tie_word_embeddings)
    return told, {name: tuple(each.shape) for name, each in model.state_dict().items()}, names


def processor(architecture: str, config: Any) -> Any:
    """Undoer of an architecture's own order of weights, as transformers has it; `config` is its object or dict."""
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

    told = config if isinstance(config, dict) else config.to_dict()
    return TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=told)
