"""The diffusion pass: its arithmetic on the CPU, where the same code runs without graphs; itself on a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from scoring.config import Deployment, Optimisation
from scoring.diffusion.graph_recorder import KEPT
from scoring.diffusion.verify import draw, reference, verify_images
from scoring.errors import PassNotServed
from scoring.model.loaded import Runtime
from scoring.model.loader import load
from scoring.passes.base import Facts, Hardware, PassRefused
from scoring.passes.diffusion import Diffusion
from scoring.passes.registry import catalogue
from scoring.passes.runner import choose, run_passes
from tests.conftest import Tiny
from tests.tiny_pipelines import tiny_pipeline

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:diffusers")

TASK = "text-to-image"
SD = Facts("stable-diffusion", "StableDiffusionPipeline", "diffusion", 1_066_235_307, 2_132_470_614, 38, 8, 8, 320)
BERT = Facts("bert", "BertForMaskedLM", "encoder", 110_000_000, 220_000_000, 12, 12, 12, 768)
H100 = Hardware("cuda", "NVIDIA H100", (9, 0), 80 << 30, 1, nvcc=True)
P100 = Hardware("cuda", "NVIDIA P100", (6, 0), 16 << 30, 1, nvcc=True)
CPU = Hardware("cpu", "cpu", (0, 0), 0, 0, nvcc=False)
#: Sums in another order, float32.
CLOSE = 1e-4


def fresh(folder: Path, dtype: str = "float32") -> Any:
    return load(Deployment("x", TASK, dtype=dtype), folder).model


@pytest.mark.parametrize(
    ("facts", "hardware", "take", "reason"),
    [
        (SD, H100, True, "one launch a step"),
        (SD, CPU, False, "CPU"),
        (SD, P100, False, "P100 has 6.0"),
        (BERT, H100, False, "not one"),
    ],
    ids=str,
)
def test_decisions(facts: Facts, hardware: Hardware, take: bool, reason: str) -> None:
    decision = Diffusion().applies(facts, hardware, "latency")
    assert decision.take == take
    assert reason in decision.reason


def test_it_is_the_tasks_pass_and_can_be_forced_only_where_it_applies() -> None:
    passes = catalogue(Deployment("x", TASK))
    assert [each.name for each in passes] == ["diffusion"]
    with pytest.raises(PassNotServed, match="CPU"):
        choose(passes, SD, CPU, Optimisation(on=("diffusion",)))


@pytest.mark.parametrize("scheduler", ["PNDMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_the_rewired_loop_draws_the_same_images(scheduler: str, tmp_path: Path) -> None:
    model = fresh(tiny_pipeline(tmp_path, scheduler))
    told = reference(model)
    applied = Diffusion().apply(model)
    # Residual blocks 2 + 2 + 4, attentions 2 (1 + 1 + 2).
    assert applied.count == 16
    assert model.denoise != model.denoise_plainly
    assert 0 < verify_images(model, told()) < CLOSE
    assert Diffusion().bound(told) == Diffusion.tolerance


def test_a_wrong_image_is_found(tiny: Tiny) -> None:
    model = fresh(tiny("stable-diffusion", TASK))
    told = reference(model)
    Diffusion().apply(model)
    with torch.no_grad():
        model.unet.conv_out.weight.mul_(1.5)
    assert verify_images(model, told()) > Diffusion.tolerance
    model.decode = lambda latents: torch.full((1, 3, 8, 8), torch.nan)
    assert not verify_images(model, type(told())(told().probes[:1], [torch.zeros(1, 3, 8, 8)], 0.0)) <= 1


def test_undo_gives_plain_diffusers_back(tiny: Tiny) -> None:
    folder = tiny("stable-diffusion", TASK)
    model, untouched = fresh(folder), fresh(folder)
    told = reference(model)
    Diffusion().apply(model).undo()
    assert verify_images(model, told()) < 1e-6
    assert [type(m) for m in model.unet.modules()] == [type(m) for m in untouched.unet.modules()]
    processors = zip(model.unet.attn_processors.values(), untouched.unet.attn_processors.values(), strict=True)
    assert all(type(a) is type(b) for a, b in processors)
    assert set(vars(model)) == set(vars(untouched))
    assert set(vars(model.unet)) == set(vars(untouched.unet))


def test_half_precision_may_be_as_far_off_as_plain_half_precision(tiny: Tiny) -> None:
    model = fresh(tiny("stable-diffusion", TASK), "bfloat16")
    told = reference(model)
    assert 0 < told().plain_error < 1
    Diffusion().apply(model)
    assert verify_images(model, told()) <= Diffusion().bound(told)


def test_it_is_chosen_verified_and_recorded(tiny: Tiny) -> None:
    class Anywhere(Diffusion):
        def applies(self, facts: Facts, hardware: Hardware, objective: str) -> Any:
            return super().applies(facts, H100, objective)

    model = fresh(tiny("stable-diffusion", TASK))
    records = run_passes(model, Runtime(), choose([Anywhere()], SD, CPU, Optimisation()), (), reference)
    assert [(record.name, record.state, record.replaced) for record in records] == [("diffusion", "applied", 16)]
    assert records[0].error is not None
    assert records[0].error < CLOSE


def test_more_shapes_than_are_kept(tiny: Tiny) -> None:
    model = fresh(tiny("stable-diffusion", TASK))
    untouched = fresh(tiny("stable-diffusion", TASK))
    Diffusion().apply(model)
    fast = model.denoise.__self__
    for width in range(64, 64 + 8 * (KEPT + 2), 8):
        probe = (torch.zeros(2, 77, dtype=torch.int64), 2, (64, width), torch.tensor([7.5]))
        found, wanted = (draw(each, probe) for each in (model, untouched))
        torch.testing.assert_close(found, wanted, atol=1e-3, rtol=0)
    assert len(fast._loops) == KEPT


def test_many_steps_need_larger_buffers(tiny: Tiny) -> None:
    model, untouched = (fresh(tiny("stable-diffusion", TASK)) for _ in range(2))
    Diffusion().apply(model)
    for steps in (3, 70, 5):
        probe = (torch.arange(154).view(2, 77), steps, (64, 64), torch.tensor([5.0]))
        found, wanted = (draw(each, probe) for each in (model, untouched))
        torch.testing.assert_close(found, wanted, atol=5e-3, rtol=0)


def test_the_compiler_takes_the_step_as_one_graph(tiny: Tiny) -> None:
    model = fresh(tiny("stable-diffusion", TASK))
    Diffusion().apply(model)
    fast = model.denoise.__self__
    widths = (fast.conditions.time.shape[0], fast.conditions.prompt.shape[0])
    given = (torch.randn(2, 4, 8, 8), torch.randn(1, widths[0]), torch.randn(2, 77, widths[1]))
    with torch.inference_mode():
        compiled = torch.compile(fast._plain, dynamic=False, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(*given), fast._plain(*given))
    torch.compiler.reset()


@pytest.mark.parametrize(
    "shape",
    [
        {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
        {"sample_size": 96, "cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20]},
    ],
    ids=["1.4", "2.1"],
)
def test_the_real_unets_can_be_rewired(shape: dict[str, Any]) -> None:
    """Without memory for their weights: 22 residual blocks and 32 attentions, and every slice fits."""
    import diffusers

    from scoring.diffusion.cuda_graphs import rewire

    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(use_linear_projection=shape["sample_size"] == 96, **shape).eval()
        made = rewire(unet)
        unet.get_time_embed = lambda sample, timestep: timestep
        unet.time_embedding = torch.nn.Identity()
        unet.time_embedding.forward = lambda row, condition=None: row
        given = (torch.zeros(2, 4, 64, 64), torch.zeros(1, made.time.shape[0]))
        found = unet(*given, encoder_hidden_states=torch.zeros(2, 77, made.prompt.shape[0])).sample
    assert (made.replaced, found.shape) == (54, (2, 4, 64, 64))


def test_a_scheduler_that_adds_noise_is_refused(tmp_path: Path) -> None:
    model = fresh(tiny_pipeline(tmp_path, "EulerAncestralDiscreteScheduler"))
    with pytest.raises(PassRefused, match="adds noise"):
        Diffusion().apply(model)
    assert model.denoise == model.denoise_plainly


def test_an_attention_that_is_not_covered_is_refused(tiny: Tiny) -> None:
    model = fresh(tiny("stable-diffusion", TASK))
    told = reference(model)
    attention = next(m for m in model.unet.modules() if type(m).__name__ == "Attention")
    attention.residual_connection = True
    with pytest.raises(PassRefused, match="residual_connection"):
        Diffusion().apply(model)
    attention.residual_connection = False
    assert verify_images(model, told()) < 1e-6


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_graphs_on_a_gpu(dtype: str, tiny: Tiny) -> None:
    model = fresh(tiny("stable-diffusion", TASK), dtype)
    told = reference(model)
    applied = Diffusion().apply(model)
    assert "compiled" in applied.detail
    for _ in range(2):  # captured, then replayed on the same inputs
        assert verify_images(model, told()) <= Diffusion().bound(told)
    applied.undo()
    assert verify_images(model, told()) <= Diffusion().bound(told)
