"""Tables of tasks and of model families, and the tasks that each family can do."""

from difflib import get_close_matches
from functools import cache
from typing import Any

from pydantic import BaseModel, ConfigDict

from mii_azure.errors import UnknownTask
from mii_azure.hardware.skus import load_data
from mii_azure.model import configs

Options = dict[str, str | bool | int]
#: Heads over texts, whatever else the model reads.
_TEXT_HEADS = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
#: Ends of the names of classes that write one token after another.
CAUSAL_CLASSES = ("ForCausalLM", "LMHeadModel", "BertGenerationDecoder", "ReformerModelWithLMHead")


class TaskFacts(BaseModel):
    """Task: its purpose, the architectures that can do it, and its default options."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    summary: str
    kinds: tuple[str, ...]
    also: tuple[str, ...] = ()  # what people call it
    heads: tuple[str, ...]  # ends of architecture names; "" is any
    options: Options

    def accepts(self, architecture: str, kind: str) -> bool:
        """True if a model class of that name and kind can do this task."""
        if kind == "decoder" and "" in self.heads and architecture.endswith("ForConditionalGeneration"):
            return False  # the text part of a model of images or sound has a form for generating alone
        return kind in self.kinds and any(architecture.endswith(head) for head in self.heads)


class Family(BaseModel):
    """Family of models: the names of its facts, and the known properties of its numerics."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    tested: bool = True
    kind: str
    half: str = "float16"  # 16-bit type that is safe to serve in
    sdpa: bool = True  # attention without a heads x length x length matrix in memory
    tied: bool = True  # output embeddings are the input embeddings unless the config says otherwise
    context_offset: int = 0
    keys: dict[str, list[str]] = {}
    defaults: dict[str, int] = {}


@cache
def all_tasks() -> dict[str, TaskFacts]:
    """Every task that can be served, by name."""
    return {name: TaskFacts(name=name, **fields) for name, fields in load_data("tasks")["tasks"].items()}


def find_task(name: str) -> TaskFacts:
    """Find the task called `name`; raise UnknownTask with the nearest names."""
    tasks = all_tasks()
    if name in tasks:
        return tasks[name]
    called = {word: task for task, facts in tasks.items() for word in (task, *facts.also)}
    near = get_close_matches(name.strip().lower().replace("_", "-"), called, n=1, cutoff=0.6)
    nearest = f"Did you mean {called[near[0]]}? " if near else ""
    raise UnknownTask(f"There is no task {name!r}.", f"{nearest}Tasks: {', '.join(tasks)}.")


@cache
def all_families() -> dict[str, Family]:
    """Every tested family, by config.json's model_type."""
    return {name: Family(name=name, **fields) for name, fields in load_data("families")["families"].items()}


def find_family(config: dict[str, Any]) -> Family:
    """Find the family of a config.json; one missing from the table is described by its architecture's name."""
    name = configs.value(config, "model_type", str) or ""
    return family_named(name, _kind(config, name, first_architecture(config)))


def _kind(config: dict[str, Any], name: str, architecture: str) -> str:
    """Kind of a model; "multimodal" if its class does not answer text alone."""
    generates = architecture.endswith(("ForConditionalGeneration", "EncoderDecoderModel"))
    if generates and (known := all_families().get(name)) and known.kind == "speech":
        return known.kind
    if config.get("is_encoder_decoder"):
        writes = name in load_data("model_types")["seq2seq"] or not is_known_type(name)
        return "encoder-decoder" if writes or not generates else "multimodal"
    if architecture.endswith("Pipeline"):
        return "diffusion"
    if architecture.endswith(("ForMaskedLM", "WithLMHeadModel")):
        return "decoder" if config.get("causal") else "encoder"  # XLM has one class for both
    if architecture.endswith(CAUSAL_CLASSES):
        return "decoder"
    if generates and name in load_data("model_types")["image_text"]:
        return "decoder"
    if any(isinstance(config.get(part), dict) for part in ("vision_config", "audio_config", "text_config")):
        return "decoder" if architecture.endswith(_TEXT_HEADS) else "multimodal"
    return "encoder-decoder" if generates else "encoder"


def is_known_type(name: str) -> bool:
    """True if transformers itself has a model of that type."""
    tables = load_data("model_types")
    return any(name in tables[table] for table in ("seq2seq", "image_text", "others"))


def nearest_type(name: str) -> str:
    """Nearest name of a type that transformers has, or an empty string."""
    tables = load_data("model_types")
    return next(iter(get_close_matches(name, [*tables["others"], *tables["seq2seq"], *tables["image_text"]], 1)), "")


def family_named(name: str, kind: str) -> Family:
    """Find the family of that name, or an untested one of that kind; some classes use a part of their family only."""
    known = all_families().get(name) or Family(name=name, tested=False, kind=kind)
    return known.model_copy(update={"kind": kind}) if kind in ("decoder", "multimodal") else known


def first_architecture(config: dict[str, Any]) -> str:
    """Model class that config.json names, or an empty string."""
    return next(iter(configs.names(config, "architectures")), "")


def fact(config: dict[str, Any], family: Family, name: str) -> int | None:
    """Look a fact up in a config.json (or in its part for text) under the family's names, then the common ones.

    Raises ConfigMissing for a number that no model has.
    """
    common: dict[str, list[str]] = load_data("families")["common"]
    nested = [configs.value(config, "text_config", dict) or {}]
    nested += [config[part] for part in ("decoder", "encoder") if isinstance(config.get(part), dict)]
    for key in [*family.keys.get(name, []), *common.get(name, [])]:
        for place in (config, *nested):
            found = place.get(key)
            if isinstance(found, int) and not isinstance(found, bool):
                return configs.bounded(found, key)
    return family.defaults.get(name)
