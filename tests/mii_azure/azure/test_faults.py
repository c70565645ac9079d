"""What goes wrong in Azure: nothing is made twice, what exists is told, and a rerun completes."""

import gc
import os
import signal

import pytest

from mii_azure import errors
from mii_azure.operations.deploy import deploy
from mii_azure.operations.rollout import rollout
from mii_azure.sdk.generate import generate
from tests.mii_azure.azure.conftest import Credential
from tests.mii_azure.azure.fake_arm import Fault
from tests.mii_azure.azure.fake_arm.arm import refusal
from tests.mii_azure.azure.fake_arm.cloud import Answer
from tests.mii_azure.azure.test_goldens import attach


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("mii_azure.azure.live.PAUSE_S", 0.01)
    monkeypatch.setattr("mii_azure.azure.endpoints._POLL_S", 0.05)


@pytest.fixture(autouse=True)
def interruptible():
    """Python's own answer to Ctrl-C, which a shell takes from what it starts in the background.

    Nothing is collected meanwhile: an exception that a signal raises in a finalizer goes no further.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.disable()
    yield
    gc.enable()
    signal.signal(signal.SIGINT, before)


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
    dropped = Fault("PUT", "/model/config.json", Answer(0, drop=True))
    cloud.faults.append(dropped)
    completes(cloud, client, bundle)
    assert not dropped.times
    assert len([sent for sent in cloud.sent("PUT", dropped.where) if "comp" not in sent.query]) == 2


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


@pytest.mark.parametrize(
    ("method", "where", "at"),
    [
        ("PUT", "^management.*/environments/", "environment"),
        ("PUT", "^fakestore.*/model/", "model"),
        ("PUT", "^management.*/models/", "model"),
        ("PUT", "onlineEndpoints/[^/]+$", "endpoint"),
        ("PUT", "^fakestore.*/code/", "deployment blue"),
        ("POST", r"\.inference\.", "smoke request to blue"),
    ],
)
def test_ctrl_c_in_any_step_is_explained_and_a_rerun_makes_nothing_twice(method, where, at, cloud, client, bundle):
    def interrupt(request):
        os.kill(os.getpid(), signal.SIGINT)

    cloud.faults.append(Fault(method, where, interrupt))
    with pytest.raises(errors.Interrupted) as caught:
        deploy(bundle, client)
    assert f"Stopped while at: {at}." in str(caught.value)
    assert f"goes on from: {at}." in str(caught.value)
    completes(cloud, client, bundle)


def test_an_endpoint_whose_operation_fails_is_made_again_by_a_rerun(cloud, client, bundle):
    cloud.arm.failures["my-qa"] = {"code": "InternalServerError", "message": "An internal error occurred"}
    with pytest.raises(errors.AzureError, match="Done before: environment, model"):
        deploy(bundle, client)
    assert cloud.arm.endpoint("my-qa")["properties"]["provisioningState"] == "Failed"
    completes(cloud, client, bundle)


def test_traffic_that_is_not_set_is_set_by_a_rerun(cloud, client, bundle):
    cloud.faults.append(Fault("PUT", "onlineEndpoints/[^/]+$", refusal(409, "Conflict", "busy"), times=9, after=1))
    with pytest.raises(errors.AzureError, match="goes on from: traffic"):
        deploy(bundle, client)
    assert not cloud.arm.endpoint("my-qa")["properties"]["traffic"]
    cloud.faults.clear()
    completes(cloud, client, bundle)


def test_a_batch_deployment_that_fails_is_completed_by_a_rerun(cloud, client, tiny, tmp_path):
    attach(cloud, "cluster", "batch")
    model = str(tiny("bert", "question-answering"))
    bundle = generate("question-answering", model, "My-qa", output=tmp_path / "b", kind="batch", compute="cluster")
    cloud.arm.failures["blue"] = {"code": "OutOfQuota", "message": "Not enough quota"}
    with pytest.raises(errors.QuotaExceeded, match="Done before: environment, model, endpoint") as caught:
        deploy(bundle, client)
    assert caught.value.request_id == "req-0001"
    assert not cloud.arm.endpoint_of("batch", "my-qa")["properties"].get("defaults")
    assert deploy(bundle, client).traffic == {"blue": 100}
    assert set(cloud.arm.made.values()) == {1}


def test_ctrl_c_in_a_rollout_leaves_the_traffic_as_it_is_and_a_rerun_goes_on(cloud, client, bundle, second):
    deploy(bundle, client)

    def interrupt(request):
        if (cloud.arm.endpoint("my-qa")["properties"].get("traffic") or {}).get("green") == 50:
            os.kill(os.getpid(), signal.SIGINT)

    cloud.faults.append(Fault("POST", r"\.inference\.", interrupt, times=1000))
    with pytest.raises(errors.Interrupted, match="Stopped while at: gate 50 %") as caught:
        rollout(second, client, hold_s=0, parity=False)
    assert "gate smoke" in str(caught.value)
    assert cloud.arm.endpoint("my-qa")["properties"]["traffic"] == {"blue": 50, "green": 50}
    cloud.faults.clear()
    done = rollout(second, client, hold_s=0, parity=False)
    assert done.gates == ("deployment", "smoke", "50 %", "100 %")
    assert set(cloud.arm.made.values()) == {1}


def test_a_rollback_that_fails_says_what_to_do_by_hand(cloud, client, bundle, second):
    deploy(bundle, client)
    unwell = Answer(424, {"error": {"code": "internal", "message": "broken"}})
    cloud.faults.append(
        Fault("POST", r"\.inference\.", lambda r: unwell if "green" in str(r.headers) else None, times=999, after=2)
    )
    cloud.faults.append(Fault("PUT", "onlineEndpoints/[^/]+$", refusal(403, "AuthorizationFailed", "no"), 99, after=1))
    with pytest.raises(
        errors.RolloutFailed, match=r"no\. ROLLING BACK FAILED TOO \(.* Azure says: no\): give blue 100 % by hand"
    ):
        rollout(second, client, hold_s=0, parity=False)
