"""Every kind, auth mode and slot through Microsoft's client: the bodies that it sends are kept as files.

Hashes, GUIDs, and the numbers and texts that a plan decides are left out of them.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from mii_azure.azure.autoscale import ensure_autoscale
from mii_azure.mlops.infra import bodies
from mii_azure.operations.deploy import deploy, intact, place
from mii_azure.operations.steps import Journal
from mii_azure.sdk.generate import generate
from tests.mii_azure.azure.conftest import lightened, serve
from tests.mii_azure.azure.fake_arm.subscription import GROUP, IDENTITY

GOLDENS = Path(__file__).with_name("goldens")
HUB = "${{azureml://connections/hub/credentials/token}}"
MODES = ("key", "aml_token", "aad_token")
SHARED = {
    "environment": r"^management.*/environments/",
    "model": r"^management.*/models/",
    "code": r"^management.*/codes/",
}
ENDPOINT, SLOT = r"/(?:online|batch)Endpoints/[^/]+$", "/deployments/{}$"
#: Options beside kind, auth mode and slot, each with the bodies that they change.
VARIANTS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "user-assigned": ({"identities": (IDENTITY,)}, ("endpoint",)),
    "secrets": ({"secrets": {"HF_TOKEN": HUB}}, ("endpoint", "blue")),
    "private": ({"public_network_access": "disabled", "egress": "disabled"}, ("endpoint", "blue")),
    "autoscale": ({"max_instances": 4}, ("autoscale",)),
    "kubernetes-gpu": (
        {"kind": "kubernetes", "compute": "arc", "instance_type": "Standard_NC4as_T4_v3"},
        ("endpoint", "blue"),
    ),
}
PLACES = {"endpoint": ENDPOINT, "blue": SLOT.format("blue"), "autoscale": "/autoscaleSettings/"}


def normal(value: Any, key: str = "") -> Any:
    """The shape of a body."""
    if isinstance(value, dict):
        return {name: normal(entry, name) for name, entry in sorted(value.items())}
    if isinstance(value, list):
        return [normal(entry) for entry in value]
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return value if key == "successThreshold" else "<number>"
    if key in ("GUNICORN_CMD_ARGS", "instanceType", "cpu", "memory") or re.fullmatch(r"PT.*S", value):
        return "<planned>"
    value = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "<guid>", value)
    return re.sub(r"\b([0-9a-f]{64}|[0-9a-f]{32}|[0-9a-f]{12})\b", "<hash>", value)


def compare(name: str, body: Any) -> None:
    shown = json.dumps(normal(body), indent=2) + "\n"
    path = GOLDENS / f"{name}.json"
    if os.environ.get("MII_AZURE_UPDATE_GOLDEN"):
        GOLDENS.mkdir(exist_ok=True)
        path.write_text(shown)
    assert path.read_text() == shown


@pytest.fixture
def made(cloud, tiny, tmp_path):
    """Generates a bundle with these options, whose slots the cloud answers."""

    def make(**options):
        if compute := options.get("compute"):
            attach(cloud, compute, options["kind"])
        model = str(tiny("bert", "question-answering"))
        whole = generate("question-answering", model, "My-qa", output=tmp_path / "bundle", **options)
        light = lightened(whole)
        serve(cloud, light, whole)
        return light

    return make


def attach(cloud, name, kind):
    path = f"{GROUP}/Microsoft.MachineLearningServices/workspaces/space/computes/{name}"
    properties = {"computeType": "Kubernetes" if kind == "kubernetes" else "AmlCompute", "properties": {}}
    cloud.arm.resources[path.lower()] = {"id": path, "name": name, "location": "eastus", "properties": properties}


@pytest.mark.parametrize(
    ("kind", "mode"),
    [*(("managed", mode) for mode in MODES), ("kubernetes", "key"), ("kubernetes", "aml_token")],
)
def test_online_endpoints_of_every_auth_mode_in_both_slots(kind, mode, cloud, client, made):
    bundle = made(auth_mode=mode, kind=kind, **({"compute": "arc"} if kind == "kubernetes" else {}))
    first, second = deploy(bundle, client), deploy(bundle, client, slot="green", traffic=10)
    assert first.answer["answer"] == second.answer["answer"]  # each slot was asked, under this auth mode
    assert second.traffic == {"blue": 90, "green": 10}
    sent = [request.json for request in cloud.sent("PUT", ENDPOINT)]
    compare(f"endpoint-{kind}-{mode}", sent[0])
    compare(f"traffic-{kind}", {"properties": {"traffic": sent[-1]["properties"]["traffic"]}})
    for slot in ("blue", "green"):
        compare(f"deployment-{kind}-{slot}", cloud.sent("PUT", SLOT.format(slot))[0].json)
    for name, where in SHARED.items():
        sent = cloud.sent("PUT", where)
        assert len({request.path for request in sent}) == 1, name  # both slots' own
        compare(name, sent[0].json)


def test_a_batch_endpoint_in_both_slots(cloud, client, made):
    bundle = made(kind="batch", compute="cluster")
    first = deploy(bundle, client)
    assert (first.traffic, first.answer) == ({"blue": 100}, None)
    said: list[str] = []
    assert deploy(bundle, client, slot="green", say=said.append).traffic == {"blue": 100}
    assert said[-1].startswith("Jobs go to blue")
    made_so_far = dict(cloud.arm.made)
    assert deploy(bundle, client, slot="green", traffic=100).traffic == {"green": 100}
    count = len(cloud.sent("PUT", "."))
    assert deploy(bundle, client, slot="green").traffic == {"green": 100}
    assert len(cloud.sent("PUT", ".")) == count
    assert dict(cloud.arm.made) == made_so_far
    sent = [request.json for request in cloud.sent("PUT", ENDPOINT)]
    compare("endpoint-batch", sent[0])
    assert [body["properties"].get("defaults") for body in sent] == [
        None, {"deploymentName": "blue"}, {"deploymentName": "green"},
    ]  # fmt: skip
    for slot in ("blue", "green"):
        compare(f"deployment-batch-{slot}", cloud.sent("PUT", SLOT.format(slot))[0].json)


@pytest.mark.parametrize("variant", VARIANTS)
def test_identity_network_secrets_and_scale(variant, cloud, client, made):
    options, bodies = VARIANTS[variant]
    bundle = made(**options)
    place(bundle, client, "blue", intact(bundle), Journal(print, "Again"))  # these slots are not asked: each would load
    ensure_autoscale(client, bundle, "my-qa", "blue")
    for name in bodies:
        compare(f"{variant}-{name}", cloud.sent("PUT", PLACES[name])[0].json)


@pytest.mark.parametrize(
    "options",
    [{}, {"kind": "kubernetes", "compute": "arc"}, {"identities": (IDENTITY,)}, {"secrets": {"HF_TOKEN": HUB}}],
    ids=["managed", "kubernetes", "identity", "secrets"],
)
def test_templates_hold_the_bodies_that_the_client_sends(options, cloud, client, made):
    bundle = made(**options)
    place(bundle, client, "my-qa", intact(bundle), Journal(print, "Again"))
    sent = [cloud.sent("PUT", where)[0].json for where in (ENDPOINT, SLOT.format("my-qa"))]
    code = sent[1]["properties"]["codeConfiguration"]["codeId"]
    space = code.partition("/codes/")[0]
    text = json.dumps(bodies(bundle)).replace("\\u0000workspace\\u0000", space).replace("\\u0000code\\u0000", code)
    for body, wanted in zip(json.loads(text), sent, strict=True):
        assert body.pop("name") == "my-qa"
        assert wanted.pop("location") == "eastus"
        wanted["tags"].pop("mii_azure_bundle", None)  # by which `mii-azure deploy` knows what runs
        assert body == wanted
