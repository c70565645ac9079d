"""The YAML as azure-ai-ml reads it, and what it would put on the wire."""

import warnings
from pathlib import Path
from typing import Any

import pytest

from scoring.schema.registry import TASKS
from tests.mii_azure.bundles import SKUS, rendered, spec_and_plan


def submit(folder: Path, files: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Write the rendered files, load each as `az ml` does, and return the request bodies."""
    for path, text in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    (folder / "model").mkdir(exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # azure-ai-ml's own, about its dependencies
        from azure.ai.ml import load_environment, load_model, load_online_deployment, load_online_endpoint

        environment = load_environment(folder / "environment.yml")
        environment.validate()
        entities = {
            "endpoint": load_online_endpoint(folder / "endpoint.yml")._to_rest_online_endpoint(location="x"),
            "deployment": load_online_deployment(folder / "deployment.yml")._to_rest_object(location="x"),
            "environment": environment._to_rest_object(),
        }
        if "model.yml" in files:
            entities["model"] = load_model(folder / "model.yml")._to_rest_object()
    return {name: entity.as_dict() for name, entity in entities.items()}


@pytest.mark.parametrize("device", SKUS)
@pytest.mark.parametrize("task", TASKS)
def test_every_task_and_device_reaches_the_wire_as_planned(tmp_path, task, device):
    _, plan = spec_and_plan(task, device)
    sent = submit(tmp_path, rendered(task, device))
    deployment = sent["deployment"]
    properties = deployment["properties"]
    assert properties["instanceType"] == SKUS[device]
    assert properties["codeConfiguration"] == {"codeId": "code", "scoringScript": "score.py"}
    assert properties["livenessProbe"]["successThreshold"] == 1
    assert properties["requestSettings"].keys() == {"maxConcurrentRequestsPerInstance", "requestTimeout"}
    assert properties["requestSettings"]["maxConcurrentRequestsPerInstance"] == plan.max_concurrent_requests
    assert all(type(value) is str for value in properties["environmentVariables"].values())
    assert properties["model"] == f"My-{task}-model:0123456789ab"
    assert sent["environment"]["properties"]["inferenceConfig"] == {
        "livenessRoute": {"port": 5001, "path": "/"},
        "readinessRoute": {"port": 5001, "path": "/"},
        "scoringRoute": {"port": 5001, "path": "/score"},
    }
    assert sent["environment"]["properties"]["build"] == {"contextUri": "environment", "dockerfilePath": "Dockerfile"}
    assert Path(sent["model"]["properties"]["modelUri"]).name == "model"


@pytest.mark.parametrize(("mode", "wire"), [("key", "Key"), ("aml_token", "AMLToken"), ("aad_token", "AADToken")])
def test_the_way_to_authenticate_and_the_number_of_instances(tmp_path, mode, wire):
    sent = submit(tmp_path, rendered("fill-mask", auth_mode=mode, instance_count=3))
    assert sent["endpoint"]["properties"]["authMode"] == wire
    assert sent["deployment"]["sku"]["capacity"] == 3


@pytest.mark.parametrize(
    "reference",
    [
        "azureml:my-model:3",
        "azureml:my-model@latest",
        "azureml://registries/azureml/models/bert/versions/3",
        "azureml:/subscriptions/s/resourceGroups/g/providers/Microsoft.MachineLearningServices"
        "/workspaces/w/models/m/versions/1",
    ],
)
def test_a_referenced_model_is_passed_on_as_it_is(tmp_path, reference):
    files = rendered("fill-mask", version=None, model=reference)
    assert "model.yml" not in files
    sent = submit(tmp_path, files)
    assert sent["deployment"]["properties"]["model"] in (reference, reference.removeprefix("azureml:"))
