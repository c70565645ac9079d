"""Plans over a paged cache: what is asked and cannot be, then pool, context, concurrency, and what follows of them."""

import re

import pytest

from mii_azure.bundle.render import deployment_settings
from mii_azure.errors import DoesNotFit, NotAvailable, SpecError
from mii_azure.model.profile import Profile
from mii_azure.planning.plan import Plan
from mii_azure.planning.planner import make_plan, plan
from mii_azure.planning.ranking import rank_profile
from mii_azure.platform import limits
from mii_azure.spec import make_spec
from tests.mii_azure.planning.test_planner import A10, A100, CPU, T4, facts, judge

H100 = "Standard_NC40ads_H100_v5"
ROPE = 131_072


def llama(**changes: object) -> Profile:
    """Facts of Llama-3.2-3B."""
    shape = {
        "architecture": "LlamaForCausalLM",
        "layers": 28,
        "hidden_size": 3072,
        "heads": 24,
        "kv_heads": 8,
        "head_dim": 128,
        "vocab_size": 128_256,
        "context_length": ROPE,
        "kv_bytes_per_token": 2 * 28 * 8 * 128 * 2,
    }
    return facts("llama", 3_212_749_824, "bfloat16", **shape).model_copy(update=changes)


def planned(profile: Profile, instance_type: str | None = H100, task: str = "text-generation", **asked: object) -> Plan:
    made = make_plan(make_spec(task=task, model="m", name="abc", instance_type=instance_type, **asked), profile, {})
    judge(made)
    return made


def told(made: Plan, what: str) -> str:
    found = next(decision for decision in made.decisions if decision.what == what)
    return f"{found.value}: {found.reason}"


# --- what cannot be


@pytest.mark.parametrize("field", ["context_length", "max_concurrency", "memory_share", "expected_prompt_tokens"])
@pytest.mark.parametrize("value", [0, -1, "many", float("nan"), float("inf"), 0.05, 0.99, [], {}])
def test_values_that_are_none_of_the_field_are_refused_by_its_name(field: str, value: object) -> None:
    with pytest.raises(SpecError, match=field) as caught:
        make_spec(task="text-generation", model="m", name="abc", **{field: value})
    assert caught.value.hint


@pytest.mark.parametrize(("field", "value"), [("context_length", 31), ("max_concurrency", 257)])
def test_numbers_beyond_what_is_served_are_refused(field: str, value: int) -> None:
    with pytest.raises(SpecError, match=field):
        make_spec(task="text-generation", model="m", name="abc", **{field: value})


@pytest.mark.parametrize("instance_type", [None, CPU, T4, H100])
def test_more_context_than_the_models_own_is_refused_with_the_sizes(instance_type: str | None) -> None:
    with pytest.raises(NotAvailable, match="200,000 tokens is longer than the 131,072") as caught:
        planned(llama(), instance_type, context_length=200_000)
    assert "131,072 at most" in caught.value.hint
    with pytest.raises(NotAvailable, match="513 tokens is longer than the 512"):
        planned(facts("bert", 10**8, context_length=512), instance_type, "text-classification", context_length=513)


@pytest.mark.parametrize("instance_type", [A10, CPU, T4])
def test_more_context_than_memory_holds_is_refused_with_what_holds_it(instance_type: str) -> None:
    large = llama(context_length=10**7)
    with pytest.raises(DoesNotFit, match=f"{instance_type}: with 500,000 tokens of context it needs") as caught:
        planned(large, instance_type, context_length=500_000)
    assert "It holds a context of" in caught.value.hint
    other = re.search(r"holds it: (Standard_\w+)", caught.value.hint)
    assert other
    assert planned(large, other[1], context_length=500_000).context_length == 500_000
    with pytest.raises(DoesNotFit, match=r"No Azure ML instance type holds m .* with 10,000,000 tokens of context"):
        planned(large, None, context_length=10**7)


def test_the_context_that_a_refusal_names_is_one_that_fits() -> None:
    with pytest.raises(DoesNotFit) as caught:
        planned(llama(), A10, context_length=ROPE)
    named = int(caught.value.hint.split(" tokens")[0].split()[-1].replace(",", ""))
    assert planned(llama(), A10, context_length=named).context_length == named


@pytest.mark.parametrize(
    ("task", "asked", "says"),
    [
        ("fill-mask", {"memory_share": 0.5}, "nly text-generation and conversational have a KV cache"),
        ("translation", {"expected_new_tokens": 9}, "nly text-generation and conversational have a KV cache"),
        ("text-to-image", {"expected_prompt_tokens": 9}, "nly text-generation and conversational have a KV cache"),
        ("text-to-image", {"context_length": 77}, "leave out context_length"),
    ],
)
def test_what_a_task_does_not_have_is_refused(task: str, asked: dict[str, object], says: str) -> None:
    with pytest.raises(SpecError, match=says):
        make_spec(task=task, model="m", name="abc", **asked)


@pytest.mark.parametrize(
    ("profile", "instance_type", "more"),
    [
        (llama(), CPU, {}),
        (llama(), T4, {}),
        (llama().model_copy(update={"family": "rwkv"}), H100, {}),
        (llama(), H100, {"passes_off": ("static_decode",)}),
    ],
    ids=["cpu", "old-gpu", "family", "pass-off"],
)
def test_a_share_of_memory_is_refused_where_batches_run(
    profile: Profile, instance_type: str, more: dict[str, object]
) -> None:
    asked = {"context_length": 2048, **more}
    assert planned(profile, instance_type, **asked).kv_cache_tokens == 0
    with pytest.raises(NotAvailable, match=f"runs in batches on {instance_type}"):
        planned(profile, instance_type, memory_share=0.5, **asked)


def test_a_share_that_does_not_hold_the_weights_is_refused() -> None:
    with pytest.raises(DoesNotFit, match=r"each NVIDIA H100 NVL 94 GB has 9\.4 GB free"):
        planned(llama(parameters=6 * 10**9), memory_share=0.1)


def test_an_expected_request_longer_than_the_context_contradicts_it() -> None:
    with pytest.raises(SpecError, match="900 prompt tokens and 256 new ones is longer than the context of 1,024"):
        planned(llama(), context_length=1024, expected_prompt_tokens=900)
    with pytest.raises(SpecError, match=r"longer than the context of 131,072"):
        planned(llama(), expected_new_tokens=10**30)
    assert planned(llama(), context_length=512).max_concurrent_requests == 256  # the default gives way


def test_the_context_of_a_model_that_is_not_opened_is_not_known() -> None:
    with pytest.raises(NotAvailable, match="is not opened") as caught:
        plan("text-generation", "azureml:llama:3", T4, context_length=4096)
    assert "hub id" in caught.value.hint
    assert plan("text-generation", "azureml:llama:3", T4, max_concurrency=3).max_concurrent_requests == 3


# --- what is planned


def test_a_long_context_costs_no_concurrency() -> None:
    made = planned(llama())
    assert made.context_length == ROPE
    assert made.max_concurrent_requests == made.slots == 256
    assert made.memory.kv_cache == made.kv_cache_tokens * made.profile.kv_bytes_per_token
    assert made.kv_cache_tokens >= max(ROPE, 200 * 768)
    assert made.queue_size >= made.max_concurrent_requests
    assert f"{made.kv_cache_tokens} tokens, {made.memory.kv_cache / limits.GB:.1f} GB" in told(made, "KV cache")
    assert "512 prompt tokens and 256 new ones" in told(made, "expected request")
    assert "prompt of 131072 tokens" in told(made, "request timeout")


def test_what_longer_requests_leave_is_told() -> None:
    made = planned(llama())
    assert [tokens for tokens, _ in made.at_once] == [2048, 8192, 32_768, ROPE]
    for tokens, requests in made.at_once:
        assert requests == min(256, made.kv_cache_tokens // tokens)
    assert planned(llama(), context_length=5000).at_once[-1][0] == 5000
    assert planned(llama(), max_concurrency=3).at_once == ((2048, 3), (8192, 3), (32_768, 3), (ROPE, 3))


def test_expected_requests_decide_how_many_are_served() -> None:
    made = planned(llama(), expected_prompt_tokens=30_000, expected_new_tokens=2768)
    assert made.max_concurrent_requests == made.kv_cache_tokens // 32_768 < 256
    assert made.kv_cache_tokens == planned(llama()).kv_cache_tokens
    assert planned(llama(), expected_prompt_tokens=ROPE - 256).max_concurrent_requests >= 1


def test_a_most_is_a_most() -> None:
    assert planned(llama(), max_concurrency=7).max_concurrent_requests == 7
    made = planned(llama(), max_concurrency=200, expected_prompt_tokens=60_000)
    assert made.max_concurrent_requests < 200
    assert "at most 200" in told(made, "concurrency")


def test_memory_cuts_a_context_that_nobody_asked_for_and_says_so() -> None:
    made = planned(llama(), A10)
    assert limits.MIN_CONTEXT < made.context_length == made.kv_cache_tokens < ROPE
    assert "Memory does not hold one sequence of the model's 131072 tokens" in told(made, "context length")


@pytest.mark.parametrize("context", [32, 5000, 5119, 5120, 5121])
def test_a_pool_holds_a_sequence_of_the_context_in_whole_pages(context: int) -> None:
    made = planned(llama(), A10, context_length=context)
    assert made.context_length == context <= made.kv_cache_tokens
    assert made.kv_cache_tokens % limits.CACHE_GRAIN == 0


def test_a_share_of_memory_is_the_share_of_the_card() -> None:
    small, large = planned(llama(), memory_share=0.3), planned(llama(), memory_share=0.95)
    for made, share in ((small, 0.3), (large, 0.95)):
        assert made.memory.available == int(94 * limits.GB * share)
        assert 0.99 * made.memory.available < made.memory.needed <= made.memory.available
    assert small.kv_cache_tokens < large.kv_cache_tokens


def test_slices_hold_a_larger_pool() -> None:
    one, two = planned(llama()), planned(llama(), "Standard_NC80adis_H100_v5", tensor_parallel=2)
    assert two.kv_cache_tokens > 2 * one.kv_cache_tokens


def test_a_context_that_is_asked_for_chooses_the_instance_type() -> None:
    assert planned(llama(), None).instance_type == T4
    assert planned(llama(), None, context_length=ROPE).instance_type == A100


def test_batches_take_the_context_and_the_most_that_are_asked_for() -> None:
    made = planned(llama(), CPU.replace("F8", "E16").replace("s_v2", "s_v3"), context_length=4096, max_concurrency=16)
    assert (made.context_length, made.max_batch_size, made.max_concurrent_requests) == (4096, 16, 16)
    assert made.memory.kv_cache >= 16 * 768 * 2 * made.profile.kv_bytes_per_token  # float32
    encoder = planned(
        facts("bert", 10**8, context_length=512), CPU, "text-classification", context_length=128, max_concurrency=3
    )
    assert (encoder.context_length, encoder.max_batch_size, encoder.max_concurrent_requests) == (128, 3, 3)
    assert (encoder.kv_cache_tokens, encoder.slots, encoder.at_once) == (0, 0, ())


def test_more_at_once_than_memory_holds_is_refused_on_a_cpu() -> None:
    with pytest.raises(DoesNotFit, match="with 256 requests at once it needs"):
        planned(llama(context_length=16_384), "Standard_E4s_v3", max_concurrency=256)


def test_a_timeout_follows_from_the_queue_and_a_long_prompt() -> None:
    short, long = planned(llama(), context_length=1024, max_concurrency=8), planned(llama(), max_concurrency=8)
    assert short.request_timeout_ms <= long.request_timeout_ms
    busy = planned(llama(), max_concurrency=256, expected_new_tokens=2000)
    assert busy.request_timeout_ms > planned(llama(), max_concurrency=256).request_timeout_ms


def test_the_scoring_script_is_told_all_of_it() -> None:
    spec = make_spec(task="text-generation", model="m", name="abc", instance_type=H100, memory_share=0.5)
    made = make_plan(spec, llama(), {})
    written = deployment_settings(spec, made, "m")["limits"]
    assert written["speculation"] == "auto"
    assert written["kv_cache_tokens"] == made.kv_cache_tokens > 0
    assert (written["slots"], written["memory_share"], written["context_length"]) == (made.slots, 0.5, ROPE)


@pytest.mark.parametrize(
    ("asked", "value", "reason"),
    [
        ({}, "off", "read int8 weights"),
        ({"passes_off": ("weight_only",)}, "n-grams", "what it would have picked"),
        ({"speculation": "ngram"}, "n-grams", "As asked for."),
        ({"speculation": "off"}, "off", "As asked for."),
        (
            {"tensor_parallel": 2, "instance_type": "Standard_NC80adis_H100_v5", "speculation": "ngram"},
            "off",
            "over several GPUs",
        ),
    ],
)
def test_a_plan_tells_whether_steps_are_drafted(asked: dict[str, object], value: str, reason: str) -> None:
    found = told(planned(llama(), **{"instance_type": H100, **asked}), "speculation")
    assert found.startswith(f"{value}: ")
    assert reason in found


def test_ranking_asks_the_same_of_every_instance_type() -> None:
    spec = make_spec(task="text-generation", model="m", name="abc", context_length=ROPE, max_concurrency=4)
    rows = {row.instance_type: row for row in rank_profile(spec, llama()).rows}
    assert not rows[A10].fits
    assert "131,072 tokens of context" in rows[A10].why
    assert rows[H100].batch == 4


# --- batch invariance


def test_batch_invariance_is_told_and_reaches_the_scoring_script() -> None:
    spec = make_spec(task="text-generation", model="m", name="abc", instance_type=H100, batch_invariant=True)
    made = make_plan(spec, llama(), {})
    assert told(made, "batch invariance").startswith("sums of one order: Asked for; rows share steps")
    assert "On an H200 many streams of a 1.1B" in told(made, "batch invariance")
    on_cpu = planned(llama(), "Standard_F16s_v2", batch_invariant=True)
    assert told(on_cpu, "batch invariance").endswith("drafted.")
    assert made.kv_cache_tokens == planned(llama()).kv_cache_tokens
    assert deployment_settings(spec, made, "m")["limits"]["batch_invariant"] is True
    plain = spec.model_copy(update={"batch_invariant": False})
    assert "batch_invariant" not in deployment_settings(plain, made, "m")["limits"]


def test_what_has_no_sums_of_one_order_runs_one_row_at_a_time() -> None:
    made = planned(llama(family="olmoe", architecture="OlmoeForCausalLM"), batch_invariant=True)
    assert told(made, "batch invariance").startswith("one row at a time")
    assert made.kv_cache_tokens == 0


def test_batch_invariance_over_several_gpus_is_refused_with_what_would_do() -> None:
    with pytest.raises(NotAvailable, match="added up in an order that depends on the batch") as caught:
        planned(llama(), "Standard_NC80adis_H100_v5", batch_invariant=True, tensor_parallel=2)
    assert "Leave out batch_invariant" in caught.value.hint


@pytest.mark.parametrize("asked", [{"speculation": "ngram"}, {"draft_model": "d"}])
def test_nothing_is_drafted_beside_batch_invariance(asked: dict[str, str]) -> None:
    with pytest.raises(SpecError, match="ith batch_invariant nothing is drafted"):
        make_spec(task="text-generation", model="m", name="abc", batch_invariant=True, **asked)


# --- a cache in FP8


def test_a_cache_in_fp8_holds_twice_the_tokens() -> None:
    spec = make_spec(task="text-generation", model="m", name="abc", instance_type=H100, kv_cache_dtype="fp8")
    made, wide = make_plan(spec, llama(), {}), planned(llama())
    assert made.kv_cache_tokens == pytest.approx(2 * wide.kv_cache_tokens, rel=0.01)
    assert made.memory.kv_cache == pytest.approx(wide.memory.kv_cache, rel=0.01)
    assert re.search(r"tokens in FP8, .* a byte a number", told(made, "KV cache"))
    assert deployment_settings(spec, made, "m")["limits"]["kv_cache_dtype"] == "fp8"
    assert (
        "kv_cache_dtype"
        not in deployment_settings(spec.model_copy(update={"kv_cache_dtype": "auto"}), wide, "m")["limits"]
    )


def test_the_instance_type_is_one_that_converts_to_fp8() -> None:
    assert planned(llama(), None).sku.gpu.compute_capability < 8.9
    assert planned(llama(), None, kv_cache_dtype="fp8").sku.gpu.compute_capability >= 8.9


@pytest.mark.parametrize(
    ("instance_type", "asked", "reason"),
    [
        (A10, {}, r"needs compute capability 8\.9; NVIDIA A10 has 8\.6"),
        ("Standard_NC80adis_H100_v5", {"tensor_parallel": 2}, "slices over several GPUs keep no cache in FP8"),
        (H100, {"passes_off": ("static_decode",)}, "switched off"),
    ],
)
def test_a_cache_in_fp8_that_cannot_be_is_refused_with_what_can(
    instance_type: str, asked: dict[str, object], reason: str
) -> None:
    with pytest.raises(NotAvailable, match=f"m cannot keep a KV cache in FP8: .*{reason}") as caught:
        planned(llama(), instance_type, kv_cache_dtype="fp8", **asked)
    assert "Leave out kv_cache_dtype" in caught.value.hint


def test_only_text_generation_has_a_cache_to_keep_in_fp8() -> None:
    with pytest.raises(SpecError, match="leave out memory_share, kv_cache_dtype"):
        make_spec(task="fill-mask", model="m", name="abc", kv_cache_dtype="fp8")
