"""Uploads through the real storage client into Azurite: what arrives is the bundle, also after a cut."""

import pytest

from mii_azure import errors
from mii_azure.bundle.manifest import load_manifest
from mii_azure.operations.deploy import deploy, place
from mii_azure.operations.steps import Journal
from tests.mii_azure.azure.fake_arm import Fault
from tests.mii_azure.azure.fake_arm.azurite import Azurite
from tests.mii_azure.azure.fake_arm.cloud import Answer
from tests.mii_azure.azure.test_deploy import files
from tests.npm import modules

pytestmark = pytest.mark.npm


@pytest.fixture
def store(cloud, tmp_path):
    """Azurite in place of the fake blob store."""
    azurite = Azurite(modules("azurite"), tmp_path)
    cloud.blobs = azurite
    yield azurite
    azurite.close()


def arrived(cloud, store, bundle):
    """{folder of the bundle: what Azurite holds of it}."""
    bodies = {name: cloud.sent("PUT", f"^management.*/{name}/")[-1].json["properties"] for name in ("codes", "models")}
    code = bodies["codes"]["codeUri"].split(".test/", 1)[1]
    model = "models/" + bodies["models"]["modelUri"].split("/paths/", 1)[1]
    return {"code": store.tree(f"{code}/"), "model": store.tree(f"{model.rstrip('/')}/")}


def test_azurite_holds_the_bundle_after_a_deployment(cloud, client, bundle, store):
    done = deploy(bundle, client)
    assert done.answer["answer"]
    assert arrived(cloud, store, bundle) == {name: files(bundle / name) for name in ("code", "model")}
    signed = [request for request in cloud.log if request.host.startswith("fakestore.") and request.method == "PUT"]
    assert {request.headers.get("authorization", "SAS")[:9] for request in signed} == {"SAS", "SharedKey"}


@pytest.mark.parametrize("where", ["/model/", "/code/", "/environment/"])
def test_an_upload_cut_in_half_is_completed_by_a_rerun(where, cloud, client, bundle, store):
    half = len(list((bundle / where.strip("/")).iterdir())) // 2
    gone = Answer(403, None, {"x-ms-error-code": "AuthenticationFailed"})
    cloud.faults.append(Fault("PUT", f"^fakestore.*{where}", gone, times=999, after=half))
    with pytest.raises(errors.AzureError, match=r"Done before|Nothing was created before"):
        deploy(bundle, client)
    cloud.faults.clear()
    digest = load_manifest(bundle)["bundle"]
    place(bundle, client, "blue", digest, Journal(print, "Again"))
    assert arrived(cloud, store, bundle) == {name: files(bundle / name) for name in ("code", "model")}
    assert set(cloud.arm.made.values()) == {1}


def test_a_store_that_refuses_the_key(cloud, client, bundle, store, monkeypatch):
    monkeypatch.setattr(store, "secrets", lambda: {"secretsType": "AccountKey", "key": "d3Jvbmc="})
    with pytest.raises(errors.AzureError) as caught:
        deploy(bundle, client)
    assert isinstance(caught.value, errors.AccessDenied | errors.UploadFailed)
    assert caught.value.azure_code == "AuthorizationFailure"  # Azurite's own word
    assert "Storage Blob Data Contributor" in str(caught.value)
