"""What `--fix` changes in a bundle: enough that nothing is found any more, and nothing else."""

import json
import shutil
from pathlib import Path

import pytest

from mii_azure.bundle.manifest import find_mismatches
from mii_azure.checks import autofix
from mii_azure.checks.autofix import fix
from mii_azure.checks.check import check
from mii_azure.sdk.generate import generate
from tests.mii_azure.checks.mutations import BROKEN, both, edit, probe, value
from tests.mii_azure.checks.test_check import adopt

FIXABLE = [
    "a name in capitals",
    "a number in the environment",
    "a boolean in the environment",
    "scoring on another port",
    "two routes of three",
    "a probe every zero seconds",
    "liveness only after two successes",
    "no liveness probe",
    "a request of 181 s",
    "no time for a request",
    "Azure's default time for a request",
    "no concurrency",
    "a server that kills its worker",
    "four copies of the model",
    "fewer threads than requests",
]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory, tiny) -> Path:
    model = tiny("bert", "question-answering")
    return generate("question-answering", str(model), "my-qa", output=tmp_path_factory.mktemp("pristine") / "bundle")


@pytest.fixture
def bundle(pristine, tmp_path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "bundle"))


@pytest.mark.parametrize("what", FIXABLE)
def test_after_a_fix_nothing_is_found_and_the_manifest_agrees(bundle, what):
    rule, mutation = BROKEN[what]
    mutation.apply(bundle)
    adopt(bundle)
    fixed = fix(bundle)
    assert fixed.findings == []
    assert fixed.changes[0].startswith(f"{rule}: {mutation.file}: ")
    assert fixed.changes[-1] == f"manifest.json: {mutation.file} taken as it is now."
    assert find_mismatches(bundle) == []


def test_a_bundle_without_findings_is_left_as_it_is(bundle):
    before = {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    assert fix(bundle) == ([], [])
    assert {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()} == before


def test_several_breaks_are_fixed_together(bundle):
    both(
        value("deployment.yml", "request_timeout_ms", "900000"),
        value("deployment.yml", "WORKER_COUNT", "4"),
        probe("readiness_probe", "failure_threshold", 0),
    ).apply(bundle)
    adopt(bundle)
    assert fix(bundle).findings == []


def test_edits_of_other_files_are_not_adopted(bundle):
    value("deployment.yml", "request_timeout_ms", "900000").apply(bundle)
    edit("plan.md", "^# Plan", "# plan").apply(bundle)
    fixed = fix(bundle)
    assert [(finding.id, finding.file) for finding in fixed.findings] == [("MII001", "plan.md")]


def test_a_stale_version_is_renewed_wherever_it_stands(bundle):
    edit("environment/Dockerfile", "^USER 10001", "USER 10001\n# newer").apply(bundle)
    manifest = json.loads((bundle / "manifest.json").read_text())
    autofix._adopt(bundle, ["environment/Dockerfile"])
    assert [finding.id for finding in check(bundle)] == ["MII106"]
    assert fix(bundle).findings == []
    assert json.loads((bundle / "manifest.json").read_text())["bundle"] != manifest["bundle"]
    version = (bundle / "environment.yml").read_text().split('version: "')[1][:12]
    assert version in (bundle / "deploy.sh").read_text()
    assert f'-env:{version}"' in (bundle / "deployment.yml").read_text()


def test_changes_that_bring_new_errors_are_taken_back(bundle, monkeypatch):
    value("deployment.yml", "request_timeout_ms", "900000").apply(bundle)
    adopt(bundle)
    before = (bundle / "deployment.yml").read_bytes()
    monkeypatch.setattr(autofix, "_set", lambda text, change: text.replace("instance_count: 1", "instance_count: 0"))
    fixed = fix(bundle)
    assert fixed.changes == []
    assert [finding.id for finding in fixed.findings] == ["MII207"]
    assert (bundle / "deployment.yml").read_bytes() == before
    assert find_mismatches(bundle) == []
