"""Bicep and Terraform hold the bodies that azure-ai-ml would send, with nothing expanded but the ids given."""

import json
import re

import pytest
from typer.testing import CliRunner

from mii_azure.cli import app
from mii_azure.errors import SpecError
from mii_azure.infra import bodies, infra

SECRET = "${{azureml://connections/hub/credentials/token}}"


@pytest.fixture
def bundle(make_bundle):
    return make_bundle(secrets={"HF_TOKEN": SECRET})


def test_terraform_holds_what_the_client_sends(bundle):
    document = json.loads(infra(bundle, "terraform")["main.tf.json"])
    endpoint, deployment = bodies(bundle)
    found = document["resource"]["azapi_resource"]
    assert found["endpoint"]["name"] == endpoint["name"] == "my-qa"  # the client lower-cases it
    assert found["endpoint"]["parent_id"] == "${var.workspace_id}"
    assert found["deployment"]["parent_id"] == "${azapi_resource.endpoint.id}"
    properties = found["deployment"]["body"]["properties"]
    assert properties.keys() == deployment["properties"].keys()
    assert properties["livenessProbe"] == deployment["properties"]["livenessProbe"]
    assert properties["model"].startswith("${var.workspace_id}/models/My-qa-model/versions/")
    assert properties["environmentVariables"]["HF_TOKEN"] == "$" + SECRET
    assert found["deployment"]["body"]["sku"]["capacity"] == 1
    used = set(re.findall(r"(?<!\$)\$\{var\.(\w+)\}", json.dumps(document)))
    assert used == set(document["variable"])


def test_bicep_is_balanced_and_expands_only_the_workspace(bundle):
    text = infra(bundle, "bicep")["main.bicep"]
    outside = re.sub(r"'(?:[^'\\\n]|\\.)*'", "''", text)
    assert "'" not in outside.replace("''", "")
    for pair in ("{}", "[]", "()"):
        assert outside.count(pair[0]) == outside.count(pair[1])
    assert set(re.findall(r"(?<!\\)\$\{([\w.]+)\}", text)) == {"workspace.id"}
    assert "codeId: codeId" in text
    assert "HF_TOKEN: '\\" + SECRET + "'" in text
    assert text.index("resource endpoint") < text.index("parent: endpoint")


def test_what_has_no_template_is_refused(make_bundle, bundle):
    with pytest.raises(SpecError):
        infra(bundle, "pulumi")
    with pytest.raises(SpecError):
        infra(make_bundle("batch", kind="batch", compute="cluster"), "bicep")


def test_the_command_writes_the_file(bundle, tmp_path):
    done = CliRunner().invoke(app, ["infra", str(bundle), "--format", "terraform", "--output", str(tmp_path / "i")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "i" / "main.tf.json").is_file()
