"""Bundles whose image carries them: registry assets as azure-ai-ml sends them, KAITO's Workspace by its schema."""

import json
import subprocess
import warnings
from pathlib import Path

import jsonschema
import pytest
import yaml

from local_runner.process.launch import _settings
from mii_azure.bundle import render as rendering
from mii_azure.errors import NotAvailable, SpecError
from mii_azure.hardware.skus import find_sku
from mii_azure.spec import make_spec
from tests.mii_azure.bundles import rendered, spec_and_plan

TEMPLATE = {"kind": "template", "registry": "shared", "image": "mine.azurecr.io/models/qa"}
KAITO = {"kind": "kaito", "image": "mine.azurecr.io/models/qa"}
CRD = json.loads(Path(__file__).with_name("kaito_workspace.json").read_text())
SIZES = {"cpu": "Standard_D8as_v4", "t4": "Standard_NC4as_T4_v3", "a100": "Standard_NC24ads_A100_v4"}


def write(folder: Path, files: dict[str, str]) -> None:
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)


@pytest.mark.parametrize("device", SIZES)
def test_a_template_reaches_the_wire_as_planned(tmp_path, device):
    _, plan = spec_and_plan("text-generation", device)
    files = rendered("text-generation", device, server="http", **TEMPLATE)
    write(tmp_path, files)
    (tmp_path / "model").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from azure.ai.ml import load_environment, load_model, load_online_deployment
        from azure.ai.ml.entities import DeploymentTemplate
        from azure.ai.ml.entities._load_functions import load_deployment_template

        template = load_deployment_template(tmp_path / "deployment-template.yml")
        assert isinstance(template, DeploymentTemplate)
        sent = template._to_rest_object()
        model = load_model(tmp_path / "model.yml")._to_rest_object().as_dict()["properties"]
        environment = load_environment(tmp_path / "environment.yml")
        environment.validate()
        deployment = load_online_deployment(tmp_path / "deployment.yml")._to_rest_object(location="x").as_dict()
    version = yaml.safe_load(files["environment.yml"])["version"]
    assert sent["type"] == "deploymenttemplates"
    assert sent["deploymentTemplateType"] == "Managed"
    assert sent["environmentId"].endswith(
        f"azureml://registries/shared/environments/{environment.name}/versions/{version}"
    )
    assert environment.image == f"mine.azurecr.io/models/qa:{version}"
    assert sent["defaultInstanceType"] == plan.instance_type
    allowed = [find_sku(name) for name in sent["allowedInstanceTypes"]]
    chosen = find_sku(plan.instance_type)
    assert plan.instance_type in sent["allowedInstanceTypes"]
    assert {(each.gpu, each.gpus) for each in allowed} == {(chosen.gpu, chosen.gpus)}
    assert sent.get("acceleratorMaps", [{}])[0].get("acceleratorType") == {"a100": "A100_80GB"}.get(device)
    assert (sent["scoringPath"], sent["scoringPort"]) == ("/", 5001)
    assert sent["livenessProbe"]["path"] == "/healthz"
    assert sent["readinessProbe"]["failureThreshold"] == plan.readiness.failure_threshold
    assert sent["requestSettings"]["maxConcurrentRequestsPerInstance"] == plan.max_concurrent_requests
    name, told = sent["name"], "azureml://registries/shared/deploymenttemplates"
    assert model["defaultDeploymentTemplate"] == {"assetId": f"{told}/{name}/versions/{sent['version']}"}
    assert model["allowedDeploymentTemplates"] == [{"assetId": f"{told}/{name}/labels/latest"}]
    assert "codeConfiguration" not in deployment["properties"]
    assert deployment["properties"]["model"].startswith("azureml://registries/shared/models/")


@pytest.mark.parametrize("options", [TEMPLATE, KAITO], ids=["template", "kaito"])
def test_the_tag_is_the_hash_of_what_the_image_carries(options, monkeypatch):
    def tag(**changes) -> str:
        files = rendered("fill-mask", instance_type="Standard_D8as_v4", **(options | changes))
        name = "workspace.yml" if options is KAITO else "environment.yml"
        return files[name].split("models/qa:")[1].split('"')[0]

    first = tag()
    assert first == tag()
    assert first != tag(context_length=64)  # code/deployment.json says so
    assert (first != tag(version="ba9876543210")) == (options is KAITO)  # weights, which only KAITO's image carries
    monkeypatch.setattr(rendering, "carried_code", lambda server: {})
    assert first != tag()


def test_the_image_is_built_of_what_it_carries():
    for options, carried in ((TEMPLATE, {"code"}), (KAITO, {"code", "model"})):
        files = rendered("fill-mask", instance_type="Standard_D8as_v4", **options)
        copied = [line.split()[1:] for line in files["environment/Dockerfile"].splitlines() if line.startswith("COPY ")]
        assert ["environment/requirements.lock", "."] in copied
        assert {source for source, target in (each for each in copied if len(each) == 2)} - {
            "environment/requirements.lock"
        } == carried
        kept = ["environment/requirements.lock", *sorted(carried)]
        assert files[".dockerignore"].split() == ["*", *(f"!{each}" for each in kept)]


@pytest.mark.parametrize("device", SIZES)
def test_a_workspace_is_one_by_kaitos_schema_with_the_plans_probes(tmp_path, device):
    _, plan = spec_and_plan("text-generation", device)
    files = rendered("text-generation", device, **(KAITO | {"instance_type": SIZES[device]}))
    workspace = yaml.safe_load(files["workspace.yml"])
    jsonschema.validate(workspace, CRD["schema"])
    assert "endpoint.yml" not in files
    (container,) = workspace["inference"]["template"]["spec"]["containers"]
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": 5000}
    assert container["readinessProbe"]["failureThreshold"] == plan.readiness.failure_threshold
    assert container["livenessProbe"]["initialDelaySeconds"] == plan.liveness.initial_delay
    gpus = container["resources"]["limits"].get("nvidia.com/gpu")
    assert gpus == (None if device == "cpu" else "1")
    write(tmp_path, files)
    assert _settings(tmp_path)["MII_AZURE_LOG_FORMAT"] == "json"  # what the container's target of parity starts with


@pytest.mark.parametrize(
    "change", [{"resource": {}}, {"inference": []}, {"resource": {"labelSelector": {}, "count": "2"}}]
)
def test_the_schema_refuses_what_it_should(change):
    workspace = yaml.safe_load(rendered("fill-mask", instance_type="Standard_D8as_v4", **KAITO)["workspace.yml"])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(workspace | change, CRD["schema"])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"kind": "template"}, "A deployment template needs image and registry"),
        ({"kind": "template", "registry": "shared", "image": "mine.azurecr.io/qa", "secrets": {}}, None),
        ({**TEMPLATE, "image": "mine.azurecr.io/qa:1"}, "image"),
        ({**TEMPLATE, "compute": "cluster"}, "A deployment template has no compute"),
        ({"kind": "managed", "registry": "shared"}, "A managed endpoint has no registry"),
        ({**KAITO, "instance_count": 2}, "one pod only"),
        ({**KAITO, "identities": ["x"]}, "the cluster's own"),
    ],
)
def test_what_a_kind_needs_is_told(options, told):
    fields = {"task": "fill-mask", "model": "m", "name": "my-qa", **options}
    if told is None:
        make_spec(**fields)
        return
    with pytest.raises(SpecError, match=told):
        make_spec(**fields)


def test_kaito_serves_by_the_http_host_and_on_its_own_sizes():
    assert make_spec(task="fill-mask", model="m", name="my-qa", server="azmlinfsrv", **KAITO).server == "http"
    with pytest.raises(NotAvailable, match="N and D series"):
        rendered("fill-mask", instance_type="Standard_F8s_v2", **KAITO)
    with pytest.raises(SpecError, match="only a reference"):
        rendered("fill-mask", version=None, model="azureml:m:1", instance_type="Standard_D8as_v4", **KAITO)


@pytest.mark.parametrize("options", [TEMPLATE, KAITO, {**KAITO, "image": "ghcr.io/mine/qa"}])
def test_the_script_is_one_that_bash_reads(tmp_path, options):
    write(tmp_path, rendered("fill-mask", instance_type="Standard_D8as_v4", **options))
    assert subprocess.run(["bash", "-n", tmp_path / "deploy.sh"]).returncode == 0
