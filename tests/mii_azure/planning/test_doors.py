"""`plan --compare`: facts from the data, numbers from the plan, prices from a file."""

import json

import pytest
from typer.testing import CliRunner

from mii_azure.cli.app import app
from mii_azure.hardware.prices import Prices
from mii_azure.planning.doors import compare
from mii_azure.platform import limits
from mii_azure.platform.options import AzureOptions

PRICES = Prices(
    date="2026-11-24",
    region="westeurope",
    currency="USD",
    prices={"Standard_NC4as_T4_v3": 0.5, "Standard_F4s_v2": 0.2},
)


@pytest.fixture(scope="module")
def model(tiny) -> str:
    return str(tiny("llama", "text-generation"))


def test_every_kind_and_the_runner_have_a_row(model):
    made = compare("text-generation", model, instance_type="Standard_NC4as_T4_v3")
    kinds = set(AzureOptions.model_fields["kind"].annotation.__args__)
    assert {door.door for door in made.doors} == kinds | {"runner"}
    assert all(door.source and door.proof and door.identity for door in made.doors)
    by_name = {door.door: door for door in made.doors}
    assert by_name["kubernetes"].request_timeout_s <= limits.KUBERNETES_TIMEOUT_MS / 1000
    assert "180 s" in by_name["managed"].timeout
    assert "150 s" in by_name["kubernetes"].timeout
    assert (by_name["kaito"].streams, by_name["managed"].streams) == ("yes", "with --server http")
    assert by_name["batch"].openai == "no"
    assert made.currency is None
    assert {door.price_per_hour for door in made.doors} == {None}


def test_prices_are_of_all_instances_where_a_door_has_one(model):
    made = compare("text-generation", model, prices=PRICES, instance_count=3, instance_type="Standard_NC4as_T4_v3")
    told = {door.door: door.price_per_hour for door in made.doors}
    assert told == {"managed": 1.5, "template": 1.5, "batch": 1.5, "kaito": 0.5, "kubernetes": None, "runner": None}


def test_a_size_that_kaito_makes_no_node_of_is_remarked(model):
    made = compare("text-generation", model, prices=PRICES, instance_type="Standard_F4s_v2")
    (kaito,) = (door for door in made.doors if door.door == "kaito")
    assert "N and D series" in kaito.remark
    assert kaito.price_per_hour is None


def test_the_verb_prints_a_row_a_door(model, tmp_path):
    file = tmp_path / "prices.json"
    file.write_text(PRICES.model_dump_json())
    given = ["plan", "--task", "text-generation", "--model", model, "--instance-type", "Standard_NC4as_T4_v3"]
    done = CliRunner().invoke(app, [*given, "--compare", "--prices", str(file)])
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].split()[0] == "door"
    assert [line.split()[0] for line in lines[1:7]] == ["managed", "template", "batch", "kubernetes", "kaito", "runner"]
    assert "USD/h" in lines[0]
    told = json.loads(CliRunner().invoke(app, [*given, "--compare", "--json"]).stdout)
    assert told["doors"][4]["source"].startswith("kaito-project/kaito")
