"""deploy through Microsoft's own client against the fake cloud: what is sent, in what order, and once."""

import json
import re
import shutil
from pathlib import Path

import pytest

import mii_azure
from mii_azure.azure import endpoints
from mii_azure.bundle.manifest import load_manifest
from mii_azure.checks.check import check
from mii_azure.errors import AzureError, BundleEdited, InvalidName, SpecError
from mii_azure.operations.deploy import deploy, intact, place
from mii_azure.operations.steps import Journal
from mii_azure.sdk.generate import generate
from tests.mii_azure.azure.conftest import lightened, serve

MADE = {
    r"codes/[^/]+/versions/1",
    r"environments/my-qa-env/versions/[0-9a-f]{12}",
    r"models/my-qa-model/versions/[0-9a-f]{12}",
    r"onlineendpoints/my-qa",
    r"onlineendpoints/my-qa/deployments/blue",
}


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def test_a_deployment_answers_and_what_was_uploaded_is_the_bundle(cloud, client, whole):
    said: list[str] = []
    done = mii_azure.deploy(whole, ml_client=client, slot="blue", progress=said.append)
    assert done.traffic == {"blue": 100}
    assert done.answer["answer"]
    assert said == ["environment", "model", "endpoint", "deployment blue", "smoke request to blue", "traffic"]
    made = cloud.arm.made
    assert set(made.values()) == {1}
    assert all(sum(bool(re.fullmatch(pattern, key)) for key in made) == 1 for pattern in MADE), made
    assert len(made) == len(MADE)
    trees = {"/".join(path.split("/")[:4]) for path in cloud.blobs.blobs if path.startswith("models/")}
    uploaded = {path.rsplit("/", 1)[1]: cloud.blobs.tree(f"{path}/") for path in trees}
    assert uploaded == {name: files(whole / name) for name in ("model", "environment")}
    code = next(path.partition("/")[0] for path in cloud.blobs.blobs if path.startswith("code-"))
    assert cloud.blobs.tree(f"{code}/code/") == files(whole / "code")


def test_the_second_run_makes_and_sends_nothing(cloud, client, bundle):
    first = deploy(bundle, client)
    made, state = dict(cloud.arm.made), json.dumps(cloud.arm.resources, sort_keys=True)
    cloud.log.clear()
    assert deploy(bundle, client) == first
    assert dict(cloud.arm.made) == made
    assert json.dumps(cloud.arm.resources, sort_keys=True) == state
    assert cloud.sent("PUT", ".") == []


def test_an_expired_token_of_the_endpoint_is_renewed(cloud, client, tiny, tmp_path):
    from mii_azure.azure.live import Live

    model = str(tiny("bert", "question-answering"))
    whole = generate("question-answering", model, "My-qa", output=tmp_path / "bundle", auth_mode="aml_token")
    bundle = lightened(whole)
    serve(cloud, bundle, whole)
    deploy(bundle, client)
    live = Live(client, "my-qa")
    cloud.arm.tokens += 1
    assert live.send((bundle / "requests/sample.json").read_text()).status == 200
    live.close()


def test_two_slots_and_whose_traffic_it_is(cloud, client, bundle, second):
    deploy(bundle, client)
    said: list[str] = []
    done = deploy(second, client, slot="green", say=said.append)
    assert done.traffic == {"blue": 100}
    assert "green takes no traffic" in said[-1]
    shared = deploy(second, client, slot="green", traffic=30)
    assert shared.traffic == {"blue": 70, "green": 30}
    assert {key for key in cloud.arm.made if "deployments" in key} == {
        "onlineendpoints/my-qa/deployments/blue",
        "onlineendpoints/my-qa/deployments/green",
    }
    # One environment for both; one model each.
    assert sum("environments/" in key for key in cloud.arm.made) == 1
    assert sum("models/" in key for key in cloud.arm.made) == 2


def test_the_bodies_that_the_client_sends(cloud, client, bundle):
    deploy(bundle, client)
    body = cloud.sent("PUT", "deployments/blue$")[0].json
    scope = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/group/providers"
    properties = body["properties"]
    assert properties["model"].startswith(
        f"{scope}/Microsoft.MachineLearningServices/workspaces/space/models/My-qa-model/"
    )
    assert properties["codeConfiguration"]["scoringScript"] == "score.py"
    assert all(isinstance(value, str) for value in properties["environmentVariables"].values())
    assert properties["livenessProbe"]["successThreshold"] == 1
    assert body["sku"] == {"name": "Default", "capacity": 1}
    assert body["tags"][endpoints.TAG] == load_manifest(bundle)["bundle"]


def test_a_registered_model_is_used_as_it_is(cloud, client, tmp_path):
    reference = "azureml:someones-model:7"
    bundle = generate("fill-mask", reference, "my-mask", output=tmp_path / "b", instance_type="Standard_F8s_v2")
    _, model, _ = place(bundle, client, "blue", intact(bundle), Journal(print, "Again"))
    assert model.endswith("/models/someones-model/versions/7")
    assert cloud.sent("PUT", "^management.*/models/") == []


STORE = "azureml://datastores/workspaceblobstore/paths/models/bert"
JOB = "azureml://jobs/brave_job/outputs/artifacts/paths/model"


@pytest.mark.parametrize("reference", [STORE, JOB])
def test_files_in_a_datastore_or_of_a_job_are_registered_without_an_upload(reference, cloud, client, tmp_path):
    bundle = generate("fill-mask", reference, "my-mask", output=tmp_path / "b", instance_type="Standard_F8s_v2")
    assert check(bundle) == []
    for _ in range(2):
        _, model, _ = place(bundle, client, "blue", intact(bundle), Journal(print, "Again"))
    assert re.fullmatch(r"azureml:my-mask-model:[0-9a-f]{12}", model)
    (sent,) = cloud.sent("PUT", "^management.*/models/")
    assert sent.json["properties"]["modelUri"].endswith(reference.removeprefix("azureml://"))
    assert not any("models/" in blob for blob in cloud.blobs.blobs if "LocalUpload" not in blob)
    deployed = cloud.sent("PUT", "deployments/blue$")[0].json["properties"]["model"]
    assert deployed.endswith(f"/models/my-mask-model/versions/{model.rpartition(':')[2]}")


def test_what_azure_ai_ml_refuses_itself_is_told_in_a_sentence(cloud, client, tmp_path):
    reference = "azureml:someones@latest"
    bundle = generate("fill-mask", reference, "my-mask", output=tmp_path / "b", instance_type="Standard_F8s_v2")
    with pytest.raises(AzureError) as caught:
        deploy(bundle, client)
    assert caught.value.message.endswith("Azure says: Asset someones does not exist in workspace space.")


def test_what_is_refused_before_anything_is_sent(cloud, client, bundle, tmp_path):
    for slot in ("Blue", "b", "bl_ue"):
        with pytest.raises(InvalidName):
            deploy(bundle, client, slot=slot)
    with pytest.raises(SpecError, match="percentage"):
        deploy(bundle, client, traffic=101)
    edited = Path(shutil.copytree(bundle, tmp_path / "edited"))
    (edited / "code" / "score.py").write_text("# edited\n")
    with pytest.raises(BundleEdited, match=r"score\.py"):
        deploy(edited, client)
    assert cloud.log == []


def test_by_task_and_model(cloud, client, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("MII_AZURE_HOME", str(tmp_path / "home"))
    call = {"task": "question-answering", "model": str(tiny("bert", "question-answering")), "deployment_name": "My-qa"}
    serve(cloud, generate(call["task"], call["model"], "My-qa", output=tmp_path / "same"))
    done = mii_azure.deploy(**call, deployment_type=mii_azure.DeploymentType.AML, ml_client=client)
    assert done.traffic == {"blue": 100}
