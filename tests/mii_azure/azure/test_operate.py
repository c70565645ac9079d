"""status, logs, invoke and delete, as functions and as verbs of the command line."""

import json
import sys

import pytest

from mii_azure import errors
from mii_azure.azure.endpoints import ADAPTERS, TAG, ensure_endpoint, tags_of
from mii_azure.checks.check import check
from mii_azure.cli import app
from mii_azure.operations import operate
from mii_azure.operations.deploy import deploy, intact, place
from mii_azure.operations.steps import Journal
from mii_azure.sdk.generate import generate
from scoring.errors import InvalidParameter
from tests.mii_azure.azure.test_goldens import attach

QUESTION = {"inputs": {"question": "Who?", "context": "It was Ann."}}


def test_status_logs_invoke_delete(cloud, client, bundle, second):
    deploy(bundle, client)
    deploy(second, client, slot="green", traffic=20)
    found = operate.status(client, "my-qa")
    assert [(slot.slot, slot.state, slot.traffic) for slot in found.slots] == [
        ("blue", "Succeeded", 80),
        ("green", "Succeeded", 20),
    ]
    assert "weights are missing" in operate.logs(client, "my-qa", "blue")
    served = dict(cloud.scoring.served)
    assert operate.invoke(client, "my-qa", QUESTION, "green")["answer"]
    assert cloud.scoring.served["green"] == served["green"] + 1
    with pytest.raises(InvalidParameter, match="topk"):  # 424 outside, the model's own 400 inside
        operate.invoke(client, "my-qa", {**QUESTION, "parameters": {"topk": 1}})
    operate.delete(client, "my-qa", "green")
    assert cloud.arm.endpoint("my-qa")["properties"]["traffic"] == {"blue": 100}
    assert cloud.arm.deployment("my-qa", "green") is None
    operate.delete(client, "my-qa")
    assert cloud.arm.endpoint("my-qa") is None
    with pytest.raises(errors.NotInAzure):
        operate.status(client, "my-qa")


def test_status_tells_the_adapters_that_were_deployed(cloud, mii, bundle, tmp_path):
    before = json.loads((bundle / "code" / "deployment.json").read_text())
    names = [f"adapter-{number:02}" for number in range(32)]
    facts = {"sha256": "0" * 64, "rank": 4, "products": 1, "parameters": 8}
    beside = [{"name": name, **facts, "merged": name == names[1]} for name in names]
    settings = tmp_path / "code" / "deployment.json"
    settings.parent.mkdir()

    def tags(adapters):
        settings.write_text(json.dumps({**before, "adapters": adapters}))
        return tags_of(tmp_path, "a")

    assert tags([]) == {TAG: "a"}
    assert tags(beside[:3]) == {TAG: "a", ADAPTERS: "adapter-00 adapter-02"}
    told = tags(beside)[ADAPTERS]
    assert (len(told), told[-12:]) == (254, "adapter-23 …")
    mii("deploy", bundle)
    assert "adapters" not in mii("status", "my-qa")[1]
    cloud.arm.deployment("my-qa", "blue")["tags"][ADAPTERS] = "terse polite"
    assert json.loads(mii("status", "my-qa", "--json")[1])["slots"][0]["adapters"] == ["terse", "polite"]
    assert "terse, polite" in mii("status", "my-qa")[1]


def test_the_command_line(cloud, mii, bundle):
    code, out, _ = mii("deploy", bundle, "--json")
    assert code == 0
    assert json.loads(out)["traffic"] == {"blue": 100}
    code, out, _ = mii("status", "my-qa", "--json")
    assert json.loads(out)["slots"][0]["slot"] == "blue"
    assert "Succeeded" in mii("status", "my-qa")[1]
    assert "answer" in json.loads(mii("invoke", "my-qa", json.dumps(QUESTION))[1])
    assert "weights are missing" in mii("logs", "my-qa", "--lines", "5")[1]
    assert mii("rollout", bundle, "--hold", "0", "--skip-parity")[0] == 0
    code, _, err = mii("status", "elsewhere")
    assert code == 5
    assert "[not_in_azure]" in err
    assert "req-0001" in err
    assert mii("delete", "my-qa", "--slot", "blue", "--yes")[0] == 0
    assert mii("delete", "my-qa", "--yes")[0] == 0
    assert cloud.arm.endpoint("my-qa") is None


def test_a_batch_endpoints_status_and_end(cloud, mii, client, tiny, tmp_path):
    attach(cloud, "cluster", "batch")
    model = str(tiny("bert", "question-answering"))
    bundle = generate(
        "question-answering", model, "My-qa", output=tmp_path / "b", kind="batch", compute="cluster", instance_count=2
    )
    assert "answers at" in mii("deploy", bundle)[1]
    deploy(bundle, client, slot="green")
    found = operate.status(client, "my-qa")
    assert [(slot.slot, slot.traffic, slot.instances, slot.instance_type) for slot in found.slots] == [
        ("blue", 100, 2, "cluster"),
        ("green", 0, 2, "cluster"),
    ]
    assert mii("delete", "my-qa", "--slot", "green", "--yes")[0] == 0
    assert [slot.slot for slot in operate.status(client, "my-qa").slots] == ["blue"]
    assert mii("delete", "my-qa", "--yes")[0] == 0
    with pytest.raises(errors.NotInAzure):
        operate.status(client, "my-qa")


def test_deleting_asks_first(cloud, mii, bundle, client, monkeypatch):
    deploy(bundle, client)
    monkeypatch.setattr("typer.confirm", lambda *a, **k: False)
    assert mii("delete", "my-qa")[0] == 1
    assert cloud.arm.endpoint("my-qa") is not None


def test_without_a_workspace(monkeypatch, bundle, capsys):
    monkeypatch.setattr(sys, "argv", ["mii-azure", "deploy", str(bundle)])
    with pytest.raises(SystemExit) as end:
        app.main()
    assert end.value.code == 2
    assert "--workspace" in capsys.readouterr().err


def test_a_name_that_is_too_short_for_azure_is_one_name_everywhere(cloud, client, tiny, tmp_path, mii):
    model = tiny("bert", "question-answering")
    asked = ("--task", "question-answering", "--model", model, "--name", "qa", "--output", tmp_path / "b")
    code, said, _ = mii("generate", *asked)
    assert code == 0
    assert "in Azure it is qa-endpoint" in said
    ensure_endpoint(client, tmp_path / "b", print)
    assert operate.status(client, "qa") == operate.status(client, "qa-endpoint")
    assert operate.status(client, "qa").endpoint == "qa-endpoint"
    operate.logs(client, "qa", "blue")
    assert cloud.sent("POST", "onlineEndpoints/qa-endpoint/deployments/blue/getLogs$")
    operate.delete(client, "qa")
    with pytest.raises(errors.NotInAzure):
        operate.status(client, "qa")


@pytest.mark.parametrize(
    "missing",
    [
        "scaleSettings",
        "livenessProbe",
        "requestSettings",
        "endpointComputeType",
        "traffic",
        "mirrorTraffic",
        "scoringUri",
    ],
)
def test_an_answer_that_lacks_a_property_is_read_or_told_and_never_raised_raw(missing, cloud, client, bundle, mii):
    place(bundle, client, "blue", intact(bundle), Journal(print, "Again"))
    cloud.arm.missing = {missing}
    code, _, told = mii("status", "my-qa")
    assert code in (0, 5), told
    assert "internal" not in told
    if missing == "scaleSettings":
        assert code == 5
        assert "azure-ai-ml cannot read what Azure answered: AttributeError" in told
        slots = [finding for finding in check(bundle, ml_client=client) if "azure-ai-ml cannot read" in finding.message]
        assert slots
        assert {finding.severity for finding in slots} <= {"info", "warning"}
