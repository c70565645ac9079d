"""Diffusers folders: model_index.json, and a sub-folder with a config and safetensors per part.

The result is a `Model` like any other; its `config` has the usual keys of a transformers config, from the parts.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mii_azure.errors import ConfigMissing, PickleRefused, WeightsMissing
from mii_azure.model import configs, safetensors
from mii_azure.model.files import contained, shards
from mii_azure.model.resolved import Model, Source, is_pickle, read_settings
from mii_azure.model.safetensors import Tensor, Weights
from scoring.config import DIFFUSERS_INDEX
from scoring.model_files.shards import INDEX

#: Parts with weights, and the stem of their files; only some folders have the last one.
PARTS = {
    "text_encoder": "model",
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "safety_checker": "model",
}
_OPTIONAL = "safety_checker"
_MOST_BLOCKS = 16  # of a UNet or VAE, each at half the size of the one before
_SMALL = {
    "tokenizer": ("tokenizer_config.json", "tokenizer.json", "vocab.json", "merges.txt", "special_tokens_map.json"),
    "scheduler": ("scheduler_config.json",),
    "feature_extractor": ("preprocessor_config.json",),
}
_PICKLE_STEM = {"model": "pytorch_model", "diffusion_pytorch_model": "diffusion_pytorch_model"}


class PipelineFiles(NamedTuple):
    """Files of a folder, local or on the hub: sizes by relative name, parsed small files, safetensors headers."""

    sizes: Mapping[str, int]
    small: Callable[[str], Any]
    header: Callable[[str], list[Tensor]]


def is_pipeline(names: Iterable[str]) -> bool:
    """True if files of these names are a diffusers folder."""
    found = set(names)
    return DIFFUSERS_INDEX in found and "config.json" not in found


def local_files(folder: Path) -> PipelineFiles:
    """Read a local folder, with its parts one level down."""
    paths = [path for pattern in ("*", "*/*") for path in folder.glob(pattern) if path.is_file()]
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}
    return PipelineFiles(
        sizes,
        lambda name: read_settings(contained(folder, name)),
        lambda name: safetensors.read_header(contained(folder, name)),
    )


def read_pipeline(
    files: PipelineFiles,
    name: str,
    source: Source,
    allow_pickle: bool = False,
    revision: str | None = None,
    folder: Path | None = None,
) -> Model:
    """Describe a pipeline; raises ConfigMissing, WeightsMissing, WeightsCorrupt and PickleRefused."""
    index = files.small(DIFFUSERS_INDEX)
    architecture = configs.value(index, "_class_name", str, DIFFUSERS_INDEX)
    if not architecture:
        raise ConfigMissing(
            f"{DIFFUSERS_INDEX} of {name} does not say what pipeline it is.",
            "Copy the folder again, as diffusers' save_pretrained wrote it.",
        )
    config = {"model_type": "stable-diffusion", "architectures": [architecture], **_facts(files, name)}
    tensors: list[Tensor] = []
    size = 0
    for part in PARTS:
        for path in _weight_files(files, part, name, allow_pickle):
            size += files.sizes[path]
            if path.endswith(".safetensors"):
                tensors += [Tensor(f"{part}.{each.name}", *each[1:]) for each in files.header(path)]
    weights = safetensors.count(tensors, size, tied=False) if tensors else Weights(size // 4, size, "float32")
    settings = {}
    if "tokenizer/tokenizer_config.json" in files.sizes:
        settings["tokenizer_config.json"] = files.small("tokenizer/tokenizer_config.json")
    return Model(name, source, config, weights, revision=revision, folder=folder, settings=settings)


def _facts(files: PipelineFiles, name: str) -> dict[str, int]:
    unet, text, vae = (_config(files, part, name) for part in ("unet", "text_encoder", "vae"))
    where = {part: f"{part}/config.json" for part in ("unet", "text_encoder", "vae")}
    channels = _sizes(unet, "block_out_channels", where["unet"])
    per_block = configs.whole(unet, "layers_per_block", where["unet"])
    blocks = [each for side in ("down", "up") for each in configs.names(unet, f"{side}_block_types", where["unet"])]
    down, up = per_block * len(channels), (per_block + 1) * len(channels)
    attentions = 1 + sum(
        (per_block if kind.startswith("CrossAttnDown") else per_block + 1)
        for kind in blocks
        if kind.startswith("CrossAttn")
    )
    scale = 2 ** (len(_sizes(vae, "block_out_channels", where["vae"])) - 1)
    return {
        "num_hidden_layers": down + 2 + up + attentions,  # residual blocks and attention blocks, two in the middle
        "hidden_size": channels[0],
        "num_attention_heads": _sizes(unet, "attention_head_dim", where["unet"])[0],  # diffusers' name for their number
        "vocab_size": configs.whole(text, "vocab_size", where["text_encoder"]),
        "max_position_embeddings": configs.whole(text, "max_position_embeddings", where["text_encoder"]),
        "image_size": max(_sizes(unet, "sample_size", where["unet"])) * scale,
    }


def _sizes(settings: Mapping[str, Any], key: str, file: str) -> list[int]:
    """Parse one size, or a list of up to sixteen; raises ConfigMissing for anything else."""
    told = settings.get(key)
    listed = told if isinstance(told, list) and 1 <= len(told) <= _MOST_BLOCKS else [told]
    return [configs.whole({key: each}, key, file) for each in listed]


def _config(files: PipelineFiles, part: str, name: str) -> dict[str, Any]:
    path = f"{part}/config.json"
    if path not in files.sizes:
        raise ConfigMissing(f"{name} has no {path}.", "Copy that folder of the pipeline too.")
    found: dict[str, Any] = files.small(path)
    return found


def _weight_files(files: PipelineFiles, part: str, name: str, allow_pickle: bool) -> list[str]:
    """Weight files of a part that diffusers would load, in order."""
    found = _chosen(files.sizes, part, allow_pickle)
    index = f"{part}/{PARTS[part]}.safetensors{INDEX}"
    if index in files.sizes and f"{part}/{PARTS[part]}.safetensors" not in files.sizes:
        lost = {f"{part}/{shard}" for shard in shards(files.small(index), index)} - set(found)
        if lost:
            raise WeightsMissing(f"{index} of {name} names {min(lost)}, which is not there.", "Copy that file too.")
    if found or (part == _OPTIONAL and f"{part}/config.json" not in files.sizes):
        return found
    pickles = [path for path in files.sizes if path.startswith(f"{part}/") and is_pickle(path)]
    if pickles:
        raise PickleRefused(
            f"{name} has pickle weights only ({pickles[0]}); loading a pickle can run any code it holds.",
            "Save it as safetensors (save_pretrained), or pass --allow-pickle if you trust its author.",
        )
    wanted = f"{part}/{PARTS[part]}.safetensors"
    raise WeightsMissing(f"{name} has no {wanted}.", "Copy the weights of every part of the pipeline.")


def _chosen(names: Iterable[str], part: str, allow_pickle: bool) -> list[str]:
    names = set(names)
    stem = PARTS[part]
    if f"{part}/{stem}.safetensors" in names:
        return [f"{part}/{stem}.safetensors"]
    if f"{part}/{stem}.safetensors.index.json" in names:
        return sorted(n for n in names if n.startswith(f"{part}/{stem}-") and n.endswith(".safetensors"))
    pickle = f"{part}/{_PICKLE_STEM[stem]}.bin"
    return [pickle] if allow_pickle and pickle in names else []


def pipeline_files(names: Iterable[str], allow_pickle: bool = False) -> list[str]:
    """Select the files of a diffusers folder that belong in a bundle; never code or other runtimes' weights."""
    names = set(names)
    kept = {DIFFUSERS_INDEX}
    kept |= {f"{folder}/{name}" for folder, small in _SMALL.items() for name in small}
    for part, stem in PARTS.items():
        weights = _chosen(names, part, allow_pickle)
        if weights:
            kept |= {f"{part}/config.json", f"{part}/{stem}.safetensors.index.json", *weights}
    return sorted(kept & names)
