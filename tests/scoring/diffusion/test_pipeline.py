"""Loading a diffusers folder: whole, damaged, of another kind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from scoring.config import Deployment, find_model_dir
from scoring.errors import HeadMissing, LoadError, WeightsUnreadable
from scoring.model.loader import load
from tests.conftest import Tiny
from tests.scoring.conftest import Serve
from tests.scoring.tasks.test_text_to_image import CAT, STEPS, TASK, assert_alike, pixels, plain
from tests.tiny_pipelines import SIZE


@pytest.fixture(scope="session")
def folder(tiny: Tiny) -> Path:
    return tiny("stable-diffusion", TASK)


def test_folders_of_the_other_kind(tiny: Tiny, folder: Path) -> None:
    with pytest.raises(HeadMissing, match="no diffusers pipeline"):
        load(Deployment("x", TASK), tiny("bert", "fill-mask"))
    with pytest.raises(HeadMissing, match="cannot do fill-mask") as caught:
        load(Deployment("x", "fill-mask"), folder)
    assert "text-to-image" in caught.value.hint


def test_the_model_folder_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AZUREML_MODEL_DIR", str(folder))
    assert find_model_dir(tmp_path) == folder


def damaged(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target / "model"))


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_weights_that_are_missing_are_not_made_up(part: str, folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = damaged(folder, tmp_path)
    path = next((model / part).glob("*.safetensors"))
    weights = load_file(path)
    weights.pop(sorted(weights)[0])
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(HeadMissing, match=f"{part} has no weights for .* random"):
        load(Deployment("x", TASK), model)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_weights_cut_short_or_absent(part: str, folder: Path, tmp_path: Path) -> None:
    model = damaged(folder, tmp_path)
    path = next((model / part).glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(WeightsUnreadable, match=part):
        load(Deployment("x", TASK), model)
    path.unlink()
    with pytest.raises(WeightsUnreadable, match=part):
        load(Deployment("x", TASK), model)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"_class_name": "StableDiffusionXLPipeline"}, "StableDiffusionXLPipeline is not served"),
        ({"scheduler": ["diffusers", "NoScheduler"]}, "NoScheduler"),
    ],
)
def test_pipelines_that_are_not_served(change: dict[str, Any], told: str, folder: Path, tmp_path: Path) -> None:
    model = damaged(folder, tmp_path)
    index = json.loads((model / "model_index.json").read_text(encoding="utf-8"))
    (model / "model_index.json").write_text(json.dumps(index | change), encoding="utf-8")
    with pytest.raises(LoadError, match=told):
        load(Deployment("x", TASK), model)


@pytest.mark.filterwarnings("ignore:The configuration file of this scheduler:FutureWarning")
def test_settings_of_the_first_folders_are_put_right(serve: Serve, folder: Path, tmp_path: Path) -> None:
    model = damaged(folder, tmp_path)
    path = model / "scheduler" / "scheduler_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(settings | {"steps_offset": 0, "clip_sample": True}), encoding="utf-8")
    answer = serve(model, TASK).ok(CAT, num_inference_steps=STEPS, seed=1)
    assert_alike(pixels(answer[0]), plain(model, [CAT], [1], num_inference_steps=STEPS)[0])


def test_an_inpainting_unet_is_refused(folder: Path, tmp_path: Path) -> None:
    import diffusers

    model = damaged(folder, tmp_path)
    config = dict(diffusers.UNet2DConditionModel.load_config(model / "unet")) | {"in_channels": 9}
    diffusers.UNet2DConditionModel.from_config(config).save_pretrained(model / "unet")
    with pytest.raises(HeadMissing, match="9 channels"):
        load(Deployment("x", TASK), model)


def test_the_metadata_name_the_model(folder: Path, serve: Serve) -> None:
    from scoring.model.loader import environment

    served = serve(folder, TASK)
    told = served.service.metadata() | environment(served.service.loaded)
    assert (told["architecture"], told["context_length"], told["dtype"]) == ("StableDiffusion", 77, "float32")
    assert told["versions"]["diffusers"] != "absent"
    assert served.service.loaded.model.native_size == (SIZE, SIZE)
