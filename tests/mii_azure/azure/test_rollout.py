"""rollout: every gate passes in order, or the traffic goes back; parity against a live endpoint."""

import re

import pytest
import yaml

import mii_azure
from mii_azure import errors
from mii_azure.operations import operate
from mii_azure.operations.deploy import deploy, intact
from mii_azure.operations.metrics_gate import Allowed
from mii_azure.operations.rollout import rollout
from mii_azure.sdk.generate import generate
from mii_azure.verdict.outcome import Comparison, Verdict
from mii_azure.verdict.tokens.judge import TokenVerdict
from mii_azure.verdict.verdict_file import write_verdict
from tests.mii_azure.azure.conftest import lightened, serve
from tests.mii_azure.azure.fake_arm import Fault
from tests.mii_azure.azure.fake_arm.arm import refusal
from tests.mii_azure.azure.fake_arm.cloud import Answer

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


def judged(cloud, new, old):
    cloud.arm.subscription.metrics = {"green": new, "blue": old}


@pytest.mark.parametrize(
    ("new", "old", "reason"),
    [
        ({"2xx": 96, "5xx": 4, "p90": 80}, {"2xx": 100, "p90": 80}, "4.0 % of its requests failed"),
        ({"2xx": 50, "p90": 200}, {"2xx": 100, "4xx": 9, "p90": 80}, "90th percentile is 200 ms, and 80 ms"),
    ],
)
def test_a_slot_that_does_worse_by_azure_monitor_is_rolled_back(new, old, reason, cloud, client, bundle, second):
    deploy(bundle, client)
    judged(cloud, new, old)
    with pytest.raises(errors.RolloutFailed, match=r"The gate 'metrics at 10 %' failed: green does worse") as caught:
        rollout(second, client, hold_s=0, parity=False, watch=Allowed())
    assert reason in str(caught.value)
    assert cloud.arm.endpoint("my-qa")["properties"]["traffic"] == {"blue": 100}
    said: list[str] = []
    judged(cloud, {}, old)  # Azure Monitor is behind: no numbers of the new slot yet
    done = rollout(second, client, hold_s=0, parity=False, keep_old=True, watch=Allowed(), say=said.append)
    assert [gate for gate in done.gates if "metrics" in gate] == ["metrics at 10 %", "metrics at 50 %"]
    assert sum("knows of no requests to green" in text for text in said) == 2


def test_a_slot_that_does_as_well_by_azure_monitor_goes_on(cloud, client, bundle, second):
    deploy(bundle, client)
    judged(cloud, {"2xx": 99, "5xx": 1, "p90": 110}, {"2xx": 99, "5xx": 1, "p90": 80})
    assert rollout(second, client, hold_s=0, parity=False, watch=Allowed()).replaced == "blue"
    asked = cloud.sent("GET", "Microsoft.Insights/metrics$")
    assert all(re.fullmatch(r"\S+Z/\S+Z", request.query["timespan"]) for request in asked)


def test_without_the_permission_to_read_azure_monitor_nothing_is_begun(cloud, client, bundle, second):
    deploy(bundle, client)
    cloud.faults.append(Fault("GET", "Insights/metrics$", refusal(403, "AuthorizationFailed", "no read"), times=9))
    made = dict(cloud.arm.made)
    with pytest.raises(errors.AccessDenied, match="no read"):
        rollout(second, client, hold_s=0, parity=False, watch=Allowed())
    assert dict(cloud.arm.made) == made


def test_autoscale_follows_the_slot_that_serves(cloud, client, tiny, tmp_path, second):
    model = str(tiny("bert", "question-answering"))
    whole = generate("question-answering", model, "My-qa", output=tmp_path / "bundle", max_instances=4)
    bundle = lightened(whole)
    serve(cloud, bundle, whole)

    def rules():
        return sorted(path.rsplit("/", 1)[1] for path in cloud.arm.resources if "autoscalesettings" in path)

    deploy(bundle, client)
    assert rules() == ["autoscale-my-qa-blue"]
    count = len(cloud.sent("PUT", "."))
    deploy(bundle, client)
    assert len(cloud.sent("PUT", ".")) == count
    rollout(second, client, hold_s=0, parity=False)
    assert rules() == []  # the second bundle has none
    rollout(bundle, client, hold_s=0, parity=False)
    assert rules() == ["autoscale-my-qa-blue"]
    operate.delete(client, "my-qa")
    assert rules() == []


def test_a_batch_endpoint_has_nothing_to_roll_over(client, tiny, tmp_path, cloud):
    model = str(tiny("bert", "question-answering"))
    options = {"kind": "batch", "compute": "cluster"}
    with pytest.raises(errors.NotAvailable, match="no traffic"):
        rollout(generate("question-answering", model, "My-qa", output=tmp_path / "b", **options), client)
    assert cloud.log == []


def test_parity_with_a_live_endpoint(cloud, client, whole):
    deploy(whole, client)
    verdict = mii_azure.parity(whole, ["grpc", "endpoint:My-qa/blue"], ml_client=client)
    assert verdict.agree, verdict.comparisons
    assert {entry.status for entry in verdict.comparisons} >= {200, 400}  # the model's own, not 424
    local, deployed = verdict.sides
    assert (local.instance_type, local.instances) == ("", 0)
    settings = yaml.safe_load((whole / "deployment.yml").read_text("utf-8"))
    assert (deployed.instance_type, deployed.instances) == (settings["instance_type"], settings["instance_count"])
    with pytest.raises(errors.SpecError, match="names no endpoint"):
        mii_azure.parity(whole, ["grpc", "endpoint:"], ml_client=client)


def test_a_slot_that_answers_otherwise_than_the_local_runner_takes_no_traffic(cloud, client, bundle, whole_second):
    deploy(bundle, client)
    other = {"answer": "Bob", "score": 0.5, "start": 0, "end": 3}

    def lies(request):
        new = request.headers.get("azureml-model-deployment") == "green"
        return Answer(200, other) if new and b"metadata" not in request.body else None

    cloud.faults.append(Fault("POST", r"\.inference\.", lies, times=10**6))
    with pytest.raises(
        errors.RolloutFailed, match=r"The gate 'parity' failed: green answers .* unlike the local runner"
    ):
        rollout(whole_second, client, hold_s=0)
    assert cloud.arm.endpoint("my-qa")["properties"]["traffic"] == {"blue": 100}


def verdict_on(digest, **differing):
    told = {"bundle": "/qa", "bundle_hash": digest, "reference": "grpc", "targets": ("grpc", "endpoint:my-qa/green")}
    told |= {"agree": True, "tolerance": 1e-4, "requests": 0, "load": 0}
    return Verdict(**NOTHING | told | differing)


NOTHING = {"comparisons": (), "environment": {}}
OTHERWISE = Comparison(request="sample", target="endpoint:my-qa/green", status=200, grade="different", difference="a")


@pytest.mark.parametrize(
    ("differing", "told"),
    [
        ({"bundle_hash": "0" * 64}, "is on bundle 000"),
        ({"agree": False}, "is no"),
        ({"comparisons": (OTHERWISE,)}, "says yes, and what"),
    ],
)
def test_a_verdict_that_is_required_is_a_yes_on_this_bundle(differing, told, cloud, client, bundle, tmp_path):
    write_verdict(verdict_on(intact(bundle), **differing), tmp_path / "verdict.json")
    with pytest.raises(errors.SpecError, match=told):
        rollout(bundle, client, require=tmp_path / "verdict.json")
    assert cloud.log == []


def test_a_slot_that_generates_other_tokens_takes_no_traffic(cloud, client, bundle, second, monkeypatch):
    deploy(bundle, client)
    margins = {"greedy": 0.3, "seeded": 0.4, "default": 0.0}
    judged = TokenVerdict(
        target="endpoint:my-qa/green",
        agree=False,
        tokens=1000,
        picked=700,
        bounds=dict.fromkeys(margins, 1e-3),
        margins=margins,
        cause="another chat template: ChatML",
    )
    asked = []

    def other_tokens(folder, targets, **options):
        asked.append((targets, options["tokens"]))
        return verdict_on(intact(second), agree=False, tokens=(judged,))

    monkeypatch.setattr("mii_azure.verdict.parity.parity", other_tokens)
    with pytest.raises(errors.RolloutFailed, match="generates other tokens than its model: another chat template"):
        rollout(second, client, hold_s=0, tokens=1000)
    assert asked == [(["grpc", "endpoint:my-qa/green"], 1000)]
    assert cloud.arm.endpoint("my-qa")["properties"]["traffic"] == {"blue": 100}
