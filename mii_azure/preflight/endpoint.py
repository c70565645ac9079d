"""Existing resources: the workspace, the endpoint's name and its slots, and the references in the YAML."""

import re
from collections.abc import Iterator

from mii_azure.azure.assets import exists
from mii_azure.azure.endpoints import BUSY, TAG, nonzero, state
from mii_azure.bundle.bundle_view import DEPLOYMENT, ENDPOINT, ENVIRONMENT, MODEL
from mii_azure.preflight.scene import AzureAnswer, Scene

RESOURCES_API = "2021-04-01"
MAX_DEPLOYMENTS = 20  # per endpoint; how-to-manage-quotas
_ASSET = re.compile(r"(?:azureml:)?([a-zA-Z0-9][\w.-]*)(?::([\w.-]+)|@latest)")
_DATASTORE = re.compile(r"azureml://(?:.+/)?datastores/([\w-]+)/paths/")
_REGISTRY = re.compile(r"azureml://registries/([\w.-]+)/(models|environments)/([\w.-]+)/(versions|labels)/([\w.-]+)")


def workspace(scene: Scene) -> Iterator[AzureAnswer]:
    """Check that the workspace exists."""
    found = scene.workspace
    network = str(found.public_network_access or "Enabled").lower()
    if network == "disabled" and not scene.batch:
        message = f"The workspace {found.name} in {found.location} is private: so is what deploys to it."
        yield AzureAnswer("note", message, "Run `deploy` and `invoke` inside its network.")
        return
    yield AzureAnswer("yes", f"The workspace {found.name} is in {found.location}.")


def name(scene: Scene) -> Iterator[AzureAnswer]:
    """Check that the endpoint's name, which is unique in a region, is free."""
    wanted = scene.endpoint_name
    if not wanted:
        return
    if scene.endpoint is not None:
        yield AzureAnswer("yes", f"The endpoint {wanted} is this workspace's own; it is used, not made again.")
        return
    kind = "batchEndpoints" if scene.batch else "onlineEndpoints"
    path = f"/subscriptions/{scene.client.subscription_id}/resources"
    kinds = f"resourceType eq 'Microsoft.MachineLearningServices/workspaces/{kind}'"
    for row in scene.arm.pages(path, RESOURCES_API, filter=kinds):
        same = row["name"].rsplit("/", 1)[-1].lower() == wanted.lower()
        if same and str(row.get("location", "")).replace(" ", "").lower() == scene.region:
            owner = re.sub(r".*/workspaces/([^/]+)/.*", r"\1", row["id"])
            message = f"The name {wanted} is taken in {scene.region}, by the workspace {owner}."
            yield AzureAnswer("no", message, "Generate the bundle under another --name.", "name_taken")
            return
    message = f"No endpoint {wanted} in this subscription; names of others' in {scene.region} Azure tells on creating."
    yield AzureAnswer("unverified", message, "If `deploy` ends in name_taken, generate it under another --name.")


def network(scene: Scene) -> Iterator[AzureAnswer]:
    """Say by which of Azure's two ways a deployment reaches the network: the workspace's managed one, or its own."""
    managed = getattr(scene.workspace, "managed_network", None)
    given = getattr(managed, "isolation_mode", None) or "disabled"
    mode = str(getattr(given, "value", given)).lower().replace("_", "")
    egress = str(scene.bundle.get(DEPLOYMENT, "egress_public_network_access") or "").lower()
    if mode == "disabled":
        told = "by its own egress_public_network_access" if egress else "the internet, as nothing forbids it"
        yield AzureAnswer("yes", f"The workspace has no managed network: the deployment reaches {told}.")
    elif egress == "disabled":
        message = f"The workspace's managed network ({mode}) governs what is reached; egress disabled is the other way."
        yield AzureAnswer("no", message, "Generate the bundle without --egress disabled.", "azure_error")
    elif mode == "allowonlyapprovedoutbound":
        message = "The workspace's managed network lets deployments reach approved addresses only; the image build too."
        yield AzureAnswer("note", message, "Approve what the image's build downloads from, or build it elsewhere.")
    else:
        yield AzureAnswer("yes", f"The workspace's managed network ({mode}) governs what the deployment reaches.")


def references(scene: Scene) -> Iterator[AzureAnswer]:
    """Check that the deployment's model and environment exist, unless this folder registers them."""
    made = {
        f"azureml:{scene.bundle.get(file, 'name')}:{scene.bundle.get(file, 'version')}" for file in (ENVIRONMENT, MODEL)
    }
    for what, operations in (("model", scene.client.models), ("environment", scene.client.environments)):
        given = scene.bundle.get(DEPLOYMENT, what)
        if not isinstance(given, str) or given in made:
            continue
        if found := _DATASTORE.match(given):
            store = found[1]
            there = exists(lambda store=store: scene.client.datastores.get(store)) is not None  # type: ignore[misc]
            told = f"the datastore {store}"
        elif _REGISTRY.fullmatch(given):
            yield AzureAnswer("unverified", f"The {what} is in a registry: {given}.", "Azure resolves it on deploying.")
            continue
        elif found := _ASSET.fullmatch(given):
            name, version = found[1], found[2]
            label = None if version else "latest"
            there = exists(lambda n=name, v=version, lb=label, o=operations: o.get(n, v, lb)) is not None  # type: ignore[misc]
            told = f"the {what} {name}, version {version or 'latest'}"
        else:
            yield AzureAnswer("unverified", f"The {what} is {given}.", "Azure resolves it on deploying.")
            continue
        if there:
            yield AzureAnswer("yes", f"{told[0].upper()}{told[1:]} is registered.")
        else:
            yield AzureAnswer(
                "no", f"The workspace has not {told}.", "Register it, or correct the reference.", "not_in_azure"
            )


def cluster(scene: Scene) -> Iterator[AzureAnswer]:
    """Check that the cluster of a Kubernetes or batch endpoint exists and is ready."""
    file = DEPLOYMENT if scene.batch else ENDPOINT
    given = scene.bundle.get(file, "compute")
    if not isinstance(given, str) or given.startswith("/"):
        return
    short = given.removeprefix("azureml:")
    found = exists(lambda: scene.client.compute.get(short))
    if found is None:
        remedy = "Attach it to the workspace." if not scene.batch else "Create it, or name another one."
        yield AzureAnswer("no", f"The workspace has no compute {short}.", remedy, "not_in_azure")
        return
    wanted = "amlcompute" if scene.batch else "kubernetes"
    if str(found.type).lower() != wanted:
        yield AzureAnswer(
            "no", f"The compute {short} is of type {found.type}, not {wanted}.", "Name another one.", "not_in_azure"
        )
    elif state(found) not in ("Succeeded", "None"):
        remedy = "Look at it in the studio, under Compute."
        yield AzureAnswer("no", f"The compute {short} is {state(found)}.", remedy, "azure_unavailable")
    else:
        yield AzureAnswer("yes", f"The compute {short} is there.")


def slots(scene: Scene) -> Iterator[AzureAnswer]:
    """Report what the endpoint serves now, and what deploying would change."""
    endpoint = scene.endpoint
    if endpoint is None:
        if scene.endpoint_name:
            yield AzureAnswer("yes", f"No endpoint {scene.endpoint_name} yet: deploying makes it.")
        return
    if state(endpoint) in BUSY or state(endpoint) == "Failed":
        message = f"The endpoint {scene.endpoint_name} is {state(endpoint)}."
        yield AzureAnswer("note", message, "Deploying waits for it, or makes it again if it failed.")
    yield from _mode(scene)
    traffic = scene.traffic
    mirrored = nonzero(getattr(endpoint, "mirror_traffic", None))
    names = []
    for entry in scene.deployments:
        bundle = (entry.tags or {}).get(TAG, "")
        told = [f"{traffic.get(entry.name, 0)} %", state(entry), f"bundle {bundle[:12]}" if bundle else "not ours"]
        told += [f"{mirrored[entry.name]} % mirrored"] if entry.name in mirrored else []
        names.append(f"{entry.name} ({', '.join(told)})")
    message = f"Slots of {scene.endpoint_name}: {', '.join(names) or 'none'}."
    if scene.slot in traffic and not scene.deployed:
        remedy = "`mii-azure rollout` fills the other slot first; `deploy --slot` another one."
        yield AzureAnswer("note", f"{message} Deploying to {scene.slot} replaces what takes traffic now.", remedy)
    elif len(scene.deployments) >= MAX_DEPLOYMENTS and scene.slot not in {entry.name for entry in scene.deployments}:
        yield AzureAnswer("no", f"{message} An endpoint takes {MAX_DEPLOYMENTS}.", "Delete one.", "azure_error")
    else:
        yield AzureAnswer("yes", message)


def _mode(scene: Scene) -> Iterator[AzureAnswer]:
    desired, current = scene.bundle.get(ENDPOINT, "auth_mode"), getattr(scene.endpoint, "auth_mode", None)
    if desired and current and str(desired).lower() != str(current).lower():
        message = f"The endpoint {scene.endpoint_name} has auth_mode {current}, not {desired}; deploying leaves it."
        yield AzureAnswer("note", message, "Delete the endpoint first if it must change.")
