"""Diffusers folders: facts from configs and headers, what is copied, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mii_azure.errors import ConfigMissing, PickleRefused, TaskUnsupported, WeightsCorrupt, WeightsMissing
from mii_azure.model.diffusers import pipeline_files
from mii_azure.model.families import find_task
from mii_azure.model.folder import files_to_copy
from mii_azure.model.profile import profile, task_check
from mii_azure.model.source import resolve
from mii_azure.planning.planner import plan
from tests.conftest import Tiny
from tests.tiny_pipelines import SIZE, tiny_pipeline

TASK = "text-to-image"


@pytest.fixture
def folder(tiny: Tiny, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny("stable-diffusion", TASK), tmp_path / "model"))


def test_facts_are_those_of_the_parts(folder: Path) -> None:
    import diffusers

    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    modules = (pipeline.unet, pipeline.vae, pipeline.text_encoder)
    facts = profile(resolve(str(folder)))
    assert facts.parameters == sum(p.numel() for module in modules for p in module.parameters())
    assert facts.weight_bytes == sum(path.stat().st_size for path in folder.glob("*/*.safetensors"))
    assert (facts.architecture, facts.family, facts.kind) == (
        "StableDiffusionPipeline",
        "stable-diffusion",
        "diffusion",
    )
    assert (facts.dtype, facts.image_size, facts.context_length) == ("float32", SIZE, 77)
    kinds = [type(module).__name__ for module in pipeline.unet.modules()]
    assert facts.layers == kinds.count("ResnetBlock2D") + kinds.count("Transformer2DModel")
    assert facts.kv_bytes_per_token == 0


def test_the_recorded_layers_are_those_of_the_real_unet() -> None:
    """Stable Diffusion 1.4's UNet, built without memory for its weights."""
    import diffusers

    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        vae = diffusers.AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
        )
    kinds = [type(module).__name__ for module in unet.modules()]
    recorded = plan(TASK, "CompVis/stable-diffusion-v1-4").profile
    assert recorded.layers == kinds.count("ResnetBlock2D") + kinds.count("Transformer2DModel")
    text = 123_060_480  # CLIP ViT-L/14's text model
    size = sum(p.numel() for module in (unet, vae) for p in module.parameters()) + text
    assert recorded.parameters == pytest.approx(size, rel=1e-3)


def test_it_can_draw_and_nothing_else(folder: Path, tiny: Tiny) -> None:
    facts = profile(resolve(str(folder)))
    task_check(facts, find_task(TASK))
    with pytest.raises(TaskUnsupported, match="cannot do fill-mask") as caught:
        task_check(facts, find_task("fill-mask"))
    assert caught.value.hint == f"It can do: {TASK}."
    with pytest.raises(TaskUnsupported, match="cannot do text-to-image"):
        plan(TASK, str(tiny("bert", "fill-mask")))


def test_files_that_are_copied(folder: Path) -> None:
    before = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    (folder / "README.md").write_text("")
    (folder / "v1-5-pruned.ckpt").write_bytes(b"")
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"")
    (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"")
    (folder / "unet" / "train.py").write_text("")
    (folder / "vae_decoder").mkdir()
    (folder / "vae_decoder" / "model.onnx").write_bytes(b"")
    assert files_to_copy(folder) == before


def test_a_safety_checker_is_copied_and_counted(folder: Path, tmp_path: Path) -> None:
    checked = tiny_pipeline(tmp_path / "checked", safety=True)
    assert {"safety_checker/model.safetensors", "feature_extractor/preprocessor_config.json"} <= {
        path.as_posix() for path in files_to_copy(checked)
    }
    assert resolve(str(checked)).weights.parameters > resolve(str(folder)).weights.parameters


def test_shards(folder: Path) -> None:
    import diffusers

    whole = resolve(str(folder)).weights.parameters
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    shutil.rmtree(folder / "unet")
    pipeline.unet.save_pretrained(folder / "unet", max_shard_size="1MB")
    shards = sorted(path.name for path in (folder / "unet").glob("*.safetensors"))
    assert len(shards) > 1
    assert resolve(str(folder)).weights.parameters == whole
    copied = {path.as_posix() for path in files_to_copy(folder)}
    assert {f"unet/{name}" for name in shards} <= copied
    assert "unet/diffusion_pytorch_model.safetensors.index.json" in copied


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_parts_that_are_damaged_or_missing(part: str, folder: Path) -> None:
    path = next((folder / part).glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(WeightsCorrupt):
        resolve(str(folder))
    path.rename(path.with_name("pytorch_model.bin" if part == "text_encoder" else "diffusion_pytorch_model.bin"))
    with pytest.raises(PickleRefused, match=part):
        resolve(str(folder))
    assert resolve(str(folder), allow_pickle=True).weights.bytes > 0
    shutil.rmtree(folder / part)
    with pytest.raises((ConfigMissing, WeightsMissing), match=part):
        resolve(str(folder))


@pytest.mark.parametrize("index", [{}, [], {"_class_name": 5}])
def test_an_index_that_names_no_pipeline(index: Any, folder: Path) -> None:
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigMissing, match=r"does not say what pipeline|_class_name should be|not a JSON object"):
        resolve(str(folder))


def test_another_pipeline_is_not_served(folder: Path) -> None:
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_class_name": "StableDiffusionXLPipeline"}))
    with pytest.raises(TaskUnsupported, match="StableDiffusionXLPipeline"):
        plan(TASK, str(folder))


def test_hub_names() -> None:
    names = [
        "README.md", "model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors",
        "tokenizer/vocab.json", "tokenizer/merges.txt", "v1-4.ckpt",
    ]  # fmt: skip
    assert pipeline_files(names) == [
        "model_index.json", "tokenizer/merges.txt", "tokenizer/vocab.json", "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    ]  # fmt: skip
