"""What goes wrong in Azure: nothing is made twice, what exists is told, and a rerun completes."""

import os
import signal

import pytest

from mii_azure import errors
from mii_azure.azure.deploy import deploy
from tests.azure.conftest import Credential
from tests.azure.fake_arm import Fault
from tests.azure.fake_arm.arm import refusal
from tests.azure.fake_arm.cloud import Answer

LIVENESS = {"code": "ResourceNotReady", "message": "Liveness probe failed: HTTP probe failed with statuscode: 502"}


def completes(cloud, client, bundle) -> None:
    """The same command again goes through, and nothing exists twice."""
    assert deploy(bundle, client).traffic == {"blue": 100}
    assert set(cloud.arm.made.values()) == {1}
    assert sum("deployments" in key for key in cloud.arm.made) == 1


def test_a_container_that_does_not_get_ready(cloud, client, bundle):
    cloud.arm.failures["blue"] = LIVENESS
    with pytest.raises(errors.ContainerNotReady) as caught:
        deploy(bundle, client)
    told = str(caught.value)
    assert "ValueError: weights are missing" in told  # out of the container's log
    assert "initial_delay" in told
    assert "Done before: environment, model, endpoint." in told
    assert caught.value.azure_code == "ResourceNotReady"
    assert caught.value.request_id == "req-0001"
    assert caught.value.to_dict()["error"]["request_id"] == "req-0001"
    completes(cloud, client, bundle)


@pytest.mark.parametrize(
    ("code", "message", "expected"),
    [
        ("OutOfQuota", "Not enough quota available for Standard_F8s_v2. Additional needed: 8", errors.QuotaExceeded),
        ("SkuNotAvailable", "The requested VM size is not offered in eastus", errors.InstanceTypeNotOffered),
        ("OutOfCapacity", "The region has no capacity of this size now", errors.NoCapacity),
        ("ImageBuildFailure", "Failed to build the image", errors.ImageNotBuilt),
        ("BadArgument", "Unauthorized: cannot pull from the container registry, denied", errors.AccessDenied),
        ("Unheard", "Something else", errors.AzureError),
    ],
)
def test_what_a_failed_operation_means(code, message, expected, cloud, client, bundle):
    cloud.arm.failures["blue"] = {"code": code, "message": message}
    with pytest.raises(expected, match=message) as caught:
        deploy(bundle, client)
    assert type(caught.value) is expected
    completes(cloud, client, bundle)


def test_refusals_at_the_door(cloud, client, bundle):
    where = "onlineEndpoints/[^/]+$"
    for status, code, message, expected in (
        (409, "Conflict", "The endpoint name is already taken in this region", errors.NameTaken),
        (403, "AuthorizationFailed", "The client does not have authorization to write", errors.AccessDenied),
    ):
        cloud.faults.append(Fault("PUT", where, refusal(status, code, message)))
        with pytest.raises(expected, match=message):
            deploy(bundle, client)
    completes(cloud, client, bundle)


def test_too_many_requests_and_a_service_in_trouble_are_waited_for(cloud, client, bundle):
    cloud.faults.append(Fault("PUT", "deployments/blue$", refusal(429, "Throttled", "wait", **{"Retry-After": "1"})))
    cloud.faults.append(
        Fault("PUT", "/environments/", Answer(503, {"error": {"code": "Busy", "message": "b"}}), times=2)
    )
    cloud.faults.append(Fault("GET", "/workspaces/space$", Answer(500, {"error": {"code": "E", "message": "e"}})))
    completes(cloud, client, bundle)
    assert len(cloud.sent("PUT", "deployments/blue$")) == 2


def test_a_service_that_stays_in_trouble(cloud, client, bundle):
    cloud.faults.append(Fault("PUT", "deployments/blue$", Answer(503, {"error": {"code": "Busy", "message": "b"}}), 99))
    with pytest.raises(errors.AzureUnavailable, match="Done before: environment, model, endpoint"):
        deploy(bundle, client)
    cloud.faults.clear()
    completes(cloud, client, bundle)


def test_short_tokens_are_renewed_on_the_way(cloud, connect, bundle):
    credential = Credential(lifetime_s=1)
    completes(cloud, connect(credential), bundle)
    assert credential.count > 10


def test_a_sign_in_that_expires_midway(cloud, client, connect, bundle):
    def expire(request):
        cloud.arm.refused_tokens.add(request.headers["authorization"])
        return refusal(401, "ExpiredAuthenticationToken", "The access token has expired.")

    cloud.faults.append(Fault("PUT", "onlineEndpoints/[^/]+$", expire))
    with pytest.raises(errors.NotSignedIn, match="az login") as caught:
        deploy(bundle, client)
    assert "Done before: environment, model." in str(caught.value)
    cloud.arm.refused_tokens.clear()
    completes(cloud, connect(), bundle)


@pytest.mark.parametrize("after", [0, 2])
def test_an_upload_that_is_cut(after, cloud, client, bundle):
    """`after` files of the model arrive; with 0 the very first one, which azure-ai-ml looks at, is missing."""
    first = sorted(path.name for path in (bundle / "model").iterdir())[0]
    where = f"/model/{first}" if after == 0 else "/model/"
    cloud.faults.append(Fault("PUT", where, Answer(403, None, {"x-ms-error-code": "AuthenticationFailed"}), 99, after))
    with pytest.raises(errors.UploadFailed, match="cut short"):
        deploy(bundle, client)
    arrived = [path for path in cloud.blobs.blobs if "/model/" in path]
    assert 0 < len(arrived) < len(list((bundle / "model").iterdir()))
    cloud.faults.clear()
    completes(cloud, client, bundle)
    tree = next(path.rpartition("/")[0] for path in cloud.blobs.blobs if path.endswith("/config.json"))
    assert cloud.blobs.tree(f"{tree}/") == {path.name: path.read_bytes() for path in (bundle / "model").iterdir()}


def test_an_upload_whose_connection_drops_is_sent_again(cloud, client, bundle):
    cloud.faults.append(Fault("PUT", "/model/config.json", Answer(0, drop=True)))
    completes(cloud, client, bundle)


def test_a_client_without_progress_does_not_wait_for_ever_on_a_failed_upload(cloud, connect, bundle):
    cloud.faults.append(Fault("PUT", "/model/", Answer(403, None, {"x-ms-error-code": "AuthenticationFailed"}), 99))
    quiet = connect(show_progress=False)
    with pytest.raises(errors.UploadFailed):
        deploy(bundle, quiet)
    assert quiet._operation_config.show_progress is False


def test_ctrl_c_says_what_exists_and_a_rerun_waits_for_what_was_begun(cloud, client, bundle, monkeypatch):
    monkeypatch.setattr("mii_azure.azure.endpoints._POLL_S", 0.05)
    cloud.arm.polls = 3

    def interrupt(request):
        os.kill(os.getpid(), signal.SIGINT)

    cloud.faults.append(Fault("GET", "^management.*/operations/1", interrupt))
    with pytest.raises(errors.Interrupted) as caught:
        deploy(bundle, client)
    assert caught.value.exit_code == 130
    assert "Stopped while at: deployment blue" in str(caught.value)
    assert "Done before: environment, model, endpoint. The same command goes on from: deployment blue." in str(
        caught.value
    )
    cloud.arm.polls = 0
    completes(cloud, client, bundle)
    assert len(cloud.sent("PUT", "deployments/blue$")) == 1
