"""Where a model comes from: a local folder, a Hugging Face hub id, or an azureml: reference.

Only `config.json`, the tokenizer's settings and safetensors headers are read; weights never are.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from mii_azure import configs, headers
from mii_azure.errors import (
    ConfigMissing,
    NotAvailable,
    PickleRefused,
    TokenizerMissing,
    UnknownModel,
    WeightsCorrupt,
    WeightsMissing,
)
from mii_azure.families import find_family
from mii_azure.headers import Tensor, Weights
from mii_azure.products import int8_bytes, unpacked
from scoring.config import DIFFUSERS_INDEX
from scoring.int8_layout import is_shipped
from scoring.json_files import LARGEST_FILE, read_file, read_object

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# Small files read for planning; what is parsed is in `Model.settings` under the same name.
SETTINGS = (
    "tokenizer_config.json",
    "chat_template.jinja",
    "modules.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
)
_NESTED = ("1_Pooling/config.json", "2_Normalize/config.json")
_SUFFIXES = (".json", ".model", ".spm", ".jinja", ".tiktoken", ".codes")
_TEXTS = re.compile(r"(vocab|merges|dict|spiece|added_tokens).*\.txt$")
# Records of a training run, and indexes of weights in formats that are not loaded.
_LEFTOVERS = re.compile(r"(\.index\.json$|_results\.json$|^train(er|ing)_|^model_index\.json$|^adapter_)")
_LEGAL = re.compile(r"^(LICEN[CS]E|NOTICE)([._-][\w.-]*)?$")  # what a redistributor has to pass on
_SHARD = re.compile(r"^model-\d+-of-\d+\.safetensors$")
AZUREML = re.compile(
    r"^azureml:(?://(?:registries/[\w.-]+/models/[\w.-]+/(?:versions|labels)/[\w.-]+"
    r"|datastores/[\w.-]+/paths/.+|jobs/.+|subscriptions/.+)"
    r"|[a-zA-Z0-9][\w-]{0,254}(?::\d[\w.]*|@latest)|/subscriptions/.+)$"
)
_FILES = re.compile(r"^azureml://(?:datastores/|jobs/|subscriptions/.+/datastores/)")
# The hub's own rule: an optional owner, then a name, of letters, digits, hyphens, dots and underscores.
HUB_ID = re.compile(r"^(?:[\w][\w.-]{0,95}/)?[\w][\w.-]{0,95}$", re.ASCII)


Source = Literal["folder", "hub", "recorded", "reference"]


@dataclass(frozen=True)
class Model:
    """A resolved model: its settings and what its weight files add up to."""

    name: str  # what the user typed, or the hub id that it stands for
    source: Source
    config: dict[str, Any]
    weights: Weights
    revision: str | None = None  # hub commit
    folder: Path | None = None
    settings: dict[str, Any] = field(default_factory=dict)  # other small files, parsed, by relative path


def resolve(model: str, revision: str | None = None, allow_pickle: bool = False) -> Model:
    """Find a model and read what planning needs.

    Raises UnknownModel, ConfigMissing, WeightsMissing, WeightsCorrupt, PickleRefused or NotAvailable.
    """
    if model.startswith("azureml:"):
        return _reference(model)
    # os.path answers False, not an error, for what can be no path at all.
    path = Path(os.path.expanduser(model))  # noqa: PTH111
    if model and os.path.isdir(path):  # noqa: PTH112
        try:
            return read_folder(path, model, allow_pickle)
        except OSError as error:
            raise UnknownModel(f"{model} cannot be read: {error.strerror}.", "Check its permissions.") from error
    if model and os.path.exists(path):  # noqa: PTH110
        raise UnknownModel(f"{model} is a file.", f"Give the folder that holds it: {path.parent}.")
    if _looks_like_path(model):
        near = _near_folder(path)
        raise UnknownModel(
            f"There is no folder {model!r}.", f"Did you mean {near}?" if near else "Check the path, or give a hub id."
        )
    from mii_azure import hub

    return hub.read(model, revision, allow_pickle, near_folder=_near_folder(path))


def names_files(reference: str) -> bool:
    """Whether an azureml: reference is a place that holds files, and not yet a model that a deployment can name."""
    return bool(_FILES.match(reference))


def _reference(model: str) -> Model:
    if not AZUREML.match(model):
        raise UnknownModel(
            f"{model!r} is not a reference that Azure ML reads.",
            "Forms: azureml:NAME:VERSION, azureml:NAME@latest, azureml://registries/REGISTRY/models/NAME/versions/VERSION,"
            " azureml://datastores/NAME/paths/PATH, azureml://jobs/JOB/outputs/artifacts/paths/PATH.",
        )
    return Model(model, "reference", {}, Weights(0, 0, ""))


def _looks_like_path(model: str) -> bool:
    return not HUB_ID.match(model) or model.startswith((".", "/", "~"))


def _near_folder(path: Path) -> str:
    """The folder beside the missing one whose name is nearest, or an empty string."""
    if not os.path.isdir(path.parent):  # noqa: PTH112
        return ""
    names = [child.name for child in path.parent.iterdir() if child.is_dir() and not child.name.startswith(".")]
    near = get_close_matches(path.name, names, n=1, cutoff=0.6)
    return str(path.parent / near[0]) if near else ""


def read_folder(folder: Path, name: str, allow_pickle: bool = False) -> Model:
    """Read a local model folder; see `resolve` for what is refused."""
    if (folder / DIFFUSERS_INDEX).is_file() and not (folder / "config.json").is_file():
        from mii_azure import pipelines

        return pipelines.read_pipeline(pipelines.local_files(folder), name, "folder", allow_pickle, folder=folder)
    config = _read_config(folder)
    refuse_quantised(config)
    tensors, size = _read_weights(folder, allow_pickle)
    settings = {name: read_settings(folder / name) for name in SETTINGS if (folder / name).is_file()}
    return Model(name, "folder", config, weigh(config, tensors, size), folder=folder, settings=settings)


def _quantised(how: str) -> NotAvailable:
    return NotAvailable(
        f"The weights are quantised {how}, which this version does not load.", "Use the unquantised model."
    )


def refuse_quantised(config: dict[str, Any]) -> None:
    """Raise NotAvailable for a config.json that says the weights are quantised, other than as bundles ship them."""
    told = configs.value(config, "quantization_config", dict)
    if told is not None and not is_shipped(told):
        raise _quantised(f"by {told.get('quant_method', 'an unnamed method')}")


def weigh(config: dict[str, Any], tensors: list[Tensor], size: int) -> Weights:
    """Add up the weight files of a model; from their size alone where they are pickle (no tensors known)."""
    if tensors:
        if "quantization_config" in config:
            return headers.count(unpacked(tensors), size, False)._replace(dtype=_stored_dtype(config))
        tied = bool(config.get("tie_word_embeddings", find_family(config).tied))
        weights = headers.count(tensors, size, tied)
        if not weights.dtype:
            raise _quantised("in a type other than float32, float16 and bfloat16")
        return weights._replace(int8_bytes=int8_bytes(tensors, size, tied))
    dtype = _stored_dtype(config)
    return Weights(size // (4 if dtype == "float32" else 2), size, dtype)


def _stored_dtype(config: dict[str, Any]) -> str:
    told = configs.value(config, "dtype", str) or configs.value(config, "torch_dtype", str) or "float32"
    name = told.removeprefix("torch.")
    if name not in headers.FLOAT_NAMES.values():
        raise _quantised(f"in the type {told}")
    return name


def read_settings(path: Path) -> Any:
    """Parse a small JSON file (or return another's text).

    Raises ConfigMissing, or WeightsCorrupt for an index, where it cannot be read or is no object; modules.json may be a
    list.
    """
    if path.suffix != ".json":
        return _read_text(path)
    if path.name == "modules.json":
        return read_file(path, ConfigMissing)
    return read_object(path, WeightsCorrupt if path.name == INDEX else ConfigMissing)


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(LARGEST_FILE).decode()
    except (OSError, ValueError) as error:
        raise ConfigMissing(f"{path.name} cannot be read: {error}.", "Copy the file again.", str(path)) from error


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise ConfigMissing(f"{folder} has no config.json, which says what the model is.", _config_remedy(folder))
    return read_object(path, ConfigMissing)


def _config_remedy(folder: Path) -> str:
    """What to do about a folder without config.json, by what it holds instead."""
    if (folder / "adapter_config.json").is_file():
        return "It is an adapter: merge it into its base model (peft's merge_and_unload, then save_pretrained)."
    nested = sorted(path.parent for path in folder.glob("*/config.json") if (path.parent / WEIGHTS).is_file())
    nested += sorted(path.parent for path in folder.glob("*/*/config.json") if (path.parent / WEIGHTS).is_file())
    if nested:
        return f"There is a model one level down: give {nested[0]}."
    if (folder / "modules.json").is_file():
        return "It is a sentence-transformers folder: give the folder of its transformer, such as 0_Transformer."
    if any(folder.glob("*.gguf")):
        return "It holds GGUF weights only: give the original model's folder, or convert it with transformers."
    return "Give the folder that save_pretrained wrote: config.json, model.safetensors and the tokenizer's files."


def _read_weights(folder: Path, allow_pickle: bool) -> tuple[list[Tensor], int]:
    """Return the tensors of the weight files that transformers would load, and the files' size in bytes."""
    if (folder / WEIGHTS).is_file():
        return headers.read_header(folder / WEIGHTS), (folder / WEIGHTS).stat().st_size
    if (folder / INDEX).is_file():
        return _read_shards(folder)
    pickles = pickle_files(folder)
    if pickles and allow_pickle:
        return [], sum(path.stat().st_size for path in pickles)
    if pickles:
        raise PickleRefused(
            f"{folder} has pickle weights only ({pickles[0].name}); loading a pickle can run any code it holds.",
            "Save it as safetensors (save_pretrained), or pass --allow-pickle if you trust its author.",
        )
    raise WeightsMissing(f"{folder} has a config.json and no weights.", _weights_remedy(folder))


def _weights_remedy(folder: Path) -> str:
    others = [
        p.name for p in sorted(folder.iterdir()) if p.suffix in (".safetensors", ".gguf", ".h5", ".msgpack", ".onnx")
    ]
    if others and others[0].endswith(".safetensors"):
        return f"Looked for {WEIGHTS} or {INDEX}; {others[0]} alone is not loaded: restore the index, or save again."
    if others:
        return f"Looked for {WEIGHTS} or {INDEX}; {others[0]} is another runtime's format: save it from PyTorch."
    return f"Looked for {WEIGHTS} or {INDEX}: copy the weights there."


def _read_shards(folder: Path) -> tuple[list[Tensor], int]:
    index = read_settings(folder / INDEX)
    try:
        where = {str(tensor): str(file) for tensor, file in index["weight_map"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise WeightsCorrupt(f"{INDEX} has no weight_map.", "Copy the file again.", str(folder / INDEX)) from error
    tensors: list[Tensor] = []
    size = 0
    for name in sorted(set(where.values())):
        path = folder / Path(name).name
        if not path.is_file():
            raise WeightsMissing(f"{INDEX} names {name}, which is not there.", "Copy that file too.", str(path))
        tensors += headers.read_header(path)
        size += path.stat().st_size
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


def is_pickle(name: str) -> bool:
    """Whether a file of that name holds pickled weights (and not, say, a Trainer's arguments)."""
    return name.endswith(PICKLES) and not name.startswith(("training_args", "optimizer", "scheduler", "rng_state"))


def bundle_files(names: Iterable[str], allow_pickle: bool = False, code: bool = False) -> list[str]:
    """Of the relative file names of a model, those that belong in a bundle's model/ folder, in order.

    Settings, tokenizer and safetensors; pickle only where nothing else exists and `allow_pickle` says so; the model's
    own Python only where `code` says so; its licence; never other runtimes' weights, or a training run's records.
    """
    names = set(names)
    if DIFFUSERS_INDEX in names and "config.json" not in names:
        from mii_azure.pipelines import pipeline_files

        return sorted({*pipeline_files(names, allow_pickle), *filter(_LEGAL.match, names)})
    small = {name for name in names if _is_setting(name) or _LEGAL.match(name)}
    if code:
        small |= {name for name in names if "/" not in name and name.endswith(".py")}
    if WEIGHTS in names:
        weights = {WEIGHTS}
    elif INDEX in names:
        weights = {INDEX, *filter(_SHARD.match, names)}
    else:
        pickles = {name for name in names if "/" not in name and is_pickle(name)} if allow_pickle else set()
        weights = pickles | {f"{name}.index.json" for name in ("pytorch_model.bin",) if pickles} & names
    return sorted(small | weights)


def _is_setting(name: str) -> bool:
    if "/" in name:
        return name in _NESTED
    return (name.endswith(_SUFFIXES) or bool(_TEXTS.match(name))) and not _LEFTOVERS.search(name)


def files_to_copy(folder: Path, allow_pickle: bool = False, code: bool = False) -> list[Path]:
    """The files of a model folder that belong in a bundle's model/, relative to it; see `bundle_files`."""
    names = {path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")}
    names |= {name for name in _NESTED if (folder / name).is_file()}
    if DIFFUSERS_INDEX in names and "config.json" not in names:
        names |= {path.relative_to(folder).as_posix() for path in folder.glob("*/*") if path.is_file()}
    if WEIGHTS not in names and INDEX in names:
        shards = set(read_settings(folder / INDEX)["weight_map"].values())
        return sorted({Path(name) for name in (*bundle_files(names, allow_pickle, code), *shards)})
    return [Path(name) for name in bundle_files(names, allow_pickle, code)]


def require_vocabulary(files: Iterable[Path], model: str) -> None:
    """Raise TokenizerMissing when none of the files to copy holds a vocabulary: every word would be unknown."""
    named = {"tokenizer.json", "vocab.json"}
    endings = (".model", ".spm", ".tiktoken", ".codes")
    if not any(path.name in named or path.name.endswith(endings) or _TEXTS.match(path.name) for path in files):
        raise TokenizerMissing(
            f"{model} has no tokenizer: neither tokenizer.json nor a vocabulary file.",
            "Save it beside the model: AutoTokenizer.from_pretrained(...).save_pretrained(FOLDER).",
        )
