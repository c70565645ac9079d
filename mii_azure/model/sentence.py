"""sentence-transformers folders before they are loaded: their files, and what they say of vectors, scores, length."""

from collections.abc import Collection
from typing import Any

from mii_azure.errors import ConfigMissing, ModelError, PickleRefused, TaskUnsupported, WeightsMissing
from mii_azure.model.consistency import label_count
from mii_azure.model.families import Options, TaskFacts, first_architecture
from mii_azure.model.files import refuse_odd_names
from mii_azure.model.profile import Profile, context_length
from mii_azure.model.resolved import Model
from mii_azure.model.sentence_weights import check_weights
from scoring.config import MODULES
from scoring.schema.registry import task_schema
from scoring.sentence import folder as sentence
from scoring.sentence.folder import PICKLE, Malformed, SentenceModel, Unserved
from scoring.sentence.forms import describe, is_colbert
from scoring.sentence.ranker import CAUSAL, FORM, Ranker, describe_ranker


def module_folders(listed: Any) -> list[str]:
    """Folders that a parsed modules.json (or None) names; raises OutsideFolder for one elsewhere, ConfigMissing."""
    if listed is None:
        return []
    refuse_odd_names({}, {MODULES: listed})
    try:
        return [each.path for each in sentence.modules(listed) if each.path]
    except Unserved as error:
        raise _of(error) from error


def transformer_path(listed: Any, names: Collection[str]) -> str:
    """Folder of config.json and weights, by a parsed modules.json (or None); "" is the model's own."""
    return sentence.transformer_path(listed) if module_folders(listed) and "config.json" not in names else ""


def setting_files(listed: Any, names: Collection[str]) -> list[str]:
    """Small files among `names` that a parsed modules.json (or None) leads to."""
    return [] if listed is None else [name for name in sentence.setting_files(listed) if name in names]


def bundle_files(listed: Any, names: Collection[str], allow_pickle: bool) -> list[str]:
    """Files in the folders of modules that belong in a bundle: settings, and weights of those after the pooling."""
    if listed is None:
        return []
    return [*setting_files(listed, names), *sentence.weight_files(listed, list(names), allow_pickle)]


def sentence_model(model: Model, task: TaskFacts, allow_pickle: bool) -> SentenceModel | Ranker | None:
    """Settings of vectors or scores in a model's folder; None for other tasks, and without modules.json for vectors.

    Raises TaskUnsupported for what is not served, ConfigMissing, WeightsMissing, PickleRefused.
    """
    if task_schema(task.name).ranks:
        return _ranker(model)
    if not task_schema(task.name).embeds or not _described(model):
        return None
    try:
        told = describe({"config.json": model.config, **model.settings}.get)
    except Unserved as error:
        raise _of(error, model.name) from error
    _check_form(model, told, task)
    for layer in told.layers:
        if layer.inputs and layer.module.path:
            _require_weights(model, layer.module, allow_pickle)
    return told


def _check_form(model: Model, told: SentenceModel, task: TaskFacts) -> None:
    """Raise TaskUnsupported for sparse vectors without a head over the vocabulary, or a form that a task has not."""
    architecture = first_architecture(model.config)
    if told.splade and not architecture.endswith(("ForMaskedLM", "ForPreTraining", "WithLMHeadModel")):
        raise TaskUnsupported(
            f"Sparse vectors are made of a masked language model's logits; {model.name} is a {architecture}.",
            "Save the model with its head over the vocabulary: its config.json then names a class ...ForMaskedLM.",
        )
    if told.form and task.name == "feature-extraction":
        raise TaskUnsupported(
            f"{model.name} makes {told.told()}.", "Its tasks are sentence-embeddings and sentence-similarity."
        )


def vector_form(model: Model) -> str:
    """Form of a model's vectors where its folder says another than one list of numbers a text; else empty."""
    try:
        return describe({"config.json": model.config, **model.settings}.get).form if _described(model) else ""
    except Unserved:
        return ""


def _described(model: Model) -> bool:
    return MODULES in model.settings or is_colbert(model.config)


def vector_options(told: SentenceModel | Ranker | None, options: Options) -> Options:
    """Options of a task for a model whose vectors have a form of their own; others as they are."""
    return {FORM: told.form} if isinstance(told, SentenceModel) and told.form else options


def _ranker(model: Model) -> Ranker | None:
    """Read the settings of a model's scores from its folder; raises TaskUnsupported for one with several labels."""
    if model.source not in ("folder", "hub"):
        return None
    judges = first_architecture(model.config).endswith(CAUSAL)
    if not judges and (labels := label_count(model.config)) != 1:
        raise TaskUnsupported(
            f"A model that ranks gives one number a pair; {model.name} has {labels} labels.",
            "Its task is text-classification, which takes pairs too.",
        )
    try:
        return describe_ranker(model.settings.get, model.config)
    except Unserved as error:
        raise _of(error, model.name) from error


def _require_weights(model: Model, module: sentence.Module, allow_pickle: bool) -> None:
    safe, pickled = module.file(sentence.WEIGHTS), module.file(PICKLE)
    if safe in model.names or (pickled in model.names and allow_pickle):
        return
    if pickled in model.names:
        raise PickleRefused(
            f"{module.path} of {model.name} has its weights in a pickle only, which can run any code it holds.",
            "Save it as safetensors (SentenceTransformer.save), or pass --allow-pickle if you trust its author.",
        )
    raise WeightsMissing(f"{module.path} of {model.name} has no weights: looked for {safe}.", "Copy that file too.")


def as_embedder(facts: Profile, model: Model, told: SentenceModel | Ranker | None, task: TaskFacts) -> Profile:
    """Facts of a model as a task that embeds or ranks runs it: decoders in one forward, texts as long as it says.

    Raises ConfigMissing for modules whose sizes do not fit, ModelInconsistent for their weights'.
    """
    schema = task_schema(task.name)
    if not schema.embeds and not schema.ranks:
        return facts
    if facts.kind == "decoder":
        facts = facts.model_copy(update={"kind": "encoder", "kv_bytes_per_token": 0})
    if told is None:
        return facts
    if isinstance(told, Ranker):
        return facts.model_copy(update={"context_length": context_length(model, told.max_seq_length)})
    try:
        told.dimension(facts.hidden_size)
    except Unserved as error:
        raise _of(error, model.name) from error
    check_weights(model, told)
    length = context_length(model, told.max_seq_length)
    return facts.model_copy(update={"context_length": length, "pooling": told.told()})


def _of(error: Unserved, name: str = "The model") -> ModelError:
    if isinstance(error, Malformed):
        return ConfigMissing(str(error), error.hint)
    return TaskUnsupported(f"{name} is not served: {error}", error.hint)
