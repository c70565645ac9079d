"""Expected times against every committed measurement: the errors that a ranking states, and the bars that they keep."""

import json
from statistics import median

import pytest

from mii_azure.hardware.skus import find_sku
from mii_azure.hardware.speed import speeds
from mii_azure.model.families import family_named
from mii_azure.planning import expected, latency, memory
from mii_azure.planning.budget import Work
from mii_azure.planning.demand import Demand
from tests.mii_azure.planning.test_planner import facts
from tools.fit_speed import error, speed_of
from tools.measured_speed import RESULTS, measured

H100 = "Standard_ND96isr_H100_v5"


def test_expected_times_meet_the_measured_ones() -> None:
    rows = measured()
    errors = [abs(error(speeds()[row.runner], row)) for row in rows]
    assert len(rows) > 20
    assert median(errors) <= 0.15
    assert max(errors) <= 0.40


def test_the_constants_are_those_of_the_committed_rows() -> None:
    """`python -m tools.fit_speed` was run after the last measurement."""
    rows = measured()
    assert {row.runner for row in rows} == set(speeds())
    for runner, speed in speeds().items():
        fresh = speed_of([row for row in rows if row.runner == runner])
        assert fresh == speed, runner


SHAPES = {
    "llama-1.1b": ("llama", 1_100_048_384, {"layers": 22, "kv_heads": 4}),
    "opt-1.3b": ("opt", 1_315_758_080, {"layers": 24, "kv_heads": 32, "vocab_size": 50272}),
}


@pytest.mark.parametrize("model", SHAPES)
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


def test_a_basis_is_told_by_the_card_and_by_what_runs() -> None:
    def basis(family: str, sku: str, task: str = "text-generation") -> str:
        profile = facts(family, layers=12)
        work = Work(profile, family_named(family, profile.kind), task, Demand())
        return expected.basis(work, memory.fit(work, find_sku(sku)), 1)

    assert basis("llama", H100) == "measured"
    assert basis("llama", "Standard_NC24ads_A100_v4") == "scaled"
    assert basis("llama", "Standard_NC4as_T4_v3") == "assumed"  # plain generate
    assert basis("bert", "Standard_F8s_v2", "text-classification") == "scaled"


def test_a_share_of_a_gpu_has_a_share_of_its_speed() -> None:
    work = Work(facts("llama", 500_000_000), family_named("llama", "decoder"), "text-generation", Demand())
    whole, sixth = (memory.fit(work, find_sku(f"Standard_NV{cores}ads_A10_v5")) for cores in (36, 6))
    assert latency.ceilings(sixth) == pytest.approx([each / 6 for each in latency.ceilings(whole)], rel=0.01)
