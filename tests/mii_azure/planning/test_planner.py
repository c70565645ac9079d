"""What is planned, over every kind of model and instance type, and what is refused with a way out."""

from __future__ import annotations

import re

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from mii_azure.errors import DoesNotFit, NotAvailable, SpecError, TaskUnsupported
from mii_azure.hardware.skus import Sku, all_skus, find_sku
from mii_azure.model import recorded
from mii_azure.model.families import all_families, family_named
from mii_azure.model.profile import Profile
from mii_azure.model.safetensors import DTYPE_BYTES
from mii_azure.planning import latency, memory
from mii_azure.planning.budget import Work, device_of
from mii_azure.planning.plan import Plan
from mii_azure.planning.planner import make_plan, plan
from mii_azure.platform import limits
from mii_azure.spec import Spec
from tests.conftest import Tiny
from tests.mii_azure.model_folders import Folder
from tests.tiny_models import FAMILIES

CPU, T4, A10, A100, V100 = (
    "Standard_F8s_v2",
    "Standard_NC4as_T4_v3",
    "Standard_NV36ads_A10_v5",
    "Standard_NC24ads_A100_v4",
    "Standard_NC6s_v3",
)
SEEDS = recorded.all_models()
TEXT_SEEDS = [model for model in SEEDS if model.task != "text-to-image"]


def facts(family: str = "llama", parameters: int = 1_000_000_000, dtype: str = "float16", **changes: object) -> Profile:
    kind = all_families()[family].kind
    fields = {
        "model": "m",
        "revision": None,
        "architecture": "LlamaForCausalLM",
        "family": family,
        "kind": kind,
        "parameters": parameters,
        "weight_bytes": parameters * DTYPE_BYTES[dtype],
        "dtype": dtype,
        "layers": 24,
        "hidden_size": 2048,
        "heads": 32,
        "kv_heads": 32,
        "head_dim": 64,
        "vocab_size": 32_000,
        "context_length": 2048,
        "kv_bytes_per_token": 0 if kind == "encoder" else 2 * 24 * 2048 * DTYPE_BYTES[dtype],
        "source": "folder",
    }
    return Profile.model_validate(fields | changes)


def planned(profile: Profile, instance_type: str | None = None, **preferences: object) -> Plan:
    task = {"encoder": "text-classification", "decoder": "text-generation", "encoder-decoder": "translation"}[
        profile.kind
    ]
    fields = {"task": task, "model": "m", "name": "abc", "instance_type": instance_type} | preferences
    return make_plan(Spec.model_validate(fields), profile, {})


def judge(made: Plan) -> None:
    """What must hold of every plan."""
    sku = find_sku(made.instance_type)
    assert made.instance_type == sku.name
    assert made.memory.needed <= made.memory.available
    assert made.memory.available < (sku.gpu_memory_gb if sku.gpu else sku.ram_gb) * limits.GB
    assert (made.device, made.image) == (("cuda", "cuda13") if sku.gpu else ("cpu", "cpu"))
    assert made.fits == (made.tensor_parallel == 1 or made.takes("tensor_slicing"))
    assert 0 < made.context_length <= made.profile.context_length
    if not made.profile.windowed_layers:  # which keep less than the context
        assert made.context_length <= max(made.max_batch_tokens, made.kv_cache_tokens)
    assert made.request_timeout_ms <= limits.MAX_REQUEST_TIMEOUT_MS
    assert made.liveness.success_threshold == made.readiness.success_threshold == 1
    assert made.queue_size >= made.max_concurrent_requests
    whats = [decision.what for decision in made.decisions]
    assert len(whats) == len(set(whats))
    assert all(decision.value and decision.reason.endswith(".") for decision in made.decisions)


# --- the seed's models


def test_the_seeds_appendix_is_whole() -> None:
    aliases = [model.alias for model in recorded.all_models() if model.alias]
    assert len(aliases) == len(set(aliases)) == 69
    ids = recorded.names()
    assert len(ids) == len(set(ids))
    assert {"CompVis/stable-diffusion-v1-4", "bigscience/bloom", "EleutherAI/gpt-neox-20b"} <= set(ids)


@pytest.mark.parametrize("model", SEEDS, ids=lambda model: model.id)
def test_every_seed_model_plans_without_a_network(model: recorded.SeedModel) -> None:
    made = plan(model.task, model.id)
    judge(made)
    assert made.profile.source == "recorded"
    assert made.profile.family in all_families()
    assert not [decision for decision in made.decisions if decision.what == "family"]


@pytest.mark.parametrize("model", TEXT_SEEDS, ids=lambda model: model.id)
def test_recorded_parameters_are_those_of_the_recorded_shape(model: recorded.SeedModel) -> None:
    config = {key: value for key, value in model.config.items() if key not in ("architectures", "model_type")}
    if model.config["model_type"] == "gpt_neo":
        config["attention_types"] = [[["global", "local"], config["num_layers"] // 2]]
    if model.config["model_type"] == "opt":
        config["word_embed_proj_dim"] = config["hidden_size"]
    if model.config["model_type"] == "roberta":
        config["type_vocab_size"] = 1
    built = transformers.AutoConfig.for_model(model.config["model_type"], **config)
    with torch.device("meta"):
        real = getattr(transformers, model.config["architectures"][0])(built)
    # The number of labels is not recorded: a head of nine labels is some thousand parameters.
    assert model.parameters == pytest.approx(sum(p.numel() for p in real.parameters()), rel=2e-4)


def test_stable_diffusion_is_planned_from_recorded_facts() -> None:
    made = plan("text-to-image", "CompVis/stable-diffusion-v1-4")
    assert (made.instance_type, made.dtype, made.profile.source) == ("Standard_NC4as_T4_v3", "float16", "recorded")
    assert (made.max_batch_size, made.max_batch_tokens) == (4, 4 * (64 * 64 + 77))
    assert made.memory.weights == 2 * 1_066_235_307
    assert 3 * limits.GB < made.memory.needed < 8 * limits.GB
    told = {decision.what: decision for decision in made.decisions}
    assert told["batch"].value.startswith("4 images")
    assert "50 steps" in told["request timeout"].reason
    assert told["pass diffusion"].value == "yes"


def test_stable_diffusion_on_a_cpu_says_that_it_is_too_slow() -> None:
    made = plan("text-to-image", "CompVis/stable-diffusion-v1-4", instance_type="Standard_F8s_v2")
    told = {decision.what: decision for decision in made.decisions}
    assert (made.max_batch_size, made.dtype) == (1, "float32")
    assert "Azure's cap" in told["request timeout"].reason
    assert told["pass diffusion"].value == "no"


def test_an_image_takes_longer_on_a_slower_gpu() -> None:
    slow, fast = (
        plan("text-to-image", "CompVis/stable-diffusion-v1-4", instance_type=sku)
        for sku in ("Standard_NC4as_T4_v3", "Standard_NC24ads_A100_v4")
    )
    assert slow.request_timeout_ms > fast.request_timeout_ms


def test_bloom_is_planned_sliced_and_not_served() -> None:
    made = plan("text-generation", "bigscience/bloom")
    assert (made.instance_type, made.tensor_parallel, made.fits) == ("Standard_ND96amsr_A100_v4", 8, False)
    with pytest.raises(DoesNotFit, match="sliced over 8 GPUs, and DeepSpeed does not slice bloom"):
        made.require_fit()


# --- every family that is served


@pytest.mark.parametrize(
    ("family", "task"), [(name, task) for name, family in FAMILIES.items() for task in family.tasks]
)
def test_tiny_models_plan_on_every_device_line(tiny: Tiny, family: str, task: str) -> None:
    folder = str(tiny(family, task))
    for instance_type in (None, CPU, T4, A100):
        made = plan(task, folder, instance_type)
        judge(made)
        made.require_fit()
    assert plan(task, folder).device == ("cpu" if FAMILIES[family].kind == "encoder" else "cuda")


def test_a_plan_is_the_same_each_time(tiny: Tiny) -> None:
    folder = str(tiny("llama", "text-generation"))
    assert plan("text-generation", folder) == plan("text-generation", folder)
    assert Plan.model_validate_json(plan("text-generation", folder).model_dump_json()) == plan(
        "text-generation", folder
    )


def test_an_untested_family_is_said_to_be_so(folder: Folder) -> None:
    from tests.mii_azure.model_folders import BERT

    made = plan(
        "fill-mask", str(folder(BERT | {"model_type": "nystromformer", "architectures": ["NystromformerForMaskedLM"]}))
    )
    assert next(decision for decision in made.decisions if decision.what == "family").value == "nystromformer"


# --- precision


@pytest.mark.parametrize(
    ("family", "stored", "instance_type", "asked", "expected"),
    [
        ("bert", "float32", CPU, "auto", "float32"),
        ("bert", "float16", CPU, "auto", "float32"),
        ("bert", "float32", CPU, "bfloat16", "bfloat16"),
        ("bert", "float32", T4, "auto", "float16"),
        ("bert", "float32", T4, "float32", "float32"),
        ("llama", "bfloat16", T4, "auto", "float16"),
        ("llama", "bfloat16", A100, "auto", "bfloat16"),
        ("llama", "float16", A100, "auto", "float16"),
        ("llama", "float32", A100, "auto", "float16"),
        ("llama", "bfloat16", A10, "auto", "bfloat16"),
        ("t5", "float32", T4, "auto", "float32"),
        ("t5", "float32", A100, "auto", "bfloat16"),
        ("gemma", "float16", T4, "auto", "float32"),
        ("t5", "float32", T4, "float16", "float16"),
    ],
)
def test_precision(family: str, stored: str, instance_type: str, asked: str, expected: str) -> None:
    profile = facts(family, 100_000_000, stored, kv_bytes_per_token=0)
    assert planned(profile, instance_type, dtype=asked).dtype == expected


def test_a_t4_has_no_bfloat16() -> None:
    with pytest.raises(NotAvailable, match="no bfloat16") as caught:
        planned(facts(), T4, dtype="bfloat16")
    assert "A100" in caught.value.hint
    assert planned(facts(), dtype="bfloat16").instance_type == A10


# --- where it goes


@pytest.mark.parametrize(
    ("family", "parameters", "expected"),
    [
        ("bert", 110_000_000, "Standard_F4s_v2"),
        ("bert", 399_000_000, "Standard_F4s_v2"),
        ("xlm-roberta", 560_000_000, T4),
        ("llama", 135_000_000, T4),
        ("llama", 8_000_000_000, A10),
        ("llama", 13_000_000_000, A100),
        ("llama", 40_000_000_000, "Standard_NC40ads_H100_v5"),
    ],
)
def test_the_smallest_that_holds_it_is_chosen(family: str, parameters: int, expected: str) -> None:
    assert planned(facts(family, parameters)).instance_type == expected


@given(st.sampled_from(["bert", "deberta-v2", "llama", "bloom", "t5"]), st.integers(10**6, 4 * 10**10))
def test_nothing_smaller_would_have_held_it(family: str, parameters: int) -> None:
    work = Work(facts(family, parameters), family_named(family, ""), "text-generation")
    chosen = memory.choose(work)
    judge(planned(work.profile))

    def size(sku: Sku) -> tuple[float, float]:
        return (sku.gpus * sku.gpu_memory_gb, sku.cores) if sku.gpu else (sku.cores, sku.ram_gb)

    for sku in all_skus().values():
        same_kind = (sku.gpu is None) == (chosen.sku.gpu is None)
        allowed = sku.whole_gpus if sku.gpu else sku.cores >= limits.MIN_CPU_CORES
        if same_kind and allowed and memory.usable(sku) and size(sku) < size(chosen.sku):
            headroom = limits.HEADROOM[device_of(sku)]
            assert memory.fit(work, sku, headroom=headroom).problem


def test_fewest_cores_go_before_least_memory() -> None:
    profile = facts("bert", 100_000_000, vocab_size=1_000_000, architecture="BertForMaskedLM")
    assert planned(profile, task="fill-mask").instance_type == "Standard_E4s_v3"


@pytest.mark.parametrize(
    ("instance_type", "retired"),
    [(V100, "2025-09-30"), ("Standard_NC6s_v2", "2023-08-31"), ("Standard_ND40rs_v2", None)],
)
def test_gpus_that_torch_left_behind_are_refused_with_another(instance_type: str, retired: str | None) -> None:
    with pytest.raises(NotAvailable, match="no longer support") as caught:
        planned(facts(), instance_type)
    assert T4 in caught.value.hint
    assert f"retired its series on {retired}" in caught.value.message or retired is None


@pytest.mark.parametrize(
    ("parameters", "instance_type", "why"),
    [
        (13_000_000_000, T4, "has 14.4 GB free"),
        (3_000_000_000, "Standard_F4s_v2", "memory has 6.5 GB free"),
        (30_000_000_000, A100, "local disk of 64 GB"),
        (100_000_000, "Standard_DS1_v2", "GB free"),
    ],
)
def test_what_cannot_hold_the_model_is_refused_with_one_that_can(parameters: int, instance_type: str, why: str) -> None:
    profile = facts(parameters=parameters)
    with pytest.raises(DoesNotFit, match=re.escape(why)) as caught:
        planned(profile, instance_type)
    other = re.search(r"holds it: (Standard_\w+)", caught.value.hint)
    assert other
    judge(planned(profile, other[1]))


def test_nothing_holds_a_model_of_a_trillion() -> None:
    with pytest.raises(DoesNotFit, match="No Azure ML instance type"):
        planned(facts(parameters=10**12))


def test_a_share_of_a_gpu_is_taken_only_when_asked_for() -> None:
    made = planned(facts("bert", 100_000_000), "Standard_NV6ads_A10_v5")
    assert "share of a GPU" in next(d.reason for d in made.decisions if d.what == "instance type")


def test_a_long_context_is_cut_to_what_memory_holds() -> None:
    made = planned(facts(parameters=6_000_000_000, context_length=131_072), T4)
    assert 2048 <= made.context_length < 131_072
    judge(made)
    reason = next(d.reason for d in made.decisions if d.what == "context length")
    assert "131072" in reason


def test_attention_without_sdpa_is_budgeted_for() -> None:
    fused, eager = facts("bert", 100_000_000), facts("deberta-v2", 100_000_000)
    assert planned(eager, T4).memory.activations > planned(fused, T4).memory.activations


# --- references


def test_a_reference_needs_an_instance_type_and_gets_azures_caps() -> None:
    with pytest.raises(SpecError, match="not opened") as caught:
        plan("text-generation", "azureml:bert:3")
    assert "--instance-type" in caught.value.hint
    made = plan("text-generation", "azureml:bert:3", T4)
    assert (made.profile.source, made.profile.kind, made.context_length) == ("reference", "decoder", 0)
    assert made.request_timeout_ms == limits.MAX_REQUEST_TIMEOUT_MS
    assert made.liveness.initial_delay > 120


# --- time and quota


@given(st.integers(0, 10**12), st.sampled_from(["cpu", "cuda"]))
def test_probes_allow_three_times_the_predicted_start(weight_bytes: int, device: str) -> None:
    begun = latency.start(weight_bytes, device)
    assert begun.seconds >= weight_bytes / limits.LOAD_BYTES_PER_S
    for probe in (begun.liveness, begun.readiness):
        assert probe.initial_delay + probe.failure_threshold * probe.period >= 3 * begun.seconds
        assert probe.timeout < probe.period
    assert begun.liveness.initial_delay >= begun.seconds > begun.readiness.initial_delay


@pytest.mark.parametrize(
    ("instance_type", "instances", "cores"),
    [(T4, 1, 8), (T4, 2, 12), (T4, 3, 16), (T4, 5, 24), (T4, 50, 240), (A100, 1, 24), (A100, 2, 48), (CPU, 10, 96)],
)
def test_quota_is_azures_rule(instance_type: str, instances: int, cores: int) -> None:
    made = planned(facts("bert", 100_000_000), instance_type, instance_count=instances)
    assert made.quota_cores == cores
    assert made.quota_family == find_sku(instance_type).quota_family


def test_slower_hardware_gets_more_time() -> None:
    times = [planned(facts("bert", 390_000_000), sku).request_timeout_ms for sku in ("Standard_F4s_v2", CPU, T4)]
    assert times == sorted(times, reverse=True) and times[0] > times[-1]


# --- what else is refused on the way


def test_an_architecture_that_cannot_do_the_task(tiny: Tiny) -> None:
    with pytest.raises(TaskUnsupported, match="BertForMaskedLM") as caught:
        plan("question-answering", str(tiny("bert", "fill-mask")))
    assert "fill-mask" in caught.value.hint


def test_gpus_that_idle_are_told_with_what_would_use_them() -> None:
    made = make_plan(_spec("Standard_ND96isr_H100_v5"), facts(), {})
    told = next(each for each in made.decisions if each.what == "idle GPUs")
    assert told.value == "7 of 8"
    assert "Standard_NC4as_T4_v3 holds it on 1" in told.reason
    assert "--replicas 8" in told.reason
    assert not any(each.what == "idle GPUs" for each in make_plan(_spec(A100), facts(), {}).decisions)


def test_a_single_instance_is_told_what_production_asks_for() -> None:
    told = {count: make_plan(_spec(A100, count), facts(), {}).decisions for count in (1, 3)}
    reasons = {n: next(each for each in made if each.what == "instances").reason for n, made in told.items()}
    assert "advises 3 or more" in reasons[1]
    assert reasons[3] == "Asked for."


def _spec(instance_type: str, count: int = 1) -> Spec:
    fields = {"task": "text-generation", "model": "m", "name": "abc", "instance_type": instance_type}
    return Spec(**fields, instance_count=count)


@pytest.mark.parametrize(
    ("kind", "cores", "told"),
    [
        ({"kind": "managed"}, 16, "reserves 20 %"),
        ({"kind": "batch", "compute": "cluster"}, 8, "reserves none"),
        ({"kind": "kaito", "image": "mine.azurecr.io/models/m"}, 8, "KAITO makes"),
        ({"kind": "kubernetes", "compute": "cluster"}, 0, "your own cluster"),
    ],
)
def test_quota_is_that_of_whose_machines_the_kind_takes(kind, cores, told):
    made = planned(facts("bert", 100_000_000, "float32"), "Standard_D8as_v4", **kind)
    assert made.quota_cores == cores
    assert told in next(each.reason for each in made.decisions if each.what == "quota")
