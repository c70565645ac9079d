"""Expected times against every committed measurement: the errors that a ranking states, and the bars that they keep."""

import json
from statistics import median
from typing import Any

import pytest

from local_runner.front_ends.number import usual
from mii_azure.hardware import roofline
from mii_azure.hardware.skus import find_sku
from mii_azure.hardware.speed import Effort, speeds
from mii_azure.model.experts import experts_of
from mii_azure.model.families import family_named, find_family
from mii_azure.model.profile import Profile
from mii_azure.planning import expected, latency, memory
from mii_azure.planning.budget import Work
from mii_azure.planning.demand import Demand, demand_of
from mii_azure.platform.servers import Server
from mii_azure.spec import Spec, make_spec
from tests.mii_azure.planning.test_planner import facts
from tools.fit_speed import error, fit, speed_of
from tools.measured_speed import CARDS, OTHER_RESULTS, RESULTS, Measured, Part, measured

H100 = "Standard_ND96isr_H100_v5"


def test_expected_times_meet_the_measured_ones() -> None:
    rows = measured()
    errors = [abs(error(speeds()[row.runner], row, speeds())) for row in rows]
    assert len(rows) > 50
    assert median(errors) <= 0.15
    assert max(errors) <= 0.40


def test_the_constants_are_those_of_the_committed_rows() -> None:
    """`python -m tools.fit_speed` was run after the last measurement."""
    assert fit(measured()) == speeds()


def test_every_committed_result_is_fitted_to_or_named() -> None:
    """Files whose rows are read; a new one is read too, or told in OTHER_RESULTS with the reason."""
    read = {"diffusion", "encoders", "cpu", "cpu-vnni", "cpu_decoders", "cpu_decoders-zen3", "long_prompts", "slices"}
    read |= {"int4", "over_http"}
    named = {path.stem for path in RESULTS.glob("*.json") if not path.stem.startswith("decoders")}
    assert not read & set(OTHER_RESULTS)
    assert named - read - set(OTHER_RESULTS) == set()
    assert (read | set(OTHER_RESULTS)) <= named


def test_no_runner_is_taken_to_read_or_compute_faster_than_the_data_sheet() -> None:
    for name, speed in speeds().items():
        assert max(speed.read or 0.0, speed.compute or 0.0) <= 1.0, name
        assert speed.read or "decode" not in name, name


def test_rows_are_expected_by_the_others() -> None:
    """Each row by constants that it was not fitted to, where a runner has rows to spare beside its three constants."""
    errors = {}
    for runner in speeds():
        rows = [row for row in measured() if row.runner == runner and row.fitted]
        for left in rows if len(rows) > 4 else ():
            rest = [row for row in rows if row is not left]
            errors[runner, left.name, left.card.name] = abs(error(speed_of(rest, speeds()), left, speeds()))
    assert len(errors) > 30
    assert median(errors.values()) <= 0.15
    # One run of 256 clients over HTTP differs from the next by a third, and one card has one row of 16 sequences.
    assert max(errors.values()) <= 0.45, errors


def test_a_promise_of_twice_the_speed_weighs_no_less_than_one_of_half() -> None:
    """Two times of one work: what is expected lies between them by ratio."""
    card = CARDS["NVIDIA H200"]
    rows = [Measured("fused prompt", "", Effort(0.0, 1e12, 1), card, seconds) for seconds in (1.0, 4.0)]
    assert speed_of(rows, {}).seconds(rows[0].effort, card.bandwidth, card.peak) == pytest.approx(2.0, rel=1e-3)


def test_what_others_did_in_a_row_is_taken_off_before() -> None:
    card = CARDS["NVIDIA H200"]
    known = speeds()
    part = Part("fused prompt", Effort(0.0, 1e14, 1), 3)
    took = 3 * known["fused prompt"].seconds(part.effort, card.bandwidth, card.peak)
    row = Measured("token, front ends", "", Effort(0.0, 0.0, 100), card, took + 5.0, parts=(part,))
    made = speed_of([row], known)
    assert made.layer_s == pytest.approx(0.05)
    assert made.worst_error < 1e-6


SHAPES = {
    "llama-1.1b": ("llama", 1_100_048_384, {"layers": 22, "kv_heads": 4}),
    "llama-3.2-3b": ("llama", 3_212_749_824, {"layers": 28, "kv_heads": 8, "hidden_size": 3072, "vocab_size": 128256}),
    "qwen3-0.6b": ("qwen3", 596_049_920, {"layers": 28, "kv_heads": 8, "hidden_size": 1024, "vocab_size": 151936}),
    "opt-1.3b": ("opt", 1_315_758_080, {"layers": 24, "kv_heads": 32, "vocab_size": 50272}),
}


@pytest.mark.parametrize("model", ("llama-1.1b", "opt-1.3b"))
def test_256_requests_take_as_long_as_was_measured(model: str) -> None:
    """Prompts and steps together, by the way a ranking counts; a throughput that no row was fitted to."""
    told = json.loads((RESULTS / "throughput.json").read_text(encoding="utf-8"))
    row = next(each for each in told["rows"] if each["model"] == model)
    family, parameters, sizes = SHAPES[model]
    profile = facts(family, parameters, kv_bytes_per_token=4 * sizes["layers"] * sizes["kv_heads"] * 64, **sizes)
    work = Work(profile, family_named(family, "decoder"), "text-generation", Demand())
    placed = memory.fit(work, find_sku(H100))
    rows, new = row["requests"], told["load"]["new"]
    prompt = row["prompt tokens"] // rows
    kept = profile.kv_bytes_per_token * rows * (prompt + new // 2)
    seconds = expected.prompt_seconds(work, placed, rows * prompt, prompt)
    seconds += new * expected.step_seconds(work, placed, kept, rows)
    assert rows * new / seconds == pytest.approx(row["tokens/s"], rel=0.4)
    assert expected.basis(work, placed, rows) == "measured"


OVER_HTTP = json.loads((RESULTS / "over_http.json").read_text(encoding="utf-8"))
BY_HTTP = [(name, row) for name, told in OVER_HTTP["models"].items() for row in told["rows"]]


def ranked(model: str, row: dict[str, Any]) -> float:
    """Tokens a second that a ranking tells for a measured row, on a card that is described as `--gpus ...` does."""
    family, parameters, sizes = SHAPES[model]
    head = 64 if model in ("llama-1.1b", "opt-1.3b") else 128
    profile = facts(family, parameters, kv_bytes_per_token=4 * sizes["layers"] * sizes["kv_heads"] * head, **sizes)
    shortest, longest, new = OVER_HTTP["load"]
    server: Server = "http" if row["front ends"] or row["way"] != "whole" else "azmlinfsrv"
    demand = Demand(prompt=(shortest + longest) // 2, new=new, server=server)
    work = Work(profile, family_named(family, "decoder"), "text-generation", demand)
    sku = find_sku(H100)
    assert sku.gpu is not None
    gpu = sku.gpu.model_copy(update={"name": "NVIDIA H200", "bandwidth_gb_s": 4800})
    cores = next(count for count in (4, 16, 32) if usual("text-generation", count, True) == row["front ends"])
    made = expected.outlook(
        work, memory.fit(work, sku.model_copy(update={"gpu": gpu, "cores": cores})), 1, row["clients"]
    )
    assert (made.batch, made.basis) == (row["clients"], "measured")
    return made.per_second


def test_requests_over_http_take_as_long_as_was_measured() -> None:
    """Engine, then server: with front ends and in one process, whole and streamed; one client's tokens are drafted."""
    errors = {
        (name, row["front ends"], row["way"], row["clients"]): row["tokens/s"] / ranked(name, row) - 1
        for name, row in BY_HTTP
        if row["clients"] > 1
    }
    assert len(errors) == 11
    assert median(map(abs, errors.values())) <= 0.15, errors
    assert max(map(abs, errors.values())) <= 0.40, errors


def test_azures_server_is_promised_no_more_than_one_process_hands_on() -> None:
    """The default of a spec: a small model on a large card is not ranked by front ends that it has not."""
    plain = make_spec(task="text-generation", model="m", name="abc")
    profile = facts("llama", 500_000_000)
    ours = plain.model_copy(update={"server": "http"})

    def served(spec: Spec) -> float:
        work = Work(profile, family_named("llama", "decoder"), spec.task, demand_of(spec, profile))
        return expected.outlook(work, memory.fit(work, find_sku(H100)), 1, 256).per_second

    whole, front = (speeds()[name].layer_s for name in ("whole token, one process", "token, front ends"))
    assert 1 / served(plain) - 1 / served(ours) == pytest.approx(whole - front, rel=0.01)
    assert served(plain) < 1 / whole


def test_a_token_reads_the_experts_that_it_goes_through() -> None:
    config = {"num_experts": 64, "num_experts_per_tok": 8, "moe_intermediate_size": 1024, "model_type": "olmoe"}
    experts = experts_of(config, find_family(config), 16, 2048, 6_900_000_000)
    assert experts == (16 * 64 * 3 * 2048 * 1024, 0.125)
    assert experts_of({"intermediate_size": 4096}, find_family(config), 16, 2048, 10**9) == (0, 1.0)
    dense = facts("llama", 6_900_000_000)
    sparse = dense.model_copy(update={"expert_parameters": experts.parameters, "expert_share": experts.share})

    def step(profile: Profile, rows: int) -> float:
        work = Work(profile, family_named("llama", "decoder"), "text-generation", Demand())
        return expected.step_seconds(work, memory.fit(work, find_sku(H100)), 0, rows)

    assert step(sparse, 1) < 0.4 * step(dense, 1)
    assert roofline.touched(6_900_000_000, *experts, rows=256) == pytest.approx(6_900_000_000)


def test_quantised_numbers_are_expected_by_their_own_rows() -> None:
    def basis(rows: int, **shipped: str) -> str:
        work = Work(facts("llama", **shipped), family_named("llama", "decoder"), "text-generation", Demand())
        return expected.basis(work, memory.fit(work, find_sku(H100)), rows)

    assert basis(1) == basis(64) == "measured"
    assert basis(1, shipped="int8") == "measured"
    assert basis(1, shipped="int4") == "scaled"  # of an H200
    assert basis(64, shipped="int4") == basis(1, shipped="fp8") == "assumed"


def test_a_basis_is_told_by_the_card_and_by_what_runs() -> None:
    def basis(family: str, sku: str, task: str = "text-generation") -> str:
        profile = facts(family, layers=12)
        work = Work(profile, family_named(family, profile.kind), task, Demand())
        return expected.basis(work, memory.fit(work, find_sku(sku)), 1)

    assert basis("llama", H100) == "measured"
    assert basis("llama", "Standard_NC24ads_A100_v4") == "scaled"
    assert basis("llama", "Standard_NC4as_T4_v3") == "assumed"  # plain generate
    assert basis("bert", "Standard_F8s_v2", "text-classification") == "scaled"


def test_a_first_token_takes_no_less_than_a_later_one() -> None:
    """However short the prompt: its forward goes through all layers, and reads all weights."""
    for parameters in (54_000, 1_000_000_000):
        work = Work(facts("llama", parameters), family_named("llama", "decoder"), "text-generation", Demand())
        placed = memory.fit(work, find_sku(H100))
        assert expected.prompt_seconds(work, placed, 1, 1) >= expected.step_seconds(work, placed, 0, 1)


def test_a_share_of_a_gpu_has_a_share_of_its_speed() -> None:
    work = Work(facts("llama", 500_000_000), family_named("llama", "decoder"), "text-generation", Demand())
    whole, sixth = (memory.fit(work, find_sku(f"Standard_NV{cores}ads_A10_v5")) for cores in (36, 6))
    assert latency.ceilings(sixth) == pytest.approx([each / 6 for each in latency.ceilings(whole)], rel=0.01)


@pytest.mark.parametrize(
    ("family", "kind", "vnni", "avx2", "wide"),
    [
        ("bert", "encoder", "cpu encoder, int8", "cpu encoder", "cpu encoder"),
        ("llama", "decoder", "cpu decode, few rows, int8", "cpu AVX2 decode, few rows, int8", ""),
    ],
)
def test_a_cpu_is_expected_by_rows_of_the_sets_that_all_its_processors_have(
    family: str, kind: str, vnni: str, avx2: str, wide: str
) -> None:
    """In eight bits with VNNI, a decoder with AVX2 alone too, and neither where a spec turns the pass off."""
    task = "text-generation" if kind == "decoder" else "fill-mask"
    kept = 46_080 if kind == "decoder" else 0
    profile = facts(family, 135_000_000, "float32", layers=12, hidden_size=768, kv_bytes_per_token=kept)
    pass_name = "weight_only" if kind == "decoder" else "cpu"
    found = {}
    for size in ("Standard_L8s_v3", "Standard_D8as_v4"):
        for off in ((), (pass_name,)):
            spec = make_spec(task=task, model="m", name="abc", passes_off=off)
            work = Work(profile, family_named(family, kind), task, demand_of(spec, profile))
            placed = memory.fit(work, find_sku(size), "float32")
            found[size, off] = expected.runner(work, placed, 1), expected.outlook(work, placed, 1, 8).per_second
    assert {key: name for key, (name, _) in found.items()} == {
        ("Standard_L8s_v3", ()): vnni,
        ("Standard_L8s_v3", (pass_name,)): wide,
        ("Standard_D8as_v4", ()): avx2,
        ("Standard_D8as_v4", (pass_name,)): wide,
    }
    for size, name, gain in (("Standard_L8s_v3", vnni, 1.5), ("Standard_D8as_v4", avx2, 1.2)):
        if name != wide:
            assert found[size, ()][1] > gain * found[size, (pass_name,)][1]


@pytest.mark.parametrize(("family", "name"), [("bert", "cpu encoder, int8"), ("albert", "cpu encoder")])
def test_only_encoders_of_the_cpus_own_stack_are_expected_by_its_rows_in_eight_bits(family: str, name: str) -> None:
    """A GPU's fused kernels cover more families."""
    profile = facts(family, 135_000_000, "float32", layers=12, hidden_size=768, kv_bytes_per_token=0)
    spec = make_spec(task="fill-mask", model="m", name="abc")
    work = Work(profile, family_named(family, "encoder"), spec.task, demand_of(spec, profile))
    assert expected.runner(work, memory.fit(work, find_sku("Standard_L8s_v3"), "float32"), 1) == name
