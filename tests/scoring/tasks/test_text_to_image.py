"""text-to-image against plain diffusers: the same pixels for the same seed, alone or in a batch."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scoring.config import Limits
from scoring.diffusion.linear_scheduler import tabulate
from scoring.tasks.text_to_image import png, reply_bytes
from tests.conftest import Tiny
from tests.scoring.conftest import Serve
from tests.tiny_pipelines import tiny_pipeline

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:diffusers"),
    pytest.mark.filterwarnings("ignore:The configuration file of this scheduler:FutureWarning"),
]

TASK = "text-to-image"
CAT, DOG = "A photo of a cat.", "Ein Hund läuft über die Straße"
STEPS = 4
#: One step of 255, where a sum of another order falls on the other side of a half.
STEP = 1

Pixels = np.ndarray[Any, Any]


@pytest.fixture(scope="session")
def folder(tiny: Tiny) -> Path:
    return tiny("stable-diffusion", TASK)


def plain(folder: Path, prompts: list[str], seeds: list[int], **arguments: Any) -> Pixels:
    """Images of diffusers' own pipeline, uint8 [B, H, W, 3]."""
    import diffusers

    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    found = pipeline(prompts, generator=generators, output_type="np", **arguments)
    return np.asarray((found.images * 255).round(), dtype=np.uint8)


def pixels(image: dict[str, Any]) -> Pixels:
    from PIL import Image

    read = Image.open(io.BytesIO(base64.b64decode(image["generated_image"])))
    assert (read.format, read.mode) == ("PNG", "RGB")
    return np.asarray(read)


def assert_alike(found: Pixels, wanted: Pixels) -> None:
    assert found.shape == wanted.shape
    assert np.abs(found.astype(int) - wanted.astype(int)).max() <= STEP


@pytest.mark.parametrize(
    ("asked", "arguments"),
    [
        ({}, {}),
        ({"guidance_scale": 3.0}, {"guidance_scale": 3.0}),
        ({"guidance_scale": 1.0}, {"guidance_scale": 1.0}),
        ({"negative_prompt": "blurry"}, {"negative_prompt": ["blurry"]}),
        ({"height": 64, "width": 96}, {"height": 64, "width": 96}),
        ({"num_inference_steps": 1}, {"num_inference_steps": 1}),
        ({"num_inference_steps": 21}, {"num_inference_steps": 21}),
    ],
    ids=str,
)
def test_served_equals_plain_diffusers(
    asked: dict[str, Any], arguments: dict[str, Any], folder: Path, serve: Serve
) -> None:
    answer = serve(folder, TASK).ok(CAT, **({"num_inference_steps": STEPS, "seed": 3} | asked))
    assert [image.keys() for image in answer] == [{"prompt", "generated_image", "nsfw_content_detected", "seed"}]
    assert (answer[0]["prompt"], answer[0]["nsfw_content_detected"], answer[0]["seed"]) == (CAT, None, 3)
    assert_alike(pixels(answer[0]), plain(folder, [CAT], [3], **({"num_inference_steps": STEPS} | arguments))[0])


@pytest.mark.parametrize(
    ("scheduler", "settings"),
    [
        ("PNDMScheduler", {"skip_prk_steps": False}),
        ("DDIMScheduler", {}),
        ("DDIMScheduler", {"prediction_type": "v_prediction"}),
        ("EulerDiscreteScheduler", {}),
        ("HeunDiscreteScheduler", {}),
        ("DPMSolverMultistepScheduler", {}),
        ("UniPCMultistepScheduler", {}),
    ],
    ids=str,
)
def test_linear_schedulers_become_tables(
    scheduler: str, settings: dict[str, Any], serve: Serve, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tiny_pipeline(tmp_path_factory.mktemp("pipeline"), scheduler, **settings)
    served = serve(folder, TASK)
    assert served.service.loaded.model.denoiser.table(6) is not None
    answer = served.ok([CAT, DOG], num_inference_steps=6, seed=11)
    for images, wanted in zip(answer, plain(folder, [CAT, DOG], [11, 11], num_inference_steps=6), strict=True):
        assert_alike(pixels(images[0]), wanted)


@pytest.mark.parametrize(
    ("scheduler", "settings"),
    [("EulerAncestralDiscreteScheduler", {}), ("DDIMScheduler", {"thresholding": True})],
    ids=str,
)
def test_other_schedulers_run_step_by_step(
    scheduler: str, settings: dict[str, Any], serve: Serve, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tiny_pipeline(tmp_path_factory.mktemp("pipeline"), scheduler, **settings)
    served = serve(folder, TASK)
    assert served.service.loaded.model.denoiser.table(6) is None
    answer = served.ok([CAT, DOG], num_inference_steps=6, seed=11)
    for images, wanted in zip(answer, plain(folder, [CAT, DOG], [11, 11], num_inference_steps=6), strict=True):
        assert_alike(pixels(images[0]), wanted)


def test_a_table_has_a_column_per_prediction() -> None:
    from diffusers import DDIMScheduler

    table = tabulate(DDIMScheduler(clip_sample=False, beta_schedule="scaled_linear"), 3)
    assert table is not None
    assert table.inputs.shape == (3, 4)
    assert table.inputs[0].tolist() == [1, 0, 0, 0]
    assert bool((table.inputs[2, 3] == 0) & (table.final != 0).all())


def test_batched_equals_single(folder: Path, serve: Serve) -> None:
    """Whatever runs beside it: other prompts, other images of the prompt, other guidance."""
    served = serve(folder, TASK)
    shared = {"num_inference_steps": STEPS, "height": 64, "width": 64}
    together = served.ok([CAT, DOG, CAT], seed=5, num_images_per_prompt=2, **shared)
    assert [[image["seed"] for image in images] for images in together] == [[5, 6]] * 3
    for text, images in zip([CAT, DOG, CAT], together, strict=True):
        for image in images:
            alone = served.ok(text, seed=image["seed"], **shared)
            assert_alike(pixels(image), pixels(alone[0]))
    task = served.service.task
    values = [3.0, 7.5]
    rows = [
        row
        for value in values
        for row in task.encode(CAT, task.schema.parse_parameters({**shared, "seed": 1, "guidance_scale": value}), 0)
    ]
    assert rows[0].key == rows[1].key
    for value, (image, _) in zip(values, task.forward(rows), strict=True):
        assert_alike(image, pixels(served.ok(CAT, seed=1, guidance_scale=value, **shared)[0]))


def test_seeds(folder: Path, serve: Serve) -> None:
    served = serve(folder, TASK)
    one, two = (served.ok(CAT, num_inference_steps=2)[0] for _ in range(2))
    assert one["generated_image"] != two["generated_image"]
    again = served.ok(CAT, num_inference_steps=2, seed=one["seed"])[0]
    assert again == one
    assert served.ok(CAT, num_inference_steps=2, seed=2**63 - 1, num_images_per_prompt=2)[1]["seed"] == 0


def test_a_prompt_with_its_own_negative_prompt(folder: Path, serve: Serve) -> None:
    served = serve(folder, TASK)
    shared = {"num_inference_steps": STEPS, "seed": 2}
    inputs = [{"prompt": CAT, "negative_prompt": "blurry"}, {"prompt": CAT}, {"prompt": CAT, "negative_prompt": ""}]
    answer = served.ok(inputs, negative_prompt="dark", **shared)
    for images, negative in zip(answer, ("blurry", "dark", ""), strict=True):
        assert_alike(pixels(images[0]), pixels(served.ok(CAT, negative_prompt=negative, **shared)[0]))


def test_azure_forms(folder: Path, serve: Serve) -> None:
    served = serve(folder, TASK)
    parameters = {"num_inference_steps": 2, "seed": 4}
    columns = ("prompt", "generated_image", "nsfw_content_detected")
    wanted = [
        {name: image[name] for name in columns} for images in served.ok([CAT, DOG], **parameters) for image in images
    ]
    forms: list[dict[str, Any]] = [
        {"columns": ["prompt"], "data": [CAT, DOG], "index": [0, 1], "parameters": parameters},
        {"columns": ["prompt"], "data": [[CAT], [DOG]], "parameters": parameters},
        {"columns": ["prompt", "negative_prompt"], "data": [[CAT, ""], [DOG, ""]], "parameters": parameters},
    ]
    for form in forms:
        assert served({"input_data": form}) == (200, wanted)
    assert served({"input_data": [CAT, DOG], "params": parameters}) == (200, wanted)
    assert served({"input_data": {"prompt": [CAT, DOG]}, "params": parameters}) == (200, wanted)
    twice = served({"input_data": [CAT], "params": {**parameters, "num_images_per_prompt": 2}})[1]
    assert [row["prompt"] for row in twice] == [CAT, CAT]
    assert twice[0] == wanted[0]


def test_a_safety_checker_marks_and_blackens(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> None:
    """As diffusers does, image by image."""
    import diffusers

    folder = tiny_pipeline(tmp_path_factory.mktemp("pipeline"), safety=True)
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    seeds = range(12)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    found = pipeline([CAT] * 12, generator=generators, num_inference_steps=2, output_type="np")
    images = serve(folder, TASK, Limits()).ok(CAT, num_inference_steps=2, seed=0, num_images_per_prompt=12)
    assert [image["nsfw_content_detected"] for image in images] == found.nsfw_content_detected
    assert {True, False} == set(found.nsfw_content_detected)
    for image, wanted in zip(images, found.images, strict=True):
        assert_alike(pixels(image), np.asarray((wanted * 255).round(), dtype=np.uint8))


# --- refusals


@pytest.mark.parametrize(
    ("parameters", "where", "told"),
    [
        ({"height": 100}, "parameters.height", "multiple of 8"),
        ({"width": 56}, "parameters.width", "64"),
        ({"width": 4096}, "parameters.width", "2048"),
        ({"num_inference_steps": 0}, "parameters.num_inference_steps", "1"),
        ({"num_inference_steps": 501}, "parameters.num_inference_steps", "500"),
        ({"seed": -2}, "parameters.seed", ""),
        ({"guidance_scale": -1}, "parameters.guidance_scale", "0"),
        ({"num_images_per_prompt": 17}, "parameters.num_images_per_prompt", "16"),
        ({"steps": 3}, "parameters.steps", "num_inference_steps"),
    ],
    ids=str,
)
def test_parameters_out_of_bounds(
    parameters: dict[str, Any], where: str, told: str, folder: Path, serve: Serve
) -> None:
    error = serve(folder, TASK).refused(CAT, **parameters)
    assert (error["code"], error["where"]) == ("invalid_parameter", where)
    assert told in error["message"] + error.get("hint", "")


@pytest.mark.parametrize("inputs", ["", 5, {"negative_prompt": "a"}, {"prompt": CAT, "style": "b"}, [], [CAT, None]])
def test_inputs_that_are_no_prompts(inputs: Any, folder: Path, serve: Serve) -> None:
    assert serve(folder, TASK).refused(inputs)["code"] == "invalid_input"


def test_more_steps_than_the_model_was_trained_over(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tiny_pipeline(tmp_path_factory.mktemp("pipeline"), "DDIMScheduler", num_train_timesteps=20)
    error = serve(folder, TASK).refused(CAT, num_inference_steps=21)
    assert "trained over 20 steps; 21" in error["message"]


def test_fewer_steps_than_the_scheduler_starts_from(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tiny_pipeline(tmp_path_factory.mktemp("pipeline"), skip_prk_steps=False)
    error = serve(folder, TASK).refused(CAT, num_inference_steps=3)
    assert (error["message"], error["where"]) == (
        "PNDMScheduler cannot run in 3 steps.",
        "parameters.num_inference_steps",
    )


def test_a_long_prompt_is_refused_or_cut(folder: Path, serve: Serve) -> None:
    served = serve(folder, TASK)
    error = served.refused("cat " * 80)
    assert (error["code"], error["where"]) == ("prompt_too_long", "inputs[0]")
    assert served.refused([CAT, {"prompt": CAT, "negative_prompt": "cat " * 80}])["where"] == "inputs[1]"
    cut = served.ok("cat " * 80, truncation=True, num_inference_steps=2, seed=1)
    assert_alike(pixels(cut[0]), plain(folder, ["cat " * 80], [1], num_inference_steps=2)[0])


def test_images_that_cannot_fit_a_reply_are_refused_before_they_are_drawn(folder: Path, serve: Serve) -> None:
    served = serve(folder, TASK)
    status, answer = served({"inputs": [CAT] * 2, "parameters": {"height": 1024, "width": 1024}})
    assert (status, answer["error"]["code"]) == (413, "payload_too_large")
    assert answer["error"]["hint"] == "Ask for fewer images at once, or smaller ones."
    assert f"{4 << 20:,}" in answer["error"]["message"]
    small = serve(folder, TASK, Limits(max_payload_bytes=40_000))
    status, answer = small({"inputs": CAT, "parameters": {"num_images_per_prompt": 3}})
    assert (status, answer["error"]["code"]) == (413, "payload_too_large")
    assert len(small.ok(CAT, num_images_per_prompt=2, num_inference_steps=1)) == 2


@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 640), (512, 512)])
def test_no_image_is_larger_than_it_is_counted(height: int, width: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    row = {"generated_image": png(noise), "prompt": "", "nsfw_content_detected": None, "seed": 2**63 - 1}
    size = len(json.dumps(row))
    assert 0.95 * reply_bytes(height, width) < size <= reply_bytes(height, width)


def test_a_cancelled_row_stops_the_loop(folder: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve(folder, TASK)
    task, calls = served.service.task, []
    rows = task.encode(CAT, task.schema.parse_parameters({"num_inference_steps": 50, "seed": 1}), 0)
    forward = task.model.unet.forward

    def counted(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        rows[0].cancelled.set()
        return forward(*arguments, **named)

    monkeypatch.setattr(task.model.unet, "forward", counted)
    task.forward(rows)
    assert len(calls) == 1


def test_a_picture_that_is_not_finite_is_a_500(serve: Serve, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve(folder, TASK)
    monkeypatch.setattr(served.service.task.model, "decode", lambda latents: torch.full((1, 3, 64, 64), torch.nan))
    status, answer = served({"inputs": CAT, "parameters": {"num_inference_steps": 1}})
    assert status == 500
    assert "not finite" in answer["error"]["message"]
