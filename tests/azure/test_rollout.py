"""rollout: every gate passes in order, or the traffic goes back; parity against a live endpoint."""

import pytest

import mii_azure
from mii_azure import errors
from mii_azure.azure.deploy import deploy
from mii_azure.azure.rollout import rollout
from tests.azure.fake_arm import Fault
from tests.azure.fake_arm.cloud import Answer

GATES = ("deployment", "smoke", "mirror", "10 %", "50 %", "100 %")
UNWELL = Answer(424, {"error": {"code": "internal", "message": "broken"}}, {"ms-azureml-model-error-statuscode": "500"})


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("mii_azure.azure.live.PAUSE_S", 0.01)


def traffic(cloud) -> list[tuple[dict, dict]]:
    sent = [request.json["properties"] for request in cloud.sent("PUT", "onlineEndpoints/[^/]+$")]
    return [(body.get("traffic") or {}, body.get("mirrorTraffic") or {}) for body in sent]


def test_every_gate_and_then_the_old_slot_goes(cloud, client, bundle, second):
    deploy(bundle, client)
    cloud.log.clear()
    done = rollout(second, client, hold_s=0, parity=False)
    assert (done.slot, done.replaced, done.gates) == ("green", "blue", GATES)
    assert traffic(cloud) == [
        ({"blue": 100}, {"green": 10}),
        ({"blue": 90, "green": 10}, {}),
        ({"blue": 50, "green": 50}, {}),
        ({"green": 100}, {}),
    ]
    assert cloud.scoring.mirrored["green"] > 0
    assert cloud.arm.deployment("my-qa", "blue") is None
    again = rollout(second, client, hold_s=0, parity=False)
    assert (again.slot, again.replaced, again.gates) == ("green", None, ("deployment", "smoke"))
    back = rollout(bundle, client, hold_s=0, parity=False, keep_old=True)
    assert (back.slot, back.replaced) == ("blue", "green")
    assert cloud.arm.deployment("my-qa", "green") is not None


def test_the_first_rollout_is_a_deployment(cloud, client, bundle):
    done = rollout(bundle, client, hold_s=0)
    assert (done.slot, done.replaced) == ("blue", None)


@pytest.mark.parametrize("gate", ["deployment", "smoke", "mirror", "50 %"])
def test_a_gate_that_fails_rolls_back_and_is_named(gate, cloud, client, bundle, second):
    deploy(bundle, client)
    if gate == "deployment":
        cloud.arm.failures["green"] = {"code": "OutOfQuota", "message": "Not enough quota"}
    else:

        def unwell(request):
            shares = cloud.arm.endpoint("my-qa")["properties"]
            now = "mirror" if shares.get("mirrorTraffic") else f"{(shares.get('traffic') or {}).get('green', 'no')} %"
            now = "smoke" if now == "no %" else now
            return UNWELL if now == gate and request.headers.get("azureml-model-deployment") == "green" else None

        cloud.faults.append(Fault("POST", r"\.inference\.", unwell, times=10**6))
    with pytest.raises(errors.RolloutFailed, match=f"The gate '{gate}' failed") as caught:
        rollout(second, client, hold_s=0, parity=False)
    assert "All traffic is with blue again" in str(caught.value)
    shares = cloud.arm.endpoint("my-qa")["properties"]
    assert (shares["traffic"], shares.get("mirrorTraffic") or {}) == ({"blue": 100}, {})
    cloud.faults.clear()
    assert rollout(second, client, hold_s=0, parity=False).replaced == "blue"


def test_a_rollout_goes_on_from_where_it_was_interrupted(cloud, client, bundle, second):
    deploy(bundle, client)
    deploy(second, client, slot="green", traffic=50)
    done = rollout(second, client, hold_s=0, parity=False)
    assert done.gates == ("deployment", "smoke", "50 %", "100 %")
    assert cloud.arm.deployment("my-qa", "blue") is None


def test_parity_with_a_live_endpoint(cloud, client, bundle):
    deploy(bundle, client)
    verdict = mii_azure.parity(bundle, ["grpc", "endpoint:My-qa/blue"], ml_client=client)
    assert verdict.agree, verdict.comparisons
    assert {entry.status for entry in verdict.comparisons} >= {200, 400}  # the model's own, not 424
    with pytest.raises(errors.SpecError, match="names no endpoint"):
        mii_azure.parity(bundle, ["grpc", "endpoint:"], ml_client=client)


def test_a_slot_that_answers_otherwise_than_the_local_runner_takes_no_traffic(cloud, client, bundle, second):
    deploy(bundle, client)
    other = {"answer": "Bob", "score": 0.5, "start": 0, "end": 3}

    def lies(request):
        new = request.headers.get("azureml-model-deployment") == "green"
        return Answer(200, other) if new and b"metadata" not in request.body else None

    cloud.faults.append(Fault("POST", r"\.inference\.", lies, times=10**6))
    with pytest.raises(
        errors.RolloutFailed, match=r"The gate 'parity' failed: green answers .* unlike the local runner"
    ):
        rollout(second, client, hold_s=0)
    assert cloud.arm.endpoint("my-qa")["properties"]["traffic"] == {"blue": 100}
