"""deploy.sh against an `az` that keeps state: what it creates, in which order, once."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mii_azure.errors import SpecError
from mii_azure.mlops.infra import infra
from mii_azure.mlops.workflows import workflow
from mii_azure.operations.deploy import deploy
from mii_azure.sdk.generate import generate
from mii_azure.spec import make_spec

FAKE = Path(__file__).with_name("fake_az.py")
SCOPE = ["--resource-group", "my group", "--workspace-name", "ws"]


class Cloud:
    """A folder for the fake's state, and the script run against it."""

    def __init__(self, folder: Path, bundle: Path) -> None:
        self.folder, self.bundle = folder, bundle
        (folder / "bin").mkdir(parents=True)
        az = folder / "bin" / "az"
        az.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{FAKE}" "$@"\n')
        az.chmod(0o755)

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        environment = os.environ | {"PATH": path, "FAKE_AZ": str(self.folder)} | variables
        # From another folder: the script must find its own files.
        return subprocess.run(
            [self.bundle / "deploy.sh", *arguments], cwd="/", env=environment, capture_output=True, text=True
        )

    def calls(self) -> list[list[str]]:
        """`az ml` calls since the last time, without `az` itself and the scope."""
        log = self.folder / "calls"
        found = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        log.unlink(missing_ok=True)
        return [call[1:] for call in found if call[0] == "ml"]

    @property
    def state(self) -> dict[str, dict[str, str]]:
        return json.loads((self.folder / "state.json").read_text())


def verbs(calls: list[list[str]]) -> list[str]:
    return [" ".join(call[:2]) for call in calls]


@pytest.fixture
def cloud(make_bundle, tmp_path) -> Cloud:
    return Cloud(tmp_path / "cloud", make_bundle())


def test_the_first_run_creates_everything_in_order(cloud):
    done = cloud.run(*SCOPE)
    assert done.returncode == 0, done.stderr
    calls = cloud.calls()
    assert all(call[-6:-2] == SCOPE and call[-2:] == ["--output", "none"] for call in calls)
    assert verbs(calls) == [
        "environment show",
        "environment create",
        "model show",
        "model create",
        "online-endpoint show",
        "online-endpoint create",
        "online-deployment show",
        "online-deployment create",
        "online-endpoint invoke",
        "online-endpoint update",
    ]
    assert cloud.state["online-endpoint/My-qa/"]["traffic"] == "my-qa=100"


def test_traffic_moves_only_once_a_sample_request_was_answered(cloud):
    done = cloud.run(*SCOPE, FAKE_AZ_INVOKE_FAILS="1", DEPLOY_PAUSE="0")
    assert done.returncode == 1
    assert "the traffic stays as it is" in done.stderr
    assert verbs(cloud.calls()).count("online-endpoint invoke") == 3
    assert "traffic" not in cloud.state["online-endpoint/My-qa/"]
    assert cloud.run(*SCOPE).returncode == 0
    assert cloud.state["online-endpoint/My-qa/"]["traffic"] == "my-qa=100"


def test_a_missing_role_is_not_taken_for_not_there(cloud):
    done = cloud.run(*SCOPE, FAKE_AZ_FORBIDS="show")
    assert done.returncode == 1
    assert "AuthorizationFailed" in done.stderr
    assert "could not be told: az ml environment show" in done.stderr
    assert verbs(cloud.calls()) == ["environment show"]


def test_the_second_run_makes_nothing_twice(cloud):
    cloud.run(*SCOPE)
    state = cloud.state
    cloud.calls()
    assert cloud.run(*SCOPE).returncode == 0
    assert verbs(cloud.calls()) == [
        "environment show",
        "model show",
        "online-endpoint show",
        "online-deployment show",
        "online-deployment update",
        "online-endpoint invoke",
        "online-endpoint update",
    ]
    assert cloud.state == state


def test_changed_weights_become_a_new_version_of_the_model_only(cloud, make_bundle, tmp_path, tiny):
    cloud.run(*SCOPE)
    cloud.calls()
    model = Path(shutil.copytree(tiny("bert", "question-answering"), tmp_path / "model"))
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (model / "model.safetensors").write_bytes(weights)
    generate("question-answering", str(model), "My-qa", output=cloud.bundle, force=True)
    assert cloud.run(*SCOPE).returncode == 0
    calls = verbs(cloud.calls())
    assert [call for call in calls if "create" in call] == ["model create"]


def test_a_dry_run_calls_nothing_and_prints_what_a_first_run_calls(cloud):
    done = cloud.run("--dry-run", *SCOPE)
    assert done.returncode == 0
    assert cloud.calls() == []
    printed = subprocess.run(
        ["bash", "-c", 'az() { for a in "$@"; do printf "%s\\t" "$a"; done; echo; }; ' + done.stdout],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    shown = [line.split("\t")[1:-1] for line in printed.splitlines()]
    cloud.run(*SCOPE)
    ran = [call[:-2] for call in cloud.calls()]
    assert shown[:-1] == ran
    assert shown[-1][:2] == ["online-endpoint", "invoke"]


def test_without_flags_the_defaults_of_az_are_used(cloud):
    assert cloud.run().returncode == 0
    assert not any("--resource-group" in call for call in cloud.calls())


def test_a_registered_model_is_not_registered_again(tmp_path):
    reference = "azureml://registries/azureml/models/bert/versions/3"
    bundle = generate("fill-mask", reference, "my-mask", output=tmp_path / "b", instance_type="Standard_F8s_v2")
    cloud = Cloud(tmp_path / "cloud", bundle)
    assert cloud.run(*SCOPE).returncode == 0
    assert not any(call[0] == "model" for call in cloud.calls())


def test_a_failed_deployment_names_the_log_and_takes_no_traffic(cloud):
    done = cloud.run(*SCOPE, FAKE_AZ_DEPLOYMENT_FAILS="1")
    assert done.returncode == 1
    assert "ResourceNotReady" in done.stderr
    assert "az ml online-deployment get-logs --name my-qa --endpoint-name My-qa" in done.stderr
    assert "traffic" not in cloud.state["online-endpoint/My-qa/"]
    assert cloud.run(*SCOPE).returncode == 0


@pytest.mark.parametrize(("broken", "remedy"), [("extension", "az extension add"), ("account", "az login")])
def test_what_is_missing_is_said_before_anything_is_created(cloud, broken, remedy):
    done = cloud.run(*SCOPE, FAKE_AZ_BROKEN=json.dumps([broken]))
    assert done.returncode == 1
    assert remedy in done.stderr
    assert cloud.calls() == []


@pytest.mark.parametrize("arguments", [["--resource-group"], ["--colour", "red"], ["extra"]])
def test_a_wrong_flag_is_refused(cloud, arguments):
    done = cloud.run(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("deploy.sh: ")
    assert cloud.calls() == []


def test_help(cloud):
    done = cloud.run("--help")
    assert done.returncode == 0
    assert "--dry-run" in done.stdout


def test_a_link_to_the_script_is_followed(cloud, tmp_path):
    (tmp_path / "deploy.sh").symlink_to(cloud.bundle / "deploy.sh")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "again").symlink_to("../deploy.sh")
    for script in (tmp_path / "links" / "again", cloud.bundle / "deploy.sh"):
        done = subprocess.run([script, *SCOPE, "--dry-run"], cwd="/", capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "az ml online-endpoint create" in done.stdout


def edited(bundle: Path, change: str, tmp_path: Path) -> None:
    """One change to a bundle, each of another kind."""
    if change == "edited":
        (bundle / "code" / "score.py").write_text("import evil")
    elif change == "edited weights":
        with (bundle / "model" / "model.safetensors").open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"\x7f")
    elif change == "missing":
        (bundle / "requests" / "sample.json").unlink()
    elif change == "cache":
        (bundle / "code" / "scoring" / "__pycache__").mkdir()
        (bundle / "code" / "scoring" / "__pycache__" / "entry.cpython-311.pyc").write_bytes(b"x")
    elif change == "added":
        (bundle / "model" / "a\nb c").write_text("x")
    elif change == "link":
        (bundle / "code" / "scoring").rename(tmp_path / "moved")
        (bundle / "code" / "scoring").symlink_to(tmp_path / "moved")
    elif change == "pipe":
        os.mkfifo(bundle / "environment" / "pipe")
    else:
        manifest = json.loads((bundle / "manifest.json").read_text())
        manifest["files"]["code/score.py"] = "0" * 64
        (bundle / "manifest.json").write_text(json.dumps(manifest, indent=2))


CHANGES = {
    "edited": "a file was edited: code/score.py",
    "edited weights": "a file was edited: model/model.safetensors",
    "missing": "a file is missing: requests/sample.json",
    "cache": "a file was added: code/scoring/__pycache__/entry.cpython-311.pyc",
    "added": "a file was added: model/a",
    "link": "no links, devices or pipes: ./code/scoring",
    "pipe": "no links, devices or pipes: ./environment/pipe",
    "manifest": "manifest.json is not as it was generated",
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_bundle_that_was_changed_is_not_uploaded(cloud, change, tmp_path):
    edited(cloud.bundle, change, tmp_path)
    for arguments in (SCOPE, ["--dry-run"]):
        done = cloud.run(*arguments)
        assert done.returncode == 1
        assert CHANGES[change] in done.stderr
        assert "nothing was uploaded" in done.stderr
        assert cloud.calls() == []


def test_files_beside_what_is_uploaded_and_odd_names_in_it_are_fine(tiny, tmp_path):
    model = Path(shutil.copytree(tiny("bert", "question-answering"), tmp_path / "model"))
    (model / "vocab é'$(id)\"`; x.json").write_text("{}")
    (model / " b.json").write_text("{}")
    cloud = Cloud(tmp_path / "cloud", generate("question-answering", str(model), "My-qa", output=tmp_path / "a b"))
    (cloud.bundle / "notes.txt").write_text("x")
    (cloud.bundle / "requests" / "mine.json").write_text("{}")
    done = cloud.run(*SCOPE)
    assert done.returncode == 0, done.stderr


def test_without_gnu_coreutils_shasum_is_asked(cloud, tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "cat", "comm", "cut", "dirname", "find", "grep", "sed", "sort", "tr", "xargs"):
        (tools / name).symlink_to(str(shutil.which(name)))
    (tools / "shasum").write_text(f'#!{shutil.which("sh")}\nshift 2\nexec {shutil.which("sha256sum")} "$@"\n')
    (tools / "shasum").chmod(0o755)
    command = [str(tools / "bash"), str(cloud.bundle / "deploy.sh"), "--dry-run"]
    done = subprocess.run(command, env={"PATH": str(tools)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (cloud.bundle / "code" / "score.py").write_text("import evil")
    done = subprocess.run(command, env={"PATH": str(tools)}, capture_output=True, text=True)
    assert done.returncode == 1
    assert CHANGES["edited"] in done.stderr


TEMPLATE = {"kind": "template", "registry": "shared", "image": "mine.azurecr.io/models/qa"}
KAITO = {"kind": "kaito", "image": "mine.azurecr.io/models/qa", "instance_type": "Standard_D8as_v4"}


def test_a_template_is_published_in_its_registry_and_deployed_in_the_workspace(make_bundle, tmp_path):
    cloud = Cloud(tmp_path / "cloud", make_bundle(**TEMPLATE))
    done = cloud.run(*SCOPE)
    assert done.returncode == 0, done.stderr
    calls = cloud.calls()
    shared = ["--registry-name", "shared", "--output", "none"]
    assert verbs(calls[:6]) == [
        "environment show",
        "environment create",
        "deployment-template show",
        "deployment-template create",
        "model show",
        "model create",
    ]
    assert all(call[-4:] == shared and "ws" not in call for call in calls[:6])
    assert all(call[-6:-2] == SCOPE for call in calls[6:])
    (image,) = (key for key in cloud.state if key.startswith("image/"))
    assert f"mine.azurecr.io/{image.removeprefix('image/')}" in (cloud.bundle / "environment.yml").read_text()
    assert cloud.run(*SCOPE).returncode == 0
    again = cloud.calls()
    assert not [call for call in again if call[1] == "create"]
    (update,) = (call for call in again if call[:2] == ["model", "update"])
    assert any("default_deployment_template.asset_id=azureml://registries/shared/" in word for word in update)


def test_kaito_gets_an_image_and_its_workspace(make_bundle, tmp_path):
    cloud = Cloud(tmp_path / "cloud", make_bundle(**KAITO))
    kubectl = cloud.folder / "bin" / "kubectl"
    kubectl.write_text('#!/bin/sh\necho "$@" >> "$FAKE_AZ/kubectl"\n')
    kubectl.chmod(0o755)
    done = cloud.run("--namespace", "models", "--timeout", "60")
    assert done.returncode == 0, done.stderr
    (image,) = (key for key in cloud.state if key.startswith("image/"))
    assert f"mine.azurecr.io/{image.removeprefix('image/')}" in (cloud.bundle / "workspace.yml").read_text()
    assert (cloud.folder / "kubectl").read_text().splitlines() == [
        "apply --namespace models --filename workspace.yml",
        "wait --namespace models workspace/my-qa --for=condition=WorkspaceSucceeded --timeout=60s",
    ]
    assert "kubectl port-forward --namespace models service/my-qa 8080:80" in done.stdout
    (cloud.bundle / "code/score.py").write_text("")
    assert "a file was edited: code/score.py" in cloud.run().stderr


@pytest.mark.parametrize("options", [TEMPLATE, KAITO], ids=["template", "kaito"])
def test_other_verbs_leave_such_a_bundle_to_its_script(make_bundle, options):
    bundle = make_bundle(**options)
    for refuse in (lambda: deploy(bundle, None), lambda: infra(bundle, "bicep")):
        with pytest.raises(SpecError, match=r"Run its own deploy\.sh"):
            refuse()
    spec = make_spec(task="question-answering", model="m", name="my-qa", **options)
    with pytest.raises(SpecError, match="deploys by its own script"):
        workflow("github", spec)


@pytest.mark.skipif(shutil.which("dash") is None, reason="needs a shell that is not bash")
def test_another_shell_hands_over_to_bash(make_bundle):
    bundle = make_bundle()
    done = subprocess.run(["dash", "deploy.sh", "--dry-run"], cwd=bundle, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "az ml online-deployment create" in done.stdout
