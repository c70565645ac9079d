"""Workflows against their published schemas, and the component through azure-ai-ml and as a process."""

import json
import os
import re
import shlex
import subprocess
import sys
import warnings
from importlib.resources import files as resources

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner

from mii_azure.cli import app
from mii_azure.errors import NotWritten, SpecError
from mii_azure.mlops import PROVIDERS, component, workflow, write_files
from mii_azure.spec import make_spec

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


@pytest.mark.parametrize("provider", PROVIDERS)
def test_the_gates_come_in_order_and_the_commands_exist(provider):
    text = text_of(provider)
    verbs = re.findall(r"mii-azure (\w+) ", text)
    assert verbs == ["generate", "check", "generate", "check", "rollout", "parity"]
    assert "'models/my model'" in text
    known = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert set(verbs) <= known
    steps = [text.index(step) for step in ("mii-azure check", "deploy.sh --dry-run", "mii-azure rollout")]
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


def test_the_components_script_writes_a_bundle_without_findings(tiny, tmp_path):
    write_files(component(), tmp_path)
    model = tiny("bert", "fill-mask")
    script = tmp_path / "src" / "generate_and_deploy.py"
    command = [sys.executable, str(script), "--model", str(model), "--task", "fill-mask", "--name", "my-mask"]
    output = tmp_path / "out"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, "--output", str(output)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    from mii_azure.checks import check

    assert check(output) == []
