"""Plans of models of real size for what is rendered; bundles of a tiny real model for what is written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mii_azure.bundle.render import render
from mii_azure.model.families import find_task
from mii_azure.model.profile import Profile
from mii_azure.planning.plan import Plan
from mii_azure.planning.planner import make_plan
from mii_azure.sdk.generate import generate
from mii_azure.spec import Spec, make_spec
from scoring.schema.registry import schema

MakeBundle = Callable[..., Path]

#: Instance type by the device that golden trees are kept for.
SKUS = {"cpu": "Standard_F8s_v2", "t4": "Standard_NC4as_T4_v3", "a100": "Standard_NC24ads_A100_v4"}

_SHARED: dict[str, Any] = {"model": "a-model", "revision": None, "source": "folder", "dtype": "float32"}
#: BERT base, SmolLM2 360M, Stable Diffusion 1.4, Whisper small and T5 base, as their own files describe them.
_PROFILES = {
    "encoder": Profile(
        family="bert", kind="encoder", architecture="BertModel", parameters=109_482_240, weight_bytes=437_951_328,
        layers=12, hidden_size=768, heads=12, kv_heads=12, head_dim=64, vocab_size=30_522, context_length=512,
        kv_bytes_per_token=0, **_SHARED,
    ),
    "decoder": Profile(
        family="llama", kind="decoder", architecture="LlamaForCausalLM", parameters=361_821_120,
        weight_bytes=1_447_317_080, layers=32, hidden_size=960, heads=15, kv_heads=5, head_dim=64, vocab_size=49_152,
        context_length=8_192, kv_bytes_per_token=81_920, **_SHARED,
    ),
    "diffusion": Profile(
        family="stable-diffusion", kind="diffusion", architecture="StableDiffusionPipeline", parameters=1_066_235_307,
        weight_bytes=4_265_145_900, layers=38, hidden_size=320, heads=8, kv_heads=8, head_dim=40, vocab_size=49_408,
        context_length=77, image_size=512, kv_bytes_per_token=0, **_SHARED,
    ),
    "speech": Profile(
        family="whisper", kind="speech", architecture="WhisperForConditionalGeneration", parameters=241_734_912,
        weight_bytes=966_939_648, layers=24, hidden_size=768, heads=12, kv_heads=12, head_dim=64, vocab_size=51_865,
        context_length=1_948, kv_bytes_per_token=73_728, **_SHARED,
    ),
    "encoder-decoder": Profile(
        family="t5", kind="encoder-decoder", architecture="T5ForConditionalGeneration", parameters=222_903_552,
        weight_bytes=891_646_390, layers=24, hidden_size=768, heads=12, kv_heads=12, head_dim=64, vocab_size=32_128,
        context_length=512, kv_bytes_per_token=147_456, **_SHARED,
    ),
}  # fmt: skip


def spec_and_plan(task: str, device: str = "cpu", **preferences: Any) -> tuple[Spec, Plan]:
    """What generation would decide for a model of the task's kind on `device`, a key of SKUS."""
    fields = {"task": task, "model": "models/a-model", "name": f"My-{task}", "instance_type": SKUS[device]}
    spec = make_spec(**(fields | preferences))
    facts = find_task(task)
    profile = _PROFILES[facts.kinds[0]]
    head = facts.heads[0]
    if head and not profile.architecture.endswith(head):
        profile = profile.model_copy(update={"architecture": f"Bert{head}"})
    return spec, make_plan(spec, profile, facts.options)


def rendered(
    task: str, device: str = "cpu", version: str | None = "0123456789ab", **preferences: Any
) -> dict[str, str]:
    """The rendered files of `spec_and_plan`'s model."""
    spec, plan = spec_and_plan(task, device, **preferences)
    return render(spec, plan, schema(task), model_id="a-model", model_version=version)


@pytest.fixture
def make_bundle(tmp_path: Path, tiny: Callable[[str, str], Path]) -> MakeBundle:
    """Writes a bundle of a tiny BERT below the test's own folder."""

    def make(name: str = "bundle", **options: Any) -> Path:
        model = tiny("bert", "question-answering")
        return generate("question-answering", str(model), "My-qa", output=tmp_path / name, **options)

    return make
