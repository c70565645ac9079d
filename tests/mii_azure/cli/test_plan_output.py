"""What a plan, a ranking and a generation say first, and that what they say can be typed and cut."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from mii_azure.cli.report import print_table, table
from tests.mii_azure.cli.conftest import Done

Tiny = Callable[[str, str], Path]
PRICES = "instance_type,price_per_hour,date,region,currency\nStandard_F4s_v2,0.2,2026-11-24,westeurope,EUR\n"


def test_a_plan_opens_with_three_lines_and_a_command_that_works(
    tiny: Tiny, mii: Callable[..., Done], tmp_path: Path
) -> None:
    prices = tmp_path / "prices.csv"
    prices.write_text(PRICES)
    model = tiny("bert", "fill-mask")
    arguments = ["--task", "fill-mask", "--model", model, "--passes-off", "cpu,compile", "--instance-count", "2"]
    lines = mii("plan", *arguments, "--prices", prices).out.splitlines()
    assert re.match(r"fits   well, on Standard_F4s_v2 .* in float32: 0\.9 of 6\.5 GB$", lines[0])
    assert re.match(r"does   about [\d,]+ requests/s with 8 at once on 2 instances; alone .* ms ", lines[1])
    assert lines[2].startswith(
        "needs  12 cores of standardFSv2Family quota for 2 instances, of a series that Azure retires "
    )
    assert lines[2].endswith(" on 2028-11-15; 0.400 EUR/h in westeurope, 2026-11-24")
    assert lines[3].startswith("costs  CPU or GPU: the price file has no GPU instance type ")
    command = shlex.split(lines[4].removeprefix("next   "))
    assert command[:2] == ["mii-azure", "generate"]
    assert command[command.index("--passes-off") + 1] == "cpu,compile"
    written = mii(*command[1:])
    assert written.code == 0, written
    assert "needs     12 cores" in written.out


def test_a_plan_tells_whether_a_cpu_or_a_gpu_is_cheaper_by_the_price_file(
    tiny: Tiny, mii: Callable[..., Done], tmp_path: Path
) -> None:
    prices = tmp_path / "prices.json"
    told = {"date": "2026-11-24", "region": "westeurope", "currency": "EUR"}
    prices.write_text(json.dumps(told | {"prices": {"Standard_NC4as_T4_v3": 0.6, "Standard_F4s_v2": 0.2}}))
    arguments = ("plan", "--task", "fill-mask", "--model", tiny("bert", "fill-mask"), "--prices", prices)
    line = mii(*arguments).out.splitlines()[3]
    assert re.match(r"costs  a million requests: [\d.e-]+ EUR on Standard_F4s_v2 \(CPU, ", line)
    assert "Standard_NC4as_T4_v3" in line
    made = json.loads(mii(*arguments, "--json").out)["cheaper"]
    assert made["cpu"]["instance_type"] == "Standard_F4s_v2"
    ranking = mii(*arguments, "--rank").out
    assert line.removeprefix("costs  ") in ranking


def test_passes_are_told_on_request_and_taken_ones_always(tiny: Tiny, mii: Callable[..., Done]) -> None:
    arguments = ("plan", "--task", "fill-mask", "--model", tiny("bert", "fill-mask"))
    short, whole = mii(*arguments).out, mii(*arguments, "--verbose").out
    assert "pass cuda_graph" in whole
    assert "pass cuda_graph" not in short
    assert re.search(r"^passes +cpu +7 are left out", short, re.MULTILINE)


def test_a_generating_model_is_told_its_first_token(tiny: Tiny, mii: Callable[..., Done]) -> None:
    done = mii("plan", "--task", "text-generation", "--model", tiny("gpt2", "text-generation"))
    assert re.search(r"^does   about [\d,]+ tokens/s .* first token ", done.out, re.MULTILINE)


def test_a_ranking_shows_five_with_reasons_and_marks_what_a_plan_chooses(tiny: Tiny, mii: Callable[..., Done]) -> None:
    arguments = ("plan", "--task", "fill-mask", "--model", tiny("bert", "fill-mask"))
    rows = [line for line in mii(*arguments, "--rank").out.splitlines() if "Standard_" in line]
    assert len(rows) == 5
    assert [row.split()[1] for row in rows if row.startswith(">")] == ["Standard_F4s_v2"]
    assert all(re.search(r"\d {2,}\S+ [a-z]", row) for row in rows)
    assert len([line for line in mii(*arguments, "--rank", "--verbose").out.splitlines() if "Standard_" in line]) > 80


def test_a_table_breaks_no_name_and_piped_no_row(tmp_path: Path) -> None:
    made = table("name", "why")
    made.add_row("Standard_NC24ads_A100_v4", "a reason of many words " * 5)
    with (tmp_path / "piped").open("w+") as file:
        print_table(Console(file=file, width=40), made)
        file.seek(0)
        assert file.read().splitlines()[1] == "Standard_NC24ads_A100_v4  " + ("a reason of many words " * 5).strip()


def test_a_short_name_is_told_as_azure_has_it(tiny: Tiny, mii: Callable[..., Done]) -> None:
    done = mii("generate", "--task", "fill-mask", "--model", tiny("bert", "fill-mask"), "--name", "ab")
    assert "in Azure it is ab-endpoint" in done.out
    assert "Standard_F4s_v2" in done.out


@pytest.mark.parametrize(
    ("kind", "flags", "told"),
    [
        ("managed", (), "in Azure it is Gen"),
        ("kubernetes", ("--compute", "k8s"), "in Azure it is Gen, on k8s"),
        ("batch", ("--compute", "cpus"), "in Azure it is the batch endpoint Gen, on cpus"),
        (
            "template",
            ("--registry", "shared", "--image", "own.azurecr.io/gen"),
            "in the registry shared it is Gen-model and Gen-template, in a workspace the endpoint Gen",
        ),
        (
            "kaito",
            ("--image", "own.azurecr.io/gen", "--instance-type", "Standard_NC4as_T4_v3"),
            "in the cluster it is the workspace gen of KAITO, and a service of that name",
        ),
    ],
)
def test_a_bundle_is_told_by_what_it_is_called_where_its_kind_runs(
    kind: str, flags: tuple[str, ...], told: str, tiny: Tiny, mii: Callable[..., Done]
) -> None:
    model = tiny("bert", "fill-mask")
    done = mii("generate", "--task", "fill-mask", "--model", model, "--name", "Gen", "--kind", kind, *flags)
    assert done.code == 0, done
    assert told in done.out.splitlines()
