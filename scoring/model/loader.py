"""Loads a model folder with transformers, refuses randomly initialised weights, and moves it to the device."""

import logging
import os
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from scoring.config import MODULES, Deployment
from scoring.engine.oom import is_out_of_memory
from scoring.errors import HeadMissing, LoadError, OutOfMemory, WeightsUnreadable
from scoring.limits.memory_shares import LOADED
from scoring.lora.loading import AdapterRoom
from scoring.lora.served import ServedAdapters
from scoring.model.beside import bank_beside
from scoring.model.extractor import feature_extractor
from scoring.model.host_memory import refuse_beyond_limit, too_small
from scoring.model.info import facts_of
from scoring.model.loaded import Loaded
from scoring.model.tokenizer_files import reason_of, tokenizer_of
from scoring.model_files.own_code import fault_of
from scoring.model_files.shards import refuse_outside
from scoring.model_files.text_part import text_part
from scoring.passes.base import Facts, Hardware, Pass
from scoring.passes.runner import Chosen, choose, tell_differences
from scoring.quantization.loading import from_pretrained
from scoring.schema.registry import task_class, task_schema
from scoring.sentence.fitted_tokenizer import fit, lower_case
from scoring.sentence.folder import SentenceModel, Unserved, transformer_path
from scoring.sentence.forms import describe, is_colbert
from scoring.sentence.head import Head, build
from scoring.sentence.judge import judge_of, judged_tokens
from scoring.sentence.ranker import FORM, JUDGES, Ranker, describe_ranker
from scoring.sentence.vectors import SPARSE
from scoring.strict_json.files import read_file, read_object
from scoring.telemetry.versions import versions

logger = logging.getLogger("mii_azure.loader")

#: Auto classes of models that read images beside text, and write text from text alone as those of the first name do.
_WRAPPERS = {"AutoModelForCausalLM": ("AutoModelForImageTextToText",)}


def pick_device() -> torch.device:
    """The first CUDA device if there is one, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def load_with(
    passes: Sequence[Pass], deployment: Deployment, folder: Path, room: AdapterRoom | None = None
) -> tuple[Loaded, Chosen]:
    """Decide on the passes, then load the model on the device that they need; raises LoadError and its kinds.

    With `room`, adapters may be loaded while it serves.
    """
    room = room or AdapterRoom()
    hardware, asked = Hardware.here(), deployment.optimisation
    if deployment.task == "text-to-image":
        loaded = load(deployment, folder)
        chosen = choose(passes, facts_of(loaded.model, True), hardware, asked)
        tell_differences(chosen, asked.planned)
        return loaded, chosen
    facts = replace(survey(deployment, folder), adapters=max(len(deployment.served), room.places))
    chosen = choose(passes, facts, hardware, asked)
    tell_differences(chosen, asked.planned)
    return load(deployment, folder, any(each.places for each, decision in chosen if decision.take), room), chosen


def _refuse_foreign_code(deployment: Deployment, folder: Path) -> None:
    """Raise LoadError if transformers would run code that is not among the model's files, or fetch it."""
    if deployment.trust_remote_code and (fault := fault_of(folder)):
        raise LoadError(fault, "Copy that code beside config.json, name it there, and generate the bundle again.")


def survey(deployment: Deployment, folder: Path) -> Facts:
    """Facts of a model from its config alone, before any weight is read; raises LoadError and its kinds."""
    import transformers

    folder = _transformer(folder)
    _refuse_pipeline(deployment, folder)
    _refuse_foreign_code(deployment, folder)
    try:
        config = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=deployment.trust_remote_code
        )
        with torch.device("meta"):
            model = _made("from_config", deployment, config)
    except LoadError:
        raise
    except ImportError as error:
        raise _lacking(error) from error
    except Exception as error:
        raise LoadError(f"The model's config cannot be read: {reason_of(error)}.", "Copy config.json again.") from error
    return facts_of(model, task_schema(deployment.task).generative)


def load(deployment: Deployment, folder: Path, on_host: bool = False, room: AdapterRoom | None = None) -> Loaded:
    """Load tokenizer and model in the deployment's precision, on the device or in host memory.

    Raises LoadError and its kinds.
    """
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    began = time.perf_counter()
    device = pick_device()
    if deployment.task == "text-to-image":
        from scoring.diffusion.pipeline import load_diffusion

        return load_diffusion(deployment, folder, device)
    top, folder = folder, _transformer(folder)
    _refuse_pipeline(deployment, folder)
    _refuse_foreign_code(deployment, folder)
    told = _sentence_model(top) if task_schema(deployment.task).embeds else None
    tokenizer = tokenizer_of(folder, deployment.trust_remote_code)
    if told:
        fit(tokenizer, told)
    ranker = _ranker(deployment, top)
    if ranker and ranker.lower_case:
        lower_case(tokenizer)
    model = _weights(deployment, folder, torch.device("cpu") if on_host else device)
    if ranker and deployment.task_options.get(FORM) == JUDGES:
        model = judge_of(model, *judged_tokens(ranker, tokenizer))
    if task_schema(deployment.task).embeds:
        model.config.use_cache = False  # a decoder would keep keys and values that nobody reads
    head = _head(told, top, model, deployment.allow_pickle) if told else None
    context = deployment.limits.context_length or _context_length(model, tokenizer, told or ranker)
    seconds = time.perf_counter() - began
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    logger.info(
        "loaded %s as %s on %s: %.2f GB in %.1f s",
        type(model).__name__,
        deployment.dtype,
        model.device,
        size / 1e9,
        seconds,
    )
    options, served = deployment.task_options, ServedAdapters(deployment.served)
    bank = bank_beside(model, deployment, top, room or AdapterRoom())
    heard = feature_extractor(folder) if task_schema(deployment.task).hears else None
    return Loaded(model, tokenizer, device, context, options, head, heard, ranker, served=served, adapters=bank)


def load_without_weights(deployment: Deployment, folder: Path) -> Loaded:
    """Load what making rows and answers takes: tokenizer, head, and the model's modules without memory.

    Its context length is that of no pass; raises LoadError and its kinds.
    """
    import transformers

    transformers.utils.logging.set_verbosity_error()
    top, folder = folder, _transformer(folder)
    _refuse_foreign_code(deployment, folder)
    embeds = task_schema(deployment.task).embeds
    told = _sentence_model(top) if embeds else None
    tokenizer = tokenizer_of(folder, deployment.trust_remote_code)
    if told:
        fit(tokenizer, told)
    ranker = _ranker(deployment, top)
    if ranker and ranker.lower_case:
        lower_case(tokenizer)
    config = transformers.AutoConfig.from_pretrained(
        folder, local_files_only=True, trust_remote_code=deployment.trust_remote_code
    )
    with torch.device("meta"):
        model = _made("from_config", deployment, config).eval()
    head = _head(told, top, model, deployment.allow_pickle) if told else None
    options, served = deployment.task_options, ServedAdapters(deployment.served)
    heard = feature_extractor(folder) if task_schema(deployment.task).hears else None
    return Loaded(model, tokenizer, torch.device("cpu"), 0, options, head, heard, ranker, served=served)


def _transformer(folder: Path) -> Path:
    """Folder of config.json and weights: the model's own, or the one that its modules.json names."""
    if (folder / "config.json").is_file() or not (folder / MODULES).is_file():
        return folder
    try:
        return folder / transformer_path(read_file(folder / MODULES))
    except Unserved as error:
        raise LoadError(str(error), error.hint) from error


def _sentence_model(folder: Path) -> SentenceModel | None:
    """Read pooling, prompts and length from the model's folder; None without modules.json, but for a ColBERT."""
    if not (folder / MODULES).is_file() and not is_colbert(read_object(folder / "config.json")):
        return None
    try:
        return describe(lambda name: read_file(folder / name) if (folder / name).is_file() else None)
    except Unserved as error:
        raise LoadError(str(error), error.hint) from error


def _ranker(deployment: Deployment, folder: Path) -> Ranker | None:
    """Read the settings of the model's scores from its folder, for a task that ranks."""
    if not task_schema(deployment.task).ranks:
        return None

    def read(name: str) -> Any:
        return read_file(folder / name) if (folder / name).is_file() else None

    try:
        told = describe_ranker(read, read_object(_transformer(folder) / "config.json"))
    except Unserved as error:
        raise LoadError(str(error), error.hint) from error
    judges = deployment.task_options.get(FORM) == JUDGES
    return replace(told, templated=True) if judges else told


def _head(told: SentenceModel, folder: Path, model: Any, allow_pickle: bool) -> Head:
    try:
        return build(told, folder, int(model.config.get_text_config().hidden_size), allow_pickle)
    except Unserved as error:
        raise LoadError(str(error), error.hint) from error


def _refuse_pipeline(deployment: Deployment, folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise HeadMissing(
            f"The model folder holds a diffusers pipeline, which cannot do {deployment.task}.",
            "Its task is text-to-image.",
        )


def _weights(deployment: Deployment, folder: Path, device: torch.device) -> Any:
    """The model on a device, in eval mode; on a GPU each tensor is copied there straight from the file."""
    where: dict[str, Any] = {"device_map": {"": device}} if device.type == "cuda" else {}
    refuse_outside(folder)
    if device.type == "cpu":
        with suppress(HeadMissing):  # which the load itself tells more of
            refuse_beyond_limit(lambda: survey(deployment, folder).weight_bytes, deployment.dtype)
    try:
        model, report = _made(
            "from_pretrained",
            deployment,
            folder,
            local_files_only=True,
            use_safetensors=None if deployment.allow_pickle else True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
            **where,
        )
    except torch.OutOfMemoryError as error:
        raise _too_large(deployment, folder, device) from error
    except LoadError:
        raise
    except ImportError as error:
        raise _lacking(error) from error
    except ValueError as error:
        raise WeightsUnreadable(f"The model cannot be loaded: {reason_of(error)}.") from error
    except Exception as error:
        if is_out_of_memory(error):
            raise too_small(survey(deployment, folder).weight_bytes, deployment.dtype) from error
        raise WeightsUnreadable(
            f"The weights cannot be loaded: {reason_of(error)}.",
            "Copy the model again; the file may be cut short.",
        ) from error
    _refuse_other_sizes(report["mismatched_keys"])
    _refuse_random_weights(model, report["missing_keys"], deployment, folder)
    return model.eval()


def _made(how: str, deployment: Deployment, source: Any, **options: Any) -> Any:
    """Call the task's auto class, `from_pretrained` or `from_config`; raises HeadMissing if it has no such model."""
    import transformers

    name = task_class(deployment.task).auto_class
    if deployment.task_options.get(FORM) == SPARSE:
        name = "AutoModelForMaskedLM"
    if deployment.task_options.get(FORM) == JUDGES:
        if how == "from_config":
            source.num_labels = 1
        else:
            name = "AutoModelForCausalLM"
    if how == "from_config":
        source = text_part(source)
    for each in (name, *_WRAPPERS.get(name, ())):
        auto = getattr(transformers, each)
        try:
            return (auto.from_config if how == "from_config" else partial(from_pretrained, auto))(
                source,
                dtype=getattr(torch, deployment.dtype),
                trust_remote_code=deployment.trust_remote_code,
                **options,
            )
        except ValueError as error:
            if "Unrecognized configuration class" not in str(error):
                raise
    architecture = _architecture(source) if isinstance(source, Path) else _named(source.to_dict())
    raise HeadMissing(
        f"{architecture} cannot do {deployment.task}: transformers has no {name} for it.",
        "Choose the task that the model was trained for.",
    )


def _lacking(error: ImportError) -> LoadError:
    """Refusal of a model whose code imports what is not installed."""
    return LoadError(
        f"The model needs a library that is not installed: {reason_of(error)}.",
        "Bundles have none beside their lock; of a model of several parts, give the folder of its text model.",
    )


def _too_large(deployment: Deployment, folder: Path, device: torch.device) -> OutOfMemory:
    needed = survey(deployment, folder).weight_bytes / 1e9
    free, total = (each / 1e9 for each in torch.cuda.mem_get_info(device))
    return OutOfMemory(
        f"The weights take {needed:.1f} GB as {deployment.dtype}; the GPU has {free:.1f} of {total:.1f} GB free.",
        f"Serve it on a GPU with {LOADED * needed:.0f} GB or more, or force the pass zero_inference on.",
    )


def _refuse_other_sizes(mismatched: Collection[tuple[str, Sequence[int], Sequence[int]]]) -> None:
    """Refuse weights of other sizes than config.json has: transformers fills what it makes anew with random numbers."""
    for name, stored, told in sorted(mismatched):
        raise WeightsUnreadable(
            f"{name} is {list(stored)} in the weights, and {list(told)} by config.json.",
            "Copy config.json and weights from the same place.",
        )


def _refuse_random_weights(model: Any, absent: Collection[str], deployment: Deployment, folder: Path) -> None:
    """Refuse a model with missing weights, which transformers fills with random numbers: its head would serve noise.

    Buffers are computed, not learned, and tied weights are not reported; embeddings never read a pooler.
    """
    learned = {name for name, _ in model.named_parameters()}
    embeds = task_class(deployment.task).auto_class == "AutoModel"
    missing = sorted(key for key in absent if key in learned and not (embeds and "pooler." in key))
    if missing:
        raise HeadMissing(
            f"{_architecture(folder)} has no weights for {deployment.task}: {', '.join(missing[:3])} would be random.",
            "Choose the task that the model was trained for, or a checkpoint with that head.",
        )


def _architecture(folder: Path) -> str:
    return _named(read_object(folder / "config.json"))


def _named(config: dict[str, Any]) -> str:
    return str((config.get("architectures") or [config.get("model_type", "The model")])[0])


def _context_length(model: Any, tokenizer: Any, told: SentenceModel | Ranker | None) -> int:
    """Tokens that the model takes: the smaller of the config's and the tokenizer's limit, less position offsets.

    A sentence-transformers folder's max_seq_length goes before the tokenizer's.
    """
    if hears := getattr(model.config, "max_source_positions", 0):  # of sound, beside those of text
        return int(hears) + int(model.config.max_target_positions)
    length, text = 0, model.config.get_text_config()
    for name in (
        "max_position_embeddings",
        "n_positions",
        "max_sequence_length",
        "seq_length",
        "max_seq_len",
    ):
        length = length or int(getattr(text, name, 0) or getattr(model.config, name, 0) or 0)
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            length = module.num_embeddings - module.padding_idx - 1  # RoBERTa's and MPNet's start after the padding
    limit = int(min((told and told.max_seq_length) or tokenizer.model_max_length, 10**9))  # "unknown" is 1e30
    if length <= 0:  # relative positions (T5, BLOOM): bounded by memory; take the tokenizer's word
        length = limit if limit < 10**9 else 2048
    elif limit < 10**9:
        length = min(length, limit)
    return length


def environment(loaded: Loaded) -> dict[str, Any]:
    """Environment that may explain a different answer elsewhere: versions, device, precision, threads."""
    model = loaded.model
    return {
        "device": torch.cuda.get_device_name(loaded.device) if loaded.device.type == "cuda" else "cpu",
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": str(getattr(model.config, "_attn_implementation", "")),
        "threads": torch.get_num_threads(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS", ""),
        "versions": versions(),
    }
