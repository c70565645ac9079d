"""The questions that only Azure can answer: every verdict, and none where a permission is missing."""

import json
import shutil
from pathlib import Path

import pytest

import mii_azure
from mii_azure.azure.arm import permits
from mii_azure.errors import NotSignedIn
from mii_azure.operations.deploy import deploy
from mii_azure.preflight import preflight as asking
from mii_azure.sdk.generate import generate
from tests.mii_azure.azure.fake_arm import Fault
from tests.mii_azure.azure.fake_arm.arm import refusal
from tests.mii_azure.azure.fake_arm.subscription import GROUP, IDENTITY, REGISTRY, STORAGE, restricted, usage

WHAT = {question.what: question.id for question in asking.QUESTIONS}
HUB = "${{azureml://connections/hub/credentials/token}}"
OWN_VAULT = "${{keyvault:https://fakevault.vault.azure.net/secrets/hub/1}}"
ELSEWHERE = f"{GROUP}/Microsoft.MachineLearningServices/workspaces/other/onlineEndpoints/MY-QA"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("mii_azure.azure.arm.RETRY_WAIT_S", 0.01)


@pytest.fixture
def made(tiny, tmp_path):
    """Generates a bundle with these options."""

    def make(**options):
        model = options.pop("model", str(tiny("bert", "question-answering")))
        return generate("question-answering", model, "My-qa", output=tmp_path / "bundle", **options)

    return make


def answers(bundle, client, what, **options):
    return [f for f in asking.online(bundle, client, **options) if f.id == WHAT[what]]


def one(bundle, client, what, **options):
    (found,) = answers(bundle, client, what, **options)
    return found


def forbid(cloud, where):
    """Refuse reads of that kind, in words that name what was asked."""
    message = "The client 'me' does not have authorization to perform action 'x/quotas/skus/read' over the scope."
    cloud.faults.append(Fault("GET", where, refusal(403, "AuthorizationFailed", message), times=99))


def test_what_a_good_bundle_is_told(cloud, client, bundle):
    found = asking.online(bundle, client)
    assert [f.verdict for f in found if f.severity in ("error", "warning")] == []
    assert {f.question for f in found} == {
        "workspace", "your permissions", "instance type", "quota", "capacity", "name", "identity", "registry",
        "network", "slots and traffic",
    }  # fmt: skip
    assert cloud.sent("PUT", ".") == cloud.sent("POST", ".") == []
    for entry in found:
        assert entry.message.endswith("."), entry
        assert entry.verdict != "unverified" or entry.remedy.endswith("."), entry


def test_the_three_verdicts_on_machines_are_told_apart(cloud, client, bundle):
    given = cloud.arm.subscription
    kind = json.loads((bundle / "code/deployment.json").read_text())["instance_type"]

    def codes():
        found = [f for f in asking.online(bundle, client) if f.question in ("instance type", "quota", "capacity")]
        return {f.question: (f.verdict, f.code) for f in found}

    fine = {"instance type": ("yes", ""), "quota": ("yes", ""), "capacity": ("unverified", "")}
    assert codes() == fine
    sizes, given.sizes = given.sizes, {}
    assert codes()["instance type"] == ("no", "instance_type_not_offered")
    given.sizes = sizes
    given.restrictions[kind] = [restricted("QuotaId")]
    assert codes() == fine | {"instance type": ("no", "instance_type_not_offered")}
    given.restrictions[kind] = [restricted("NotAvailableForSubscription")]
    assert codes() == fine | {"capacity": ("no", "no_capacity")}
    given.restrictions[kind] = [restricted("NotAvailableForSubscription", zones=("1", "3"))]
    assert codes() == fine | {"capacity": ("note", "no_capacity")}
    given.restrictions.clear()
    given.usages[1] = usage("Standard FSv2 Family Cluster Dedicated vCPUs", 41, 48)
    assert codes() == fine | {"quota": ("no", "quota_exceeded")}


@pytest.mark.parametrize(
    ("row", "named"),
    [
        (usage("Total Cluster Dedicated Regional vCPUs", 199, 200), "Total Cluster"),
        (usage("Standard FSv2 Family Cluster Dedicated vCPUs", 0, 4, "space"), "workspace space"),
    ],
)
def test_every_limit_on_cores_counts(row, named, cloud, client, bundle):
    cloud.arm.subscription.usages.append(row)
    found = one(bundle, client, "quota")
    assert (found.verdict, found.code) == ("no", "quota_exceeded")
    assert named in found.message
    assert "Ask for a limit of" in found.remedy


def test_autoscale_may_ask_for_more_than_there_is(cloud, client, made):
    bundle = made(max_instances=5)  # 24 cores of 4 an instance, with the reserve
    assert one(bundle, client, "quota").verdict == "yes"
    cloud.arm.subscription.usages[1] = usage("Standard FSv2 Family Cluster Dedicated vCPUs", 0, 23)
    assert [f.verdict for f in answers(bundle, client, "quota")] == ["yes", "note"]
    assert "up to 5 instances needs 24 cores" in answers(bundle, client, "quota")[1].message


def test_limits_that_do_not_count(cloud, client, bundle):
    cloud.arm.subscription.usages += [
        usage("Standard FSv2 Family Cluster Dedicated vCPUs", 9, 9, "elsewhere"),
        usage("Standard FSv2 Family Cluster LowPriority vCPUs", 9, 9),
        usage("Standard FSv2 Family Cluster Dedicated vCPUs", 9, 9, "space/computes/mine"),
        usage("Standard FSv2 Family Cluster Dedicated vCPUs", 9, -1),
    ]
    assert one(bundle, client, "quota").verdict == "yes"
    cloud.arm.subscription.usages = []
    assert one(bundle, client, "quota").verdict == "unverified"


def test_a_slot_that_runs_the_bundle_takes_no_more_quota(cloud, client, bundle, second):
    deploy(bundle, client)
    cloud.arm.subscription.usages[1] = usage("Standard FSv2 Family Cluster Dedicated vCPUs", 16, 16)
    assert one(bundle, client, "quota", slot="blue").verdict == "yes"
    assert one(second, client, "quota", slot="blue").verdict == "yes"  # replaces what is there
    assert one(second, client, "quota", slot="green").verdict == "no"


@pytest.mark.parametrize(
    ("where", "what"),
    [
        ("/usages$", "quota"),
        ("/vmSizes$", "instance type"),
        ("Microsoft.Compute/skus$", "capacity"),
        ("/permissions$", "your permissions"),
        ("/registries/", "registry"),
        ("/resources$", "name"),
    ],
)
def test_what_may_not_be_asked_is_left_open_with_azures_reason(where, what, cloud, client, bundle):
    forbid(cloud, where)
    found = one(bundle, client, what)
    assert (found.verdict, found.severity, found.code) == ("unverified", "info", "access_denied")
    assert found.azure_code == "AuthorizationFailed"
    assert found.request_id == "req-0001"
    assert "does not have authorization" in found.message
    assert found.remedy.startswith("Asking takes ")


def test_a_service_in_trouble_leaves_questions_open(cloud, client, bundle):
    cloud.faults.append(Fault("GET", "/registries/", refusal(503, "Busy", "later"), times=99))
    found = one(bundle, client, "registry")
    assert (found.verdict, found.code) == ("unverified", "azure_unavailable")


def test_without_the_workspace_nothing_else_is_asked(cloud, client, bundle):
    cloud.faults.append(Fault("GET", "/workspaces/space$", refusal(404, "ResourceNotFound", "no such workspace"), 9))
    (found,) = asking.online(bundle, client)
    assert (found.id, found.severity, found.code) == ("MII801", "error", "not_in_azure")
    assert found.request_id == "req-0001"
    cloud.faults.clear()
    cloud.faults.append(Fault("GET", "/workspaces/space$", refusal(401, "InvalidAuthenticationToken", "expired"), 9))
    (found,) = asking.online(bundle, client)
    assert (found.verdict, found.code) == ("no", NotSignedIn.code)


def test_a_name_that_another_workspace_has(cloud, client, bundle):
    cloud.arm.subscription.named = [{"id": ELSEWHERE, "name": "other/MY-QA", "location": "West Europe"}]
    assert one(bundle, client, "name").verdict == "unverified"  # taken in another region
    cloud.arm.subscription.named = [{"id": ELSEWHERE, "name": "other/MY-QA", "location": "eastus"}]
    found = one(bundle, client, "name")
    assert (found.severity, found.code) == ("error", "name_taken")
    assert "workspace other" in found.message
    deploy(bundle, client)
    assert one(bundle, client, "name").verdict == "yes"


def test_what_the_caller_may_not_do(cloud, client, bundle, made):
    cloud.arm.subscription.caller = ["Reader"]
    found = one(bundle, client, "your permissions")
    assert (found.severity, found.code) == ("error", "access_denied")
    for action in ("onlineEndpoints/deployments/write", "models/versions/write", "onlineEndpoints/listKeys/action"):
        assert action in found.message
    token = made(auth_mode="aml_token", identities=(IDENTITY,))
    found = answers(token, client, "your permissions")
    assert "onlineEndpoints/token/action" in found[0].message
    assert "may not give the identity scorer" in found[1].message


def test_a_user_assigned_identity_needs_its_roles(cloud, client, made):
    given, bundle = cloud.arm.subscription, made(identities=(IDENTITY,), secrets={"HF_TOKEN": HUB})
    lacking = answers(bundle, client, "identity")
    assert [f.code for f in lacking] == ["access_denied"] * 3
    assert "lacks AcrPull on the container registry" in lacking[0].message
    assert f"--scope {REGISTRY}" in lacking[0].remedy
    assert "principal-of-scorer" in lacking[0].remedy
    given.assigned["principal-of-scorer", REGISTRY] = ["AcrPull"]
    given.assigned["principal-of-scorer", STORAGE] = ["Contributor"]  # which may not read blobs
    assert ["Storage Blob Data Reader" in f.message for f in answers(bundle, client, "identity")] == [True, False]
    given.assigned["principal-of-scorer", STORAGE] = ["Storage Blob Data Reader"]
    workspace = next(r.path for r in cloud.log if r.path.endswith("/workspaces/space"))
    given.assigned["principal-of-scorer", workspace] = ["AzureML Data Scientist"]
    assert one(bundle, client, "identity").verdict == "yes"
    given.identities.clear()
    assert one(bundle, client, "identity").code == "not_in_azure"
    forbid(cloud, "/userAssignedIdentities/scorer$")
    assert one(bundle, client, "identity").verdict == "unverified"


def test_a_registry_that_gives_access_by_repository_wants_another_role(cloud, client, made):
    given, bundle = cloud.arm.subscription, made(identities=(IDENTITY,))
    given.registry["roleAssignmentMode"] = "AbacRepositoryPermissions"
    given.assigned["principal-of-scorer", STORAGE] = ["Storage Blob Data Reader"]
    given.assigned["principal-of-scorer", REGISTRY] = ["AcrPull"]
    assert "Container Registry Repository Reader" in one(bundle, client, "identity").message
    assert one(bundle, client, "registry").verdict == "note"
    given.assigned["principal-of-scorer", REGISTRY] = ["Container Registry Repository Reader"]
    assert one(bundle, client, "identity").verdict == "yes"


def test_a_system_assigned_identity_is_checked_once_it_exists(cloud, client, bundle, made):
    assert one(bundle, client, "identity").verdict == "unverified"
    vault = made(secrets={"HF_TOKEN": OWN_VAULT})
    assert "Key Vault Secrets User" in one(vault, client, "identity").remedy
    deploy(bundle, client)
    cloud.arm.endpoint("my-qa")["identity"] = {"type": "SystemAssigned", "principalId": "principal", "tenantId": "t"}
    lacking = answers(bundle, client, "identity")
    assert [f.severity for f in lacking] == ["error", "error"]
    cloud.arm.subscription.assigned = {
        ("principal", REGISTRY): ["AcrPull"], ("principal", STORAGE): ["Storage Blob Data Reader"],
    }  # fmt: skip
    assert one(bundle, client, "identity").verdict == "yes"


def test_registries_that_are_no_help(cloud, client, bundle):
    cloud.arm.subscription.registry["publicNetworkAccess"] = "Disabled"
    assert one(bundle, client, "registry").severity == "warning"
    cloud.arm.subscription.registry["provisioningState"] = "Failed"
    assert one(bundle, client, "registry").severity == "error"
    cloud.faults.append(Fault("GET", "/registries/", refusal(404, "ResourceNotFound", "gone"), 99))
    assert one(bundle, client, "registry").code == "not_in_azure"


def test_references_connections_and_clusters(cloud, client, made):
    bundle = made(model="azureml:someones:7", instance_type="Standard_F8s_v2", secrets={"HF_TOKEN": HUB})
    assert one(bundle, client, "references").code == "not_in_azure"
    assert one(bundle, client, "secrets").code == "not_in_azure"
    base = f"{GROUP}/Microsoft.MachineLearningServices/workspaces/space"
    cloud.arm.resources[f"{base}/connections/hub".lower()] = {"id": "x", "name": "hub"}
    body = {"id": f"{base}/models/someones/versions/7", "name": "7", "properties": {"flavors": {}, "modelUri": "u"}}
    cloud.arm.resources[f"{base}/models/someones/versions/7".lower()] = body
    assert one(bundle, client, "references").verdict == "yes"
    assert one(bundle, client, "secrets").verdict == "yes"


def test_a_cluster_must_be_there_and_of_the_kind(cloud, client, made):
    bundle = made(kind="kubernetes", compute="arc")
    assert one(bundle, client, "cluster").code == "not_in_azure"
    assert answers(bundle, client, "quota") == []  # a cluster's nodes are its owner's
    path = f"{GROUP}/Microsoft.MachineLearningServices/workspaces/space/computes/arc".lower()
    cluster = {"computeType": "Kubernetes", "provisioningState": "Succeeded", "properties": {"namespace": "ml"}}
    cloud.arm.resources[path] = {"id": path, "name": "arc", "location": "eastus", "properties": cluster}
    assert one(bundle, client, "cluster").verdict == "yes"
    cluster["provisioningState"] = "Failed"
    assert "is Failed" in one(bundle, client, "cluster").message
    cluster |= {"computeType": "AmlCompute", "properties": {"vmSize": "Standard_F4s_v2"}}
    assert "not kubernetes" in one(bundle, client, "cluster").message


def test_slots_and_their_traffic(cloud, client, bundle, second):
    deploy(bundle, client)
    found = one(bundle, client, "slots and traffic", slot="blue")
    assert "blue (100 %, Succeeded" in found.message
    found = one(second, client, "slots and traffic", slot="blue")
    assert (found.severity, "replaces what takes traffic" in found.message) == ("warning", True)
    for number in range(19):
        body = dict(cloud.arm.deployment("my-qa", "blue"), name=f"slot{number}")
        path = next(key for key in cloud.arm.resources if key.endswith("/deployments/blue"))
        cloud.arm.resources[path.replace("blue", f"slot{number}")] = body
    assert one(second, client, "slots and traffic", slot="green").severity == "error"


def test_yaml_that_stands_alone(cloud, client, bundle, tmp_path):
    for name in ("endpoint.yml", "deployment.yml"):
        shutil.copy(bundle / name, tmp_path)
    assert {f.question for f in asking.online(tmp_path, client)} >= {"quota", "name", "references", "registry"}
    (tmp_path / "deployment.yml").unlink()
    assert "quota" not in {f.question for f in asking.online(tmp_path, client)}


def test_wildcards_of_roles():
    held = [{"actions": ["A/*/read"], "notActions": ["A/secret/*"]}, {"dataActions": ["B/*"]}]
    assert permits(held, "a/b/c/READ")
    assert not permits(held, "A/secret/read")
    assert not permits(held, "A/b/write")
    assert not permits(held, "B/x")
    assert permits(held, "B/x", data=True)
    assert not permits([{"actions": ["A.b/read"]}], "Axb/read")


def test_the_command_line(cloud, client, mii, bundle):
    code, out, _ = mii("check", bundle, "--online", "--json")
    asked = {entry["question"] for entry in json.loads(out) if "question" in entry}
    assert (code, asked) == (0, {f.question for f in asking.online(bundle, client)})
    cloud.arm.subscription.usages[1] = usage("Standard FSv2 Family Cluster Dedicated vCPUs", 48, 48)
    code, out, _ = mii("check", bundle, "--online")
    assert code == 1
    assert "quota" in out
    arguments = ["--task", "question-answering", "--model", Path(bundle) / "model"]
    code, out, _ = mii("plan", *arguments, "--online", "--json")
    assert code == 1
    made = json.loads(out)
    assert made["instance_type"] == made["online"][1]["message"].split(" ")[0]
    assert [entry["question"] for entry in made["online"]] == ["workspace", "instance type", "quota", "capacity"]
    cloud.arm.subscription.usages = []
    assert "MII804" in mii("plan", *arguments, "--online")[1]


def test_from_python(client, bundle):
    found = mii_azure.check(bundle, ml_client=client)
    assert [f for f in found if isinstance(f, asking.OnlineFinding)] == asking.online(bundle, client)


@pytest.mark.parametrize(
    "model", ["azureml://registries/azureml-meta/models/Llama-3.2-1B/versions/2", "azureml:Llama-3.2-1B:2"]
)
def test_a_reference_with_dots_gets_an_answer(model, cloud, client, made):
    bundle = made(model=model, instance_type="Standard_F8s_v2")
    told = [f for f in asking.online(bundle, client) if "Llama-3.2-1B" in f.message]
    assert [f.verdict for f in told] == ["unverified" if "registries" in model else "no"]


@pytest.mark.parametrize(
    ("isolation", "egress", "verdict"),
    [
        ("", "enabled", "yes"),
        ("Disabled", "disabled", "yes"),
        ("AllowInternetOutbound", "enabled", "yes"),
        ("AllowInternetOutbound", "disabled", "no"),
        ("AllowOnlyApprovedOutbound", "enabled", "note"),
    ],
)
def test_which_of_the_two_network_ways_applies(isolation, egress, verdict, cloud, client, made):
    cloud.arm.isolation = isolation
    found = one(made(egress=egress), client, "network")
    assert found.verdict == verdict
    assert ("managed network" in found.message) == bool(found.message)
