"""Model folders: the files that make up a model, and the sums of its settings and weight files.

Only `config.json`, the tokenizer's settings and safetensors headers are read; weights never are.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mii_azure.errors import (
    ConfigMissing,
    NotAvailable,
    PickleRefused,
    TokenizerMissing,
    WeightsCorrupt,
    WeightsMissing,
)
from mii_azure.model import configs, diffusers, published, safetensors, sentence
from mii_azure.model.consistency import is_compared
from mii_azure.model.families import find_family
from mii_azure.model.files import contained, shards
from mii_azure.model.quantizable import narrow_bytes
from mii_azure.model.resolved import INDEX, WEIGHTS, WITHOUT_VOCABULARY, Model, is_pickle, read_settings
from mii_azure.model.safetensors import Tensor, Weights
from scoring.config import DIFFUSERS_INDEX, MODULES
from scoring.sentence.forms import COLBERT_FILE
from scoring.strict_json.files import read_object

ADAPTER = "It is an adapter: give its base as the model, and this folder by --adapter, which merges the two."
_GGUF = "GGUF is read as a model of its own, without other weights beside it, and not as a draft model."
PICKLE_INDEX = "pytorch_model.bin.index.json"
# Small files beside config.json that are read for planning; `Model.settings` has the parsed ones under the same name.
SETTINGS = ("tokenizer_config.json", "chat_template.jinja", COLBERT_FILE)
_SUFFIXES = (".json", ".model", ".spm", ".jinja", ".tiktoken", ".codes")
_TEXTS = re.compile(r"(vocab|merges|dict|spiece|added_tokens).*\.txt$")
# Records of a training run, and indexes of weights in formats that are not loaded.
_LEFTOVERS = re.compile(r"(\.index\.json$|_results\.json$|^train(er|ing)_|^model_index\.json$|^adapter_)")
_LEGAL = re.compile(r"^(LICEN[CS]E|NOTICE)([._-][\w.-]*)?$")  # files that a redistributor must pass on
_SHARD = re.compile(r"^model-\d+-of-\d+\.safetensors$")


def read_folder(folder: Path, name: str, allow_pickle: bool = False) -> Model:
    """Read a local model folder; see `resolving.resolve` for errors."""
    if (folder / DIFFUSERS_INDEX).is_file() and not (folder / "config.json").is_file():
        return diffusers.read_pipeline(diffusers.local_files(folder), name, "folder", allow_pickle, folder=folder)
    listed = _modules(folder)
    names = frozenset(_names(folder, listed))
    inner = sentence.transformer_path(listed, names)
    base = folder / inner
    config = _read_config(base, folder)
    published.refuse_unread(config)
    tensors, size = _read_weights(base, allow_pickle)
    settings = {name: read_settings(contained(base, name)) for name in SETTINGS if (base / name).is_file()}
    settings |= {} if listed is None else {MODULES: listed}
    settings |= {name: read_settings(contained(folder, name)) for name in sentence.setting_files(listed, names)}
    weights = weigh(config, tensors, size)
    return Model(name, "folder", config, weights, None, folder, settings, names, inner)


def _modules(folder: Path) -> Any:
    """Parsed modules.json of a folder; None without one."""
    return read_settings(contained(folder, MODULES)) if (folder / MODULES).is_file() else None


def _names(folder: Path, listed: Any) -> set[str]:
    """Relative names of a folder's files, and of those in the folders that a parsed modules.json names."""
    names = {path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")}
    for inner in sentence.module_folders(listed):
        if (folder / inner).is_dir():
            names |= {f"{inner}/{path.name}" for path in (folder / inner).iterdir() if path.is_file()}
    return names


def _quantised(how: str) -> NotAvailable:
    return NotAvailable(
        f"The weights are quantised {how}, which this version does not load.", "Use the unquantised model."
    )


def weigh(config: dict[str, Any], tensors: list[Tensor], size: int) -> Weights:
    """Sum up the weight files of a model, and note what its config and tokenizer have to agree with."""
    return _sum(config, tensors, size)._replace(compared=tuple(filter(is_compared, tensors)))


def _sum(config: dict[str, Any], tensors: list[Tensor], size: int) -> Weights:
    """Sum up the weight files of a model; from their size alone if they are pickle (no tensors known)."""
    found = published.find(config, tensors)
    if tensors:
        tied = bool(config.get("tie_word_embeddings", find_family(config).tied))
        if found is not None:
            weights = safetensors.count(found.wide, size, tied)
            return weights._replace(dtype=_served_from(config, weights.dtype), published=found.method, kind=found.kind)
        weights = safetensors.count(tensors, size, tied)
        if not weights.dtype:
            raise _quantised("in a type other than float32, float16 and bfloat16")
        return weights._replace(narrow_bytes=narrow_bytes(tensors, size, tied))
    dtype = _stored_dtype(config)
    return Weights(size // (4 if dtype == "float32" else 2), size, dtype)


def _served_from(config: dict[str, Any], usual: str) -> str:
    """Type that quantised weights stand for: config.json's, or that of the weights that are not quantised."""
    said = configs.value(config, "dtype", str) or configs.value(config, "torch_dtype", str)
    return _stored_dtype(config) if said else usual or "float16"


def _stored_dtype(config: dict[str, Any]) -> str:
    told = configs.value(config, "dtype", str) or configs.value(config, "torch_dtype", str) or "float32"
    name = told.removeprefix("torch.")
    if name not in safetensors.FLOAT_NAMES.values():
        raise _quantised(f"in the type {told}")
    return name


def _read_config(folder: Path, given: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise ConfigMissing(f"{folder} has no config.json, which says what the model is.", _config_remedy(given))
    return read_object(contained(folder, "config.json"), ConfigMissing)


def _config_remedy(folder: Path) -> str:
    """Remedy for a folder without config.json, by the files it holds instead."""
    if (folder / "adapter_config.json").is_file():
        return ADAPTER
    nested = sorted(path.parent for path in folder.glob("*/config.json") if (path.parent / WEIGHTS).is_file())
    nested += sorted(path.parent for path in folder.glob("*/*/config.json") if (path.parent / WEIGHTS).is_file())
    if nested:
        return f"There is a model one level down: give {nested[0]}."
    if (folder / "modules.json").is_file():
        return "It is a sentence-transformers folder: copy its transformer's folder too, such as 0_Transformer."
    if any(folder.glob("*.gguf")):
        return _GGUF
    return "Give the folder that save_pretrained wrote: config.json, model.safetensors and the tokenizer's files."


def _read_weights(folder: Path, allow_pickle: bool) -> tuple[list[Tensor], int]:
    """Read the tensors of the weight files that transformers would load, and the files' size in bytes."""
    if (folder / WEIGHTS).is_file():
        path = contained(folder, WEIGHTS)
        return safetensors.read_header(path), path.stat().st_size
    if (folder / INDEX).is_file():
        return _read_shards(folder)
    pickles = pickle_files(folder)
    if pickles and allow_pickle:
        if (folder / PICKLE_INDEX).is_file() and not (folder / "pytorch_model.bin").is_file():
            shards(read_settings(contained(folder, PICKLE_INDEX)), PICKLE_INDEX)
        return [], sum(path.stat().st_size for path in pickles)
    if pickles:
        raise PickleRefused(
            f"{folder} has pickle weights only ({pickles[0].name}); loading a pickle can run any code it holds.",
            "Save it as safetensors (save_pretrained), or pass --allow-pickle if you trust its author.",
        )
    raise WeightsMissing(f"{folder} has a config.json and no weights.", _weights_remedy(folder))


def _weights_remedy(folder: Path) -> str:
    if (folder / "adapter_config.json").is_file():
        return ADAPTER
    others = [
        p.name for p in sorted(folder.iterdir()) if p.suffix in (".safetensors", ".gguf", ".h5", ".msgpack", ".onnx")
    ]
    if others and others[0].endswith(".safetensors"):
        return f"Looked for {WEIGHTS} or {INDEX}; {others[0]} alone is not loaded: restore the index, or save again."
    if others and others[0].endswith(".gguf"):
        return _GGUF
    if others:
        return f"Looked for {WEIGHTS} or {INDEX}; {others[0]} is another runtime's format: save it from PyTorch."
    return f"Looked for {WEIGHTS} or {INDEX}: copy the weights there."


def stored_tensors(folder: Path) -> dict[str, Tensor]:
    """Tensors of a folder's safetensors files by name; raises as `read_folder` does."""
    return {each.name: each for each in _read_weights(folder, False)[0]}


def weight_files(folder: Path) -> list[str]:
    """Names of a folder's safetensors files, in order."""
    if (folder / WEIGHTS).is_file():
        return [WEIGHTS]
    return shards(read_settings(contained(folder, INDEX)), INDEX)


def _read_shards(folder: Path) -> tuple[list[Tensor], int]:
    index = read_settings(contained(folder, INDEX))
    tensors: list[Tensor] = []
    size = 0
    for name in shards(index, INDEX):
        path = folder / name
        if not path.is_file():
            raise WeightsMissing(f"{INDEX} names {name}, which is not there.", "Copy that file too.", str(path))
        tensors += safetensors.read_header(contained(folder, name))
        size += path.stat().st_size
    where = index["weight_map"]
    lost = sorted(set(where) - {tensor.name for tensor in tensors})
    if lost:
        raise WeightsCorrupt(
            f"{len(lost)} of {len(where)} tensors that {INDEX} names are in no file, {lost[0]} first.",
            "Copy index and weights from the same place again.",
        )
    return tensors, size


def pickle_files(folder: Path) -> list[Path]:
    """Weight files in pickle form at the top of a folder, in name order."""
    return sorted(path for path in folder.iterdir() if path.is_file() and is_pickle(path.name))


def bundle_files(names: Iterable[str], allow_pickle: bool = False, code: bool = False, listed: Any = None) -> list[str]:
    """Select the files that belong in a bundle's model/ folder from a model's relative file names, in order.

    Settings, tokenizer and safetensors; pickle only if nothing else exists and `allow_pickle` permits it; the model's
    own Python only if `code` permits it; its licence; never other runtimes' weights, or a training run's records.
    `listed` is its parsed modules.json, whose folders' files belong there too.
    """
    names = set(names)
    if inner := sentence.transformer_path(listed, names):
        below = {name.removeprefix(f"{inner}/") for name in names if name.startswith(f"{inner}/")}
        own = {f"{inner}/{name}" for name in bundle_files(below, allow_pickle, code)}
    else:
        own = set()
    if DIFFUSERS_INDEX in names and "config.json" not in names:
        return sorted({*diffusers.pipeline_files(names, allow_pickle), *filter(_LEGAL.match, names)})
    small = {name for name in names if _is_setting(name) or _LEGAL.match(name)}
    if code:
        small |= {name for name in names if "/" not in name and name.endswith(".py")}
    if WEIGHTS in names:
        weights = {WEIGHTS}
    elif INDEX in names:
        weights = {INDEX, *filter(_SHARD.match, names)}
    else:
        pickles = {name for name in names if "/" not in name and is_pickle(name)} if allow_pickle else set()
        weights = pickles | ({PICKLE_INDEX} & names if pickles else set())
    return sorted(small | weights | own | {*sentence.bundle_files(listed, names, allow_pickle)})


def _is_setting(name: str) -> bool:
    kept = name.endswith(_SUFFIXES) or name == COLBERT_FILE or bool(_TEXTS.match(name))
    return "/" not in name and kept and not _LEFTOVERS.search(name)


def files_to_copy(folder: Path, allow_pickle: bool = False, code: bool = False) -> list[Path]:
    """Files of a model folder that belong in a bundle's model/, relative to it; see `bundle_files`.

    Raises OutsideFolder for one whose name or link leads elsewhere.
    """
    chosen = _chosen(folder, allow_pickle, code)
    for name in chosen:
        contained(folder, name)
    return [Path(name) for name in chosen]


def _chosen(folder: Path, allow_pickle: bool, code: bool) -> list[str]:
    listed = _modules(folder)
    names = _names(folder, listed)
    if DIFFUSERS_INDEX in names and "config.json" not in names:
        names |= {path.relative_to(folder).as_posix() for path in folder.glob("*/*") if path.is_file()}
    chosen = bundle_files(names, allow_pickle, code, listed)
    base = f"{inner}/" if (inner := sentence.transformer_path(listed, names)) else ""
    if base + WEIGHTS not in names and base + INDEX in names:
        named = shards(read_settings(contained(folder, base + INDEX)), INDEX)
        return sorted({*chosen, *(base + name for name in named)})
    return chosen


def require_vocabulary(files: Iterable[Path], folder: Path, model: str) -> None:
    """Raise TokenizerMissing if none of the files to copy holds a vocabulary: every word would be unknown."""
    told = folder / "tokenizer_config.json"
    if told.is_file() and read_settings(told).get("tokenizer_class") in WITHOUT_VOCABULARY:
        return
    named = {"tokenizer.json", "vocab.json"}
    endings = (".model", ".spm", ".tiktoken", ".codes")
    if not any(path.name in named or path.name.endswith(endings) or _TEXTS.match(path.name) for path in files):
        raise TokenizerMissing(
            f"{model} has no tokenizer: neither tokenizer.json nor a vocabulary file.",
            "Save it beside the model: AutoTokenizer.from_pretrained(...).save_pretrained(FOLDER).",
        )
