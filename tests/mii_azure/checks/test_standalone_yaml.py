"""Rules on YAML that we did not write: azure-ai-ml accepts it, and one rule each says what is wrong."""

import json

import pytest
import yaml
from typer.testing import CliRunner

from mii_azure.checks.autofix import fix
from mii_azure.checks.check import check
from mii_azure.checks.refusals import image_in_capitals
from mii_azure.cli.app import app
from mii_azure.errors import NotABundle
from tests.mii_azure.checks.loose import KINDS, LOOSE, change, write


@pytest.mark.parametrize("kind", KINDS)
def test_files_as_the_examples_have_them_have_no_findings(kind, tmp_path):
    write(tmp_path, kind)
    assert check(tmp_path) == []


@pytest.mark.parametrize("what", LOOSE)
def test_what_azure_ai_ml_accepts_is_rejected_by_one_rule(what, tmp_path):
    case = LOOSE[what]
    write(tmp_path, case.kind, change(case))
    findings = check(tmp_path)
    # MII501 is azure-ai-ml's own verdict, and it is not among them.
    assert [(finding.id, finding.file) for finding in findings] == [(case.rule, case.file)], findings


def test_a_model_of_one_workspace_and_of_no_version_is_told_as_both(tmp_path):
    named = "azureml:/subscriptions/s/resourceGroups/g/providers/x/workspaces/w/models/m"
    write(tmp_path, "managed", lambda files: files["blue.yml"].update(model=named))
    assert [(finding.id, finding.severity) for finding in check(tmp_path)] == [("MII118", "info"), ("MII121", "error")]


def test_names_too_long_together_on_kubernetes(tmp_path):
    def rename(files):
        files["endpoint.yml"]["name"] = files["blue.yml"]["endpoint_name"] = "e" * 32
        files["blue.yml"]["name"] = "d" * 31

    write(tmp_path, "kubernetes", rename)
    assert [finding.id for finding in check(tmp_path)] == ["MII603"]


def test_a_managed_deployment_on_a_cluster(tmp_path):
    write(tmp_path, "managed", lambda files: files["endpoint.yml"].update(compute="azureml:cluster"))
    assert "MII604" in [finding.id for finding in check(tmp_path)]


def test_secrets_from_a_connection_need_the_endpoint_to_ask(tmp_path):
    def connect(files):
        files["blue.yml"]["environment_variables"] = {"KEY": "${{azureml://connections/hub/credentials/token}}"}

    write(tmp_path, "managed", connect)
    assert [finding.id for finding in check(tmp_path)] == ["MII117"]
    endpoint = {"name": "my-endpoint", "properties": {"enforce_access_to_default_secret_stores": "enabled"}}
    (tmp_path / "endpoint.yml").write_text(yaml.safe_dump(endpoint | {"auth_mode": "key"}))
    assert check(tmp_path) == []


def test_one_file_alone_is_judged(tmp_path):
    write(tmp_path, "managed", change(LOOSE["no instances"]))
    assert [finding.id for finding in check(tmp_path / "blue.yml")] == ["MII204"]
    assert check(tmp_path / "endpoint.yml") == []


IMAGES = {
    "MyRegistry.azurecr.io/team/scorer:1": False,
    "LOCALHOST:5000/foo": False,
    "localhost/foo:RC1": False,
    "python:3.11-RC@sha256:AB": False,
    "mcr.microsoft.com/A/b:1": True,
    "Python:3.11": True,
    "team/Scorer": True,
}


@pytest.mark.parametrize("image", IMAGES)
def test_a_host_may_have_capitals_and_a_repository_none(image):
    assert image_in_capitals(image) is IMAGES[image]


def test_a_jobs_output_and_a_path_in_a_datastore_have_no_version(tmp_path):
    def found(model):
        write(tmp_path, "managed", lambda files: files["blue.yml"].update(model=model))
        return [finding.id for finding in check(tmp_path) if finding.id == "MII121"]

    assert found("azureml://jobs/J/outputs/artifacts/paths/models/x/") == []
    assert found("azureml://subscriptions/S/workspaces/W/datastores/D/paths/environments/x/versions/1") == []
    assert found("azureml://registries/R/models/x") == ["MII121"]
    assert found("azureml:/subscriptions/S/workspaces/W/models/x/versions/") == ["MII121"]


def test_an_endpoint_with_two_deployments_is_judged_once(tmp_path):
    write(tmp_path, "managed", change(LOOSE["half of the traffic"]))
    (tmp_path / "green.yml").write_text((tmp_path / "blue.yml").read_text().replace("blue", "green"))
    assert [finding.id for finding in check(tmp_path)] == ["MII110"]


def test_traffic_goes_to_any_deployment_of_the_folder_and_is_mirrored_to_none_that_is_live(tmp_path):
    def shares(traffic, mirror):
        write(tmp_path, "managed", lambda files: files["endpoint.yml"].update(traffic=traffic, mirror_traffic=mirror))
        (tmp_path / "green.yml").write_text((tmp_path / "blue.yml").read_text().replace("blue", "green"))
        return [finding.id for finding in check(tmp_path)]

    assert shares({"blue": 90, "green": 10}, {}) == []
    assert shares({"blue": 100}, {"green": 10}) == []
    assert shares({"blue": 100}, {"blue": 10}) == ["MII124"]


def test_a_dockerfile_in_the_builds_folder_needs_no_name(tmp_path):
    (tmp_path / "context").mkdir()
    environment = {"name": "my-env", "version": "1", "build": {"path": "context"}}
    (tmp_path / "environment.yml").write_text(yaml.safe_dump(environment))
    assert [finding.id for finding in check(tmp_path)] == ["MII108"]
    (tmp_path / "context" / "Dockerfile").write_text("FROM python:3.11\n")
    assert check(tmp_path) == []


@pytest.mark.parametrize("what", LOOSE)
def test_no_remedy_tells_the_owner_of_a_foreign_file_to_generate(what, tmp_path):
    case = LOOSE[what]
    write(tmp_path, case.kind, change(case))
    assert not [finding.remedy for finding in check(tmp_path) if "enerate" in finding.remedy]


def test_other_yaml_is_left_alone_and_named_when_there_is_nothing_else(tmp_path):
    job = {"$schema": "https://azuremlschemas.azureedge.net/latest/commandJob.schema.json", "command": "true"}
    (tmp_path / "job.yml").write_text(yaml.safe_dump(job))
    with pytest.raises(NotABundle):
        check(tmp_path)
    write(tmp_path, "managed")
    assert check(tmp_path) == []


def test_yaml_that_cannot_be_read_is_a_finding(tmp_path):
    (tmp_path / "broken.yml").write_text("a: [")
    assert [finding.id for finding in check(tmp_path)] == ["MII101"]


@pytest.mark.parametrize(
    "added, line",
    [
        ("name: blue\n", 1),
        ("tags: {a: b, c: d, 'a': e}\n", 1),
        ("tags:\n  a: [{x: 1}, {x: 1, x: 2}]\n", 2),
        ("tags: &t {a: b}\ndescription: text\n", None),
        ("tags: {'1': a, 1: b}\n", None),  # a text and a number
        ("tags:\n  <<: {a: b}\n  <<: {c: d}\n", None),  # both are merged
    ],
)
def test_a_key_that_stands_twice_is_told_for_the_last_one_counts_alone(added, line, tmp_path):
    write(tmp_path, "managed")
    path = tmp_path / "blue.yml"
    before = path.read_text()
    path.write_text(before + added)
    found = [finding.line for finding in check(tmp_path) if finding.id == "MII132"]
    assert found == ([before.count("\n") + line] if line else [])


LAYOUT = """---
# ours
name:   blue   # aligned   by hand
endpoint_name: 'my-endpoint'
model: "azureml:my-\
  model:1"
code_configuration: {code: onlinescoring,scoring_script: score.py}
environment: azureml:my-env:1
instance_type: Standard_DS3_v2
instance_count: 0x1
tags:
    a: ~
    b:
request_settings:
        request_timeout_ms: 900000   # too long
        max_concurrent_requests_per_instance:  4
liveness_probe: {initial_delay: 300, failure_threshold: 40}
readiness_probe: {initial_delay: 10, failure_threshold: 60}
...
"""


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_fixing_changes_one_value_and_not_a_byte_beside_it(end, tmp_path):
    text = LAYOUT.replace("\n", end)
    write(tmp_path, "managed")
    path = tmp_path / "blue.yml"
    path.write_bytes(text.encode())
    fixed = fix(tmp_path)
    assert fixed.findings == []
    assert fixed.changes == ["MII207: blue.yml: request_settings.request_timeout_ms is now 180000."]
    assert path.read_bytes().decode() == text.replace("900000", "180000")


@pytest.mark.parametrize("text", ["", "# to be written\n", "---\n"])
def test_an_empty_file_is_told_of_by_its_name_only(tmp_path, text):
    write(tmp_path, "managed", change(LOOSE["a name in capitals"]))
    (tmp_path / "values.yml").write_text(text)
    assert "MII101" not in {each.id for each in check(tmp_path)}
    (tmp_path / "environment.yml").write_text(text)
    (told,) = [each for each in check(tmp_path) if each.id == "MII101"]
    assert told.file == "environment.yml"


def test_a_file_by_itself_is_no_folder_without_a_manifest(tmp_path):
    write(tmp_path, "managed", change(LOOSE["a name in capitals"]))
    done = CliRunner().invoke(app, ["check", str(tmp_path / "blue.yml")])
    assert "a file by itself: only the rules on YAML apply" in done.stderr


def test_the_command_says_what_applies(tmp_path):
    write(tmp_path, "managed", change(LOOSE["a name in capitals"]))
    done = CliRunner().invoke(app, ["check", str(tmp_path), "--json"])
    assert done.exit_code == 0
    (finding,) = json.loads(done.stdout)
    assert (finding["id"], finding["severity"], finding["fixable"]) == ("MII103", "warning", True)
    assert finding["limit"]
    assert "only the rules on YAML" in done.stderr
    done = CliRunner().invoke(app, ["check", str(tmp_path), "--fix"])
    assert "changed MII103" in done.stdout
    assert yaml.safe_load((tmp_path / "blue.yml").read_text())["name"] == "blue"
