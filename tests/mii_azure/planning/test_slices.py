"""Models over several GPUs, and models whose weights wait in host memory: planned, written down, or refused."""

import pytest

from mii_azure.bundle.render import _group_variables, deployment_settings
from mii_azure.errors import DoesNotFit, NotAvailable
from mii_azure.model.safetensors import DTYPE_BYTES
from mii_azure.planning.planner import make_plan, plan
from mii_azure.platform import limits
from mii_azure.spec import make_spec
from scoring.config import Optimisation, PassDecision
from scoring.errors import PassNotServed

OPT_66B, TWO_H100, ONE_H100 = "facebook/opt-66b", "Standard_NC80adis_H100_v5", "Standard_NC40ads_H100_v5"
TASK = "text-generation"


def _pass(made, name):
    return next(each for each in made.decisions if each.what == f"pass {name}")


def test_a_model_that_needs_two_gpus_is_sliced_and_its_bundle_says_so():
    made = plan(TASK, OPT_66B)
    assert (made.instance_type, made.tensor_parallel, made.fits) == (TWO_H100, 2, True)
    assert _pass(made, "tensor_slicing").value == "yes"
    assert _pass(made, "static_decode").value == "yes"
    assert "on each of 2 GPUs" in _pass(made, "static_decode").reason
    assert "GiB together on each of 2 GPUs" in _pass(made, "weight_only").reason
    written = deployment_settings(make_spec(task=TASK, model=OPT_66B, name="opt"), made, OPT_66B)["optimisation"]
    assert written["tensor_parallel"] == 2
    assert {each["name"]: each["forecast"] for each in written["planned"]}["tensor_slicing"] is False
    assert Optimisation(planned=tuple(PassDecision(**each) for each in written["planned"])).planned == made.passes
    assert _group_variables(made) == {"NCCL_SHM_DISABLE": "1"}
    assert _group_variables(made.model_copy(update={"tensor_parallel": 0})) == {}
    assert written["on"] == ["tensor_slicing"]  # a server with one GPU must say so, not run out of memory


def test_a_degree_that_is_asked_for_is_taken_where_the_model_would_fit_one_gpu():
    made = plan(TASK, "facebook/opt-1.3b", TWO_H100, tensor_parallel=2)
    assert made.tensor_parallel == 2
    tables = 2 * 2 * made.profile.vocab_size * made.profile.hidden_size  # bytes of embedding and head, whole on each
    assert made.memory.weights == pytest.approx(tables + (2 * made.profile.parameters - tables) / 2, rel=0.001)


def test_a_cache_over_slices_takes_a_share_of_its_memory_on_each_gpu():
    one, two = (plan(TASK, "facebook/opt-1.3b", TWO_H100, tensor_parallel=degree) for degree in (0, 2))
    profile = one.profile
    each = profile.kv_bytes_per_token * 2 // DTYPE_BYTES[profile.dtype]
    assert one.memory.kv_cache == one.kv_cache_tokens * each
    assert two.kv_cache_tokens > 1.9 * one.kv_cache_tokens
    assert two.memory.kv_cache == two.kv_cache_tokens * each // 2
    assert "on each of 2 GPUs" in next(each for each in two.decisions if each.what == "KV cache").value
    assert _pass(two, "static_decode").value == "yes"


def test_slices_of_the_generic_tier_have_slots():
    facts = plan(TASK, OPT_66B).profile.model_copy(update={"family": "qwen2_moe"})
    made = make_plan(make_spec(task=TASK, model="x", name="big"), facts, {})
    assert made.tensor_parallel == 2
    assert made.slots > 0
    assert "generic tier" in _pass(made, "static_decode").reason.lower()


@pytest.mark.parametrize(("degree", "instance_type"), [(3, None), (2, ONE_H100), (16, TWO_H100)])
def test_a_degree_that_cannot_be_is_refused_with_the_heads(degree, instance_type):
    with pytest.raises(NotAvailable, match="72 heads") as told:
        plan(TASK, OPT_66B, instance_type, tensor_parallel=degree)
    more = ", and an instance type with as many GPUs" if degree == 2 else ""
    assert told.value.hint == f"Choose 2 or 4 or 8{more}."  # 16 do not divide 72


def test_weights_in_host_memory_need_its_room_and_little_of_the_gpu():
    with pytest.raises(DoesNotFit):
        plan(TASK, OPT_66B, ONE_H100)
    made = plan(TASK, OPT_66B, ONE_H100, passes_on=("zero_inference",))
    assert made.fits
    assert made.memory.weights < 0.2 * 2 * made.profile.parameters
    assert _pass(made, "zero_inference").value == "yes"


def test_host_memory_that_is_too_small_is_refused(monkeypatch):
    monkeypatch.setattr(limits, "HOST_BYTES", 300 * limits.GB)
    with pytest.raises(DoesNotFit, match="the RAM has"):
        plan(TASK, OPT_66B, ONE_H100, passes_on=("zero_inference",))


def test_a_family_that_cannot_be_sliced_is_refused_by_name():
    facts = plan(TASK, OPT_66B).profile.model_copy(update={"family": "bloom"})
    made = make_plan(make_spec(task=TASK, model="x", name="big"), facts, {})
    assert not made.fits
    with pytest.raises(DoesNotFit, match="does not slice bloom"):
        made.require_fit()
    with pytest.raises(PassNotServed, match="alibi"):
        make_plan(make_spec(task=TASK, model="x", name="big", passes_on=("tensor_slicing",)), facts, {})


def test_the_plan_says_which_passes_are_forecast_and_which_were_decided():
    made = plan(TASK, "facebook/opt-1.3b", passes_off=("weight_only",))
    assert {each.name: each.forecast for each in made.passes} == {
        "tensor_slicing": True,
        "zero_inference": True,
        "static_decode": True,
        "weight_only": False,
    }
    assert _pass(made, "static_decode").shown == f"{_pass(made, 'static_decode').value} (forecast)"
    assert _pass(made, "weight_only").shown == "no"
    assert [each.what for each in made.decisions if each.forecast] == [
        f"pass {each.name}" for each in made.passes if each.forecast
    ]
