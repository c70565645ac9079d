"""Loads a model folder with transformers, checks that nothing in it was made up, and moves it to the device."""

import json
import logging
import os
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from scoring.config import Deployment
from scoring.errors import HeadMissing, LoadError, WeightsUnreadable
from scoring.tasks import task_class
from scoring.tasks.base import Loaded

logger = logging.getLogger("mii_azure.loader")


def pick_device() -> torch.device:
    """The first CUDA device when there is one, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def load(deployment: Deployment, folder: Path) -> Loaded:
    """Load tokenizer and model in the deployment's precision; raises LoadError and its kinds."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    began = time.perf_counter()
    cls = task_class(deployment.task)
    if deployment.task == "text-to-image":
        from scoring.diffusion import load_diffusion

        return load_diffusion(deployment, folder, pick_device())
    if not (folder / "config.json").is_file():
        raise HeadMissing(
            f"The model folder holds a diffusers pipeline, which cannot do {deployment.task}.",
            "Its task is text-to-image.",
        )
    tokenizer = _tokenizer(transformers, folder, deployment.trust_remote_code)
    model = _model(transformers, cls.auto_class, deployment, folder)
    device = pick_device()
    model.to(device).eval()
    context = deployment.limits.context_length or _context_length(model, tokenizer)
    seconds = time.perf_counter() - began
    logger.info("loaded %s as %s on %s in %.1f s", type(model).__name__, deployment.dtype, device, seconds)
    return Loaded(model, tokenizer, device, context, deployment.task_options)


def _tokenizer(transformers: Any, folder: Path, trust_remote_code: bool) -> Any:
    hint = "The folder needs tokenizer.json, or the vocabulary files of the model's own tokenizer."
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trust_remote_code
        )
    except Exception as error:
        raise LoadError(f"The tokenizer in the model folder cannot be loaded: {_reason(error)}.", hint) from error
    names = {"tokenizer.json", *type(tokenizer).vocab_files_names.values()}
    if not any((folder / name).is_file() for name in names):
        # transformers would go on with an empty vocabulary, in which every word is unknown.
        raise LoadError(f"The model folder has no vocabulary for its {type(tokenizer).__name__} tokenizer.", hint)
    return tokenizer


def _model(transformers: Any, auto_class: str, deployment: Deployment, folder: Path) -> Any:
    try:
        model, report = getattr(transformers, auto_class).from_pretrained(
            folder,
            dtype=getattr(torch, deployment.dtype),
            local_files_only=True,
            trust_remote_code=deployment.trust_remote_code,
            use_safetensors=None if deployment.allow_pickle else True,
            output_loading_info=True,
        )
    except ValueError as error:
        if "Unrecognized configuration class" in str(error):
            raise HeadMissing(
                f"{_architecture(folder)} cannot do {deployment.task}: transformers has no {auto_class} for it.",
                "Choose the task that the model was trained for.",
            ) from error
        raise WeightsUnreadable(f"The model cannot be loaded: {_reason(error)}.") from error
    except Exception as error:
        raise WeightsUnreadable(
            f"The weights cannot be loaded: {_reason(error)}.",
            "Copy the model again; the file may be cut short.",
        ) from error
    _refuse_random_weights(model, report["missing_keys"], deployment, folder)
    return model


def _refuse_random_weights(model: Any, absent: Collection[str], deployment: Deployment, folder: Path) -> None:
    """transformers fills absent weights with random numbers; a head made that way would serve noise.

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
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return str((config.get("architectures") or [config.get("model_type", "The model")])[0])


def _context_length(model: Any, tokenizer: Any) -> int:
    """Tokens that the model takes: the smaller of what config and tokenizer say; position offsets subtracted."""
    length = 0
    for name in (
        "max_position_embeddings",
        "n_positions",
        "max_sequence_length",
        "seq_length",
        "max_seq_len",
    ):
        length = length or int(getattr(model.config, name, 0) or 0)
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            length = module.num_embeddings - module.padding_idx - 1  # RoBERTa's and MPNet's start after the padding
    told = int(min(tokenizer.model_max_length, 10**9))  # transformers' own "unknown" is 1e30
    if length <= 0:  # relative positions (T5, BLOOM): bounded by memory; take the tokenizer's word
        length = told if told < 10**9 else 2048
    elif told < 10**9:
        length = min(length, told)
    return length


def _reason(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__).rstrip(".")[:300]


def versions() -> dict[str, str]:
    """Versions of what computes the answers."""
    import platform
    from importlib import metadata

    found = {"python": platform.python_version()}
    for package in ("torch", "transformers", "tokenizers", "safetensors", "deepspeed", "diffusers", "pillow"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def environment(loaded: Loaded) -> dict[str, Any]:
    """What may explain a different answer elsewhere: versions, device, precision, threads."""
    model = loaded.model
    return {
        "device": torch.cuda.get_device_name(loaded.device) if loaded.device.type == "cuda" else "cpu",
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": str(getattr(model.config, "_attn_implementation", "")),
        "threads": torch.get_num_threads(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS", ""),
        "versions": versions(),
    }
