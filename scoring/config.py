"""Reads `deployment.json`, the settings written beside score.py when the bundle was generated."""

import math
import os
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from scoring.errors import LoadError, ModelNotFound
from scoring.strict_json.files import read_object, typed

SCHEMA = 1
DIFFUSERS_INDEX = "model_index.json"  # a diffusers folder has it in place of config.json
MODULES = "modules.json"  # a sentence-transformers folder has it, and its config.json perhaps one level down
_MARKS = ("config.json", DIFFUSERS_INDEX, MODULES)
_DEEPEST = 6  # levels below AZUREML_MODEL_DIR at which a model is looked for; registries' MLflow layout has three
_LARGEST_NUMBER = 2**53  # beyond it a float, which other hosts' JSON uses, is not exact

_PLAIN = (str, bool, dict[str, Any])

CacheDtype = Literal["auto", "fp8"]
Speculation = Literal["auto", "ngram", "draft", "off"]

T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """Bounds on one request and on the queue."""

    max_batch_tokens: int = 16_384  # padded tokens in one forward
    max_batch_size: int = 32  # rows in one forward
    slots: int = 0  # sequences that a decoder on a GPU advances at once; 0: as many as a batch has rows
    kv_cache_tokens: int = 0  # tokens of a GPU's paged cache, in all sequences; 0: as many as memory has room for
    memory_share: float = 0.0  # share of a GPU's memory for weights and cache; 0: the default of `memory_shares`
    kv_cache_dtype: CacheDtype = "auto"  # of a decoder's keys and values; auto: the model's
    prefix_reuse: bool = True  # reuse cached prefixes of prompts; false: no timing reveals other callers' prompts
    batch_invariant: bool = False  # answers are the same bits alone and in company
    speculation: Speculation = "auto"  # who drafts; auto: the draft model, else on GPUs what a text repeats
    draft_model: str = ""  # folder of the draft model, within the model's; none if empty
    queue_size: int = 256  # rows waiting; past it requests are answered 429
    max_payload_bytes: int = 4 << 20
    max_answer_bytes: int = 32 << 20  # of one reply, by the upper bound of its answers
    request_timeout_s: float = 90.0
    context_length: int = 0  # tokens; 0: taken from the model's config


@dataclass(frozen=True)
class PassDecision:
    """Decision to take a pass on the planned instance type or not, and the sentence that says why."""

    name: str
    take: bool
    reason: str
    forecast: bool = True  # start-up decides again, by the model and hardware it finds; False: forced on or off


@dataclass(frozen=True)
class Optimisation:
    """Objective for which passes are chosen, and passes that are forced on or off."""

    objective: str = "latency"  # or "cost": throughput first
    profile: str = "azure"  # every pass; "public": only DeepSpeed's own open ones and torch's
    on: tuple[str, ...] = ()
    off: tuple[str, ...] = ()
    tensor_parallel: int = 0  # GPUs that share the weights; 0: as many as the weights need, or as make decode faster
    planned: tuple[PassDecision, ...] = ()


@dataclass(frozen=True)
class ModelRef:
    """Identity of the model, for people; not used for loading."""

    id: str = ""
    revision: str | None = None
    architecture: str = ""
    family: str = ""


@dataclass(frozen=True)
class AdapterRef:
    """A LoRA adapter of the deployment: merged into the weights, or served beside them from `adapters/NAME`."""

    name: str
    sha256: str
    rank: int
    products: int
    parameters: int
    merged: bool

    @property
    def key(self) -> str:
        """Name that rows know it by: with its content, so that another of its name shares nothing with it."""
        return f"{self.name}@{self.sha256}"


@dataclass(frozen=True)
class Deployment:
    """The settings of one deployment."""

    name: str
    task: str
    model: ModelRef = ModelRef()
    task_options: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    quantisation: dict[str, Any] = field(default_factory=dict)  # of the shipped weights, with its error; empty: none
    adapters: tuple[AdapterRef, ...] = ()
    allow_pickle: bool = False
    trust_remote_code: bool = False  # run the Python files in the model folder
    instance_type: str = ""
    limits: Limits = Limits()
    optimisation: Optimisation = Optimisation()
    handler: bool = False  # a handler.py stands beside score.py
    served_names: tuple[str, ...] = ()  # further names that requests may call the model by

    @property
    def beside(self) -> tuple[str, ...]:
        """Names of the adapters that are served beside the model, by requests that name one."""
        return tuple(each.name for each in self.served)

    @property
    def served(self) -> tuple[AdapterRef, ...]:
        """Adapters that are served beside the model."""
        return tuple(each for each in self.adapters if not each.merged)

    def serving(self, adapters: tuple[AdapterRef, ...]) -> "Deployment":
        """The same with these adapters beside the model."""
        return replace(self, adapters=(*(each for each in self.adapters if each.merged), *adapters))

    @property
    def names(self) -> tuple[str, ...]:
        """Names that requests may call the model by, each once; the deployment's own is the first."""
        return tuple(dict.fromkeys((self.name, *self.served_names)))

    @classmethod
    def read(cls, path: Path) -> "Deployment":
        """Parse the file at `path`; raise LoadError if it is not a deployment.json as the generator writes it."""
        again = f"Generate the bundle again; known fields are {', '.join(f.name for f in fields(cls))}."
        raw = read_object(path, LoadError, again)
        try:
            schema = raw.pop("schema")
            if schema != SCHEMA:
                raise LoadError(f"{path.name} has schema {schema}; this scoring package reads {SCHEMA}.")
            raw["model"] = _made(ModelRef, raw["model"], "model")
            raw["limits"] = _made(Limits, raw["limits"], "limits")
            raw["optimisation"] = _made(Optimisation, raw.get("optimisation", {}), "optimisation")
            return _made(cls, raw, "it")
        except (ValueError, KeyError, TypeError) as error:
            raise LoadError(f"{path.name} beside score.py cannot be read: {error}.", again) from error


def _made(kind: type[T], raw: Any, what: str) -> T:
    """Settings from a JSON object; raises TypeError or ValueError for a value that does not fit its field."""
    kinds = get_type_hints(kind)
    values = typed(raw, dict, what)
    return kind(**{name: _field(values[name], kinds.get(name), f"{what}.{name}") for name in values})


def _field(value: Any, kind: Any, what: str) -> Any:
    if kind == tuple[str, ...]:
        return tuple(typed(each, str, what) for each in typed(value, list, what))
    for each in (PassDecision, AdapterRef):
        if kind == tuple[each, ...]:  # type: ignore[valid-type]
            return tuple(_made(each, one, what) for one in typed(value, list, what))
    if kind == str | None:
        return value if value is None else typed(value, str, what)
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise ValueError(f"{what} is none of {', '.join(get_args(kind))}")
        return value
    if kind in (int, float):
        number = typed(value, kind, what)
        if not (0 <= number <= _LARGEST_NUMBER and math.isfinite(number)):
            raise ValueError(f"{what} is no number from 0 to {_LARGEST_NUMBER}")
        return number
    return typed(value, dict if kind == dict[str, Any] else kind, what) if kind in _PLAIN else value


def find_model_dir(code_dir: Path) -> Path:
    """Return the folder that holds config.json, a diffusers pipeline's model_index.json, or modules.json.

    Azure ML mounts the model at AZUREML_MODEL_DIR, which may be the folder itself or lie levels above it, as in the
    MLflow layout of registries (`mlflow_model_folder/data/model`), and may contain a double slash; without that
    variable the bundle's own `model/` beside `code/` is used. Raises ModelNotFound, also for several models.
    """
    named = os.environ.get("AZUREML_MODEL_DIR")
    root = Path(os.path.normpath(named)) if named else code_dir.parent / "model"
    found = models_below(root)
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(folder.relative_to(root).as_posix() for folder in found[:4])
        raise ModelNotFound(f"{root} holds several models: {names}.", "Register the folder of one.")
    raise ModelNotFound(
        f"No config.json in {root} or up to {_DEEPEST} levels below it.",
        "AZUREML_MODEL_DIR must name the folder of the model, or one above it.",
    )


def models_below(root: Path) -> list[Path]:
    """Model folders at the level nearest to `root` that has any with weights, else that has any.

    Of several in one level one named `model` stands for all: others there are its configuration or tokenizer.
    """
    level = [root]
    bare: list[Path] = []
    for _ in range(_DEEPEST + 1):
        marked = [folder for folder in level if any((folder / name).is_file() for name in _MARKS)]
        whole = [folder for folder in marked if _is_whole(folder)]
        if whole:
            return [folder for folder in whole if folder.name == "model"][:1] or whole
        bare = bare or marked
        level = sorted(child for folder in level if folder.is_dir() for child in folder.iterdir() if child.is_dir())
    return [folder for folder in bare if folder.name == "model"][:1] or bare


def _is_whole(folder: Path) -> bool:
    """Return True for a pipeline, a sentence-transformers folder, or weights beside config.json."""
    parts = any((folder / name).is_file() for name in (DIFFUSERS_INDEX, MODULES))
    return parts or any(any(folder.glob(pattern)) for pattern in ("*.safetensors", "*.bin"))
