"""Every instance type ranked: fits, predictions no faster than the floors, quota and cost at what is stated."""

import json

import pytest
from typer.testing import CliRunner

from mii_azure.cli.app import app
from mii_azure.errors import SpecError
from mii_azure.hardware import roofline
from mii_azure.hardware.prices import Prices
from mii_azure.hardware.skus import all_skus, find_sku
from mii_azure.planning.ranking import Ranking, rank_profile
from mii_azure.platform import limits
from mii_azure.spec import make_spec
from tests.mii_azure.planning.test_planner import facts

T4, A100 = "Standard_NC4as_T4_v3", "Standard_NC24ads_A100_v4"
PRICES = Prices(
    date="2026-11-24", region="westeurope", currency="EUR", prices={T4: 0.5, A100.lower(): 4.0, "Standard_F8s_v2": 0.4}
)


def ranked(prices: Prices | None = None, task: str = "text-generation", **options: object) -> Ranking:
    profile = options.pop("profile", None) or facts()
    count = options.pop("instance_count", 1)
    spec = make_spec(task=task, model="m", name="abc", instance_count=count)
    return rank_profile(spec, profile, prices=prices, **options)


def test_every_instance_type_is_ranked_once_and_those_that_fit_come_first():
    made = ranked()
    assert {row.instance_type for row in made.rows} == set(all_skus())
    fits = [row.fits for row in made.rows]
    assert fits == sorted(fits, reverse=True)
    assert any(fits)
    for row in made.rows:
        assert row.fits == (row.why == "")
        assert row.fits == (row.latency_s is not None)
        if row.fits:
            assert not find_sku(row.instance_type).retired
            assert 0 <= row.headroom < 1


def test_nothing_is_expected_faster_than_its_floor_and_what_is_assumed_is_slower_by_the_stated_efficiency():
    made = ranked()
    profile = facts()
    for row in (row for row in made.rows if row.fits and row.device == "cuda"):
        sku = find_sku(row.instance_type)
        bandwidth = sku.gpu.bandwidth_gb_s * 1e9 * min(sku.gpus, 1)
        floor = made.new_tokens * roofline.decode_floor(profile.weight_bytes, 0, bandwidth)
        if row.basis == "assumed":
            floor /= limits.EFFICIENCY["cuda"]
        assert row.latency_s >= floor
        assert row.throughput <= row.batch * made.new_tokens / floor
    assert {row.basis for row in made.rows if row.fits} == {"measured", "scaled", "assumed"}


def test_cost_is_price_over_what_is_served_in_the_busy_share():
    made = ranked(PRICES, utilisation=0.25)
    row = next(row for row in made.rows if row.instance_type == T4)
    assert row.cost_per_million == pytest.approx(0.5 / (row.throughput * 3600 * 0.25) * 1e6)
    assert (made.currency, made.region, made.prices_of) == ("EUR", "westeurope", "2026-11-24")
    priced = [row.cost_per_million for row in made.rows if row.cost_per_million is not None]
    assert priced == sorted(priced)
    assert made.rows[0].cost_per_million is not None


def test_a_larger_batch_costs_less_and_one_copy_more_changes_neither_cost_nor_latency():
    alone = next(row for row in ranked(PRICES, batch=1).rows if row.instance_type == A100)
    full = next(row for row in ranked(PRICES).rows if row.instance_type == A100)
    assert alone.batch == 1
    assert full.batch > 1
    assert full.cost_per_million < alone.cost_per_million
    twice = next(row for row in ranked(PRICES, instance_count=2).rows if row.instance_type == A100)
    assert twice.cost_per_million == pytest.approx(full.cost_per_million)
    assert twice.latency_s == full.latency_s
    assert twice.price_per_hour == 2 * full.price_per_hour
    assert twice.quota_cores == 2 * full.quota_cores


def test_encoders_are_counted_in_requests():
    made = ranked(PRICES, task="text-classification", profile=facts("bert", 110_000_000))
    assert (made.unit, made.new_tokens) == ("requests", 0)


def test_a_model_that_fits_only_in_slices_is_ranked_where_its_family_can_be_sliced():
    rows = ranked(profile=facts(parameters=60_000_000_000)).rows
    assert any(row.fits for row in rows)
    assert all(row.why for row in rows if not row.fits)
    rows = ranked(profile=facts(parameters=60_000_000_000, family="bloom")).rows
    assert any("bloom cannot be sliced" in row.why for row in rows)


@pytest.mark.parametrize("wrong", [{"utilisation": 0.0}, {"utilisation": 1.5}, {"batch": -1}])
def test_numbers_that_are_none_are_refused(wrong):
    with pytest.raises(SpecError):
        ranked(**wrong)


def test_the_command_ranks_with_prices(tiny, tmp_path):
    path = tmp_path / "prices.csv"
    path.write_text(f"instance_type,price_per_hour,date,region,currency\n{T4},0.5,2026-11-24,westeurope,EUR\n")
    command = ["plan", "--task", "text-generation", "--model", str(tiny("gpt2", "text-generation")), "--rank"]
    done = CliRunner().invoke(app, [*command, "--prices", str(path), "--json"])
    assert done.exit_code == 0, done.output
    made = json.loads(done.stdout)
    assert made["rows"][0]["instance_type"] == T4
    assert made["rows"][0]["cost_per_million"] > 0
    done = CliRunner().invoke(app, [*command, "--prices", str(path)], env={"COLUMNS": "200"})
    assert "in westeurope, EUR" in done.stdout
    assert "Assumed: a share of the speed of the floor" in done.stdout
    assert "2026-11-24" in done.stdout
