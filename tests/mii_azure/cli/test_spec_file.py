"""mii-azure.yml: what init writes is read, its schema agrees, flags go before it, and mistakes are named."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
import yaml

from mii_azure.sdk.spec_file import read
from mii_azure.spec import Spec
from tests.mii_azure.cli.conftest import Done

Tiny = Callable[[str, str], Path]
Mii = Callable[..., Done]


@pytest.fixture
def file(tiny: Tiny, mii: Mii, tmp_path: Path) -> Path:
    (tmp_path / "model").symlink_to(tiny("bert", "fill-mask"))
    (tmp_path / "settings").mkdir()
    done = mii("init", "settings", "--task", "fill-mask", "--model", "../model", "--name", "mlm")
    assert done.code == 0, done
    return tmp_path / "settings" / "mii-azure.yml"


def test_plan_and_generate_take_it_and_flags_go_before_it(
    file: Path, mii: Mii, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file.write_text(re.sub(r"# instance_type: .*", "instance_type: Standard_F8s_v2", file.read_text()))
    assert json.loads(mii("plan", "-f", file, "--json").out)["instance_type"] == "Standard_F8s_v2"
    flagged = mii("plan", "-f", file, "--instance-type", "Standard_F16s_v2", "--json")
    assert json.loads(flagged.out)["instance_type"] == "Standard_F16s_v2"
    written = mii("generate", "-f", file, "--json")
    assert json.loads(written.out)["bundle"] == str(tmp_path / "mlm")
    monkeypatch.setenv("MII_AZURE_INSTANCE_TYPE", "Standard_F4s_v2")
    assert json.loads(mii("plan", "--file", file, "--json").out)["instance_type"] == "Standard_F4s_v2"


def test_every_setting_is_explained_has_its_default_and_fits_the_schema(file: Path) -> None:
    lines = file.read_text().splitlines()
    shown = [line.removeprefix("# ") for line in lines]
    settings = yaml.safe_load("\n".join(line for line in shown if line.partition(":")[0] in Spec.model_fields))
    assert set(settings) == set(Spec.model_fields)
    for name, field in Spec.model_fields.items():
        assert f"# {field.description}" in lines
        if not field.is_required():
            assert Spec.model_validate({**settings, "name": "abc"}).model_dump()[name] == field.get_default(
                call_default_factory=True
            )
    schema = json.loads((file.parent / "mii-azure.schema.json").read_text())
    jsonschema.validate(settings, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**settings, "dtype": "int3"}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**settings, "tsk": "x"}, schema)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("tsk: fill-mask", "Did you mean task?"),
        ("task: [", "line 1 is not YAML"),
        ("- task", "is no list of settings"),
        ("name: abc\ntask: fill-mask\nname: xyz", "line 3: name stands twice"),
        ("task: fill-mask\nmodel: m\ndtype: int3", "dtype"),
        ("task: fill-mask", "--model is missing"),
        ("task: fill-mask\nmodel: m\nmax_instances: -3", "max_instances: Input should be greater"),  # not a plan's own
        ("task: fill-mask\nmodel: m\nauth_mode: password", "auth_mode: Input should be 'key'"),
        ("task: fill-mask\nmodel: m\nname: a_b", "a_b"),
        ("name: 2026-02-30", "is not YAML"),
        ("name: !!int foo", "is not YAML"),
        ("name: 0x_", "is not YAML"),
        ("name: !!timestamp foo", "is not YAML"),
    ],
)
def test_mistakes_are_named(text: str, told: str, mii: Mii, tmp_path: Path) -> None:
    (tmp_path / "mii-azure.yml").write_text(text)
    done = mii("plan", "-f", "mii-azure.yml")
    assert (done.code, told in done.err) == (2, True), done


def test_a_plan_asks_for_nothing_that_only_generating_needs(tiny: Tiny, mii: Mii, tmp_path: Path) -> None:
    settings = {"task": "text-generation", "model": str(tiny("llama", "text-generation")), "kind": "kaito"}
    (tmp_path / "mii-azure.yml").write_text(json.dumps(settings))  # of which generating wants an image
    assert mii("plan", "-f", "mii-azure.yml").code == 0


@pytest.mark.parametrize("setting", ["model", "adapter", "draft_model"])
def test_a_name_that_is_too_long_is_no_folder(setting: str, tiny: Tiny, mii: Mii, tmp_path: Path) -> None:
    settings = {"task": "text-generation", "model": str(tiny("llama", "text-generation")), setting: "m" * 300}
    (tmp_path / "mii-azure.yml").write_text(json.dumps(settings))
    done = mii("plan", "-f", "mii-azure.yml")
    assert (done.code, "no folder" in done.err) == (3, True), done


def test_paths_are_beside_the_file_where_they_are_there(tmp_path: Path) -> None:
    for name in ("model", "draft", "lora", "handler.py"):
        (tmp_path / name).mkdir()
    file = tmp_path / "mii-azure.yml"
    lines = (
        "model: model",
        "handler: handler.py",
        "adapter: ./lora",
        "draft_model: draft",
        "adapters: [a=lora, b=c, 5]",
    )
    file.write_text("\n".join(lines))
    found = read(file)
    assert [found[key] for key in ("model", "handler", "adapter", "draft_model")] == [
        str(tmp_path / name) for name in ("model", "handler.py", "lora", "draft")
    ]
    assert found["adapters"] == (f"a={tmp_path / 'lora'}", "b=c", 5)


@pytest.mark.parametrize("flags", [[], ["--instance-count", "2", "--dtype", "auto"]])
def test_what_a_plan_names_next_writes_the_files_deployment(file: Path, mii: Mii, flags: list[str]) -> None:
    file.write_text(re.sub(r"# dtype: .*", "dtype: float16", file.read_text()))
    planned = mii("plan", "-f", file, *flags)
    command = re.search("^next +(mii-azure generate .*)$", planned.out, re.MULTILINE)
    assert command, planned
    assert command[1] == shlex.join(["mii-azure", "generate", "-f", str(file), *flags])
    file.write_text(re.sub("(?m)^name: .*", "", file.read_text()))
    assert mii("plan", "-f", file).out.splitlines()[3].endswith(" --name model")


def test_a_file_that_is_there_stays_and_one_that_is_not_is_told(file: Path, mii: Mii) -> None:
    again = mii("init", file.parent)
    assert (again.code, "--force" in again.err) == (3, True)
    assert mii("init", file.parent, "--force").code == 0
    assert yaml.safe_load(file.read_text())["model"] == "./model"
    missing = mii("plan", "-f", "nowhere.yml")
    assert (missing.code, "mii-azure init" in missing.err) == (2, True)
    assert "deploy needs a bundle" in mii("deploy").err
