"""Permissions: of the caller on the workspace, of the endpoint's identities on their sources, and the registry."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from mii_azure.azure.arm import permits
from mii_azure.bundle.bundle_view import DEPLOYMENT, ENDPOINT
from mii_azure.platform.secret_references import CONNECTION_ROLE, uses_connection
from mii_azure.preflight.scene import AzureAnswer, Scene

AUTHORIZATION_API = "2022-04-01"
IDENTITY_API = "2023-01-31"
REGISTRY_API = "2025-04-01"
_ML = "Microsoft.MachineLearningServices/workspaces"
_VAULT_ROLE = "Key Vault Secrets User"
_VAULT = re.compile(r"\$\{\{keyvault:https://([^./}]+)[./]")
_CONNECTION = re.compile(r"\$\{\{azureml://connections/([^/}]+)")


class Need(NamedTuple):
    """Permission that an identity needs on a scope, and the role usually given for it."""

    role: str
    where: str  # for people
    scope: str  # resource id
    action: str
    data: bool


def caller(scene: Scene) -> Iterator[AzureAnswer]:
    """Check that the caller has the permissions on the workspace that deploying needs."""
    path = f"{scene.workspace_id}/providers/Microsoft.Authorization/permissions"
    granted = scene.arm.pages(path, AUTHORIZATION_API)
    missing = [action for action in _actions(scene) if not permits(granted, action)]
    if missing:
        remedy = "Take the role AzureML Data Scientist on the workspace, or one that allows what is missing."
        yield AzureAnswer("no", f"You may not do on the workspace: {', '.join(missing)}.", remedy, "access_denied")
    elif (scene.bundle.get(ENDPOINT, "auth_mode") or "key") == "aad_token" and not permits(granted, _SCORE, data=False):
        message = f"Callers of an endpoint with aad_token need {_SCORE}, which you lack."
        yield AzureAnswer("note", message, "Take AzureML Data Scientist, or a role of your own with that action.")
    else:
        yield AzureAnswer("yes", "You may do on the workspace what deploying takes.")
    for identity in _assigned(scene):
        path = f"{identity}/providers/Microsoft.Authorization/permissions"
        if not permits(scene.arm.pages(path, AUTHORIZATION_API), _ASSIGN):
            message = f"You may not give the identity {identity.rsplit('/', 1)[1]} to an endpoint."
            yield AzureAnswer("no", message, "Take the role Managed Identity Operator on it.", "access_denied")


_SCORE = f"{_ML}/onlineEndpoints/score/action"
_ASSIGN = "Microsoft.ManagedIdentity/userAssignedIdentities/assign/action"
_KEYS = {"key": "listKeys", "aml_token": "token", "aad_token": "token"}


def _actions(scene: Scene) -> list[str]:
    kind = "batchEndpoints" if scene.batch else "onlineEndpoints"
    actions = [f"{_ML}/{kind}/write", f"{_ML}/{kind}/deployments/write", f"{_ML}/environments/versions/write"]
    actions += [f"{_ML}/codes/versions/write"]
    if scene.bundle.model_folder is not None:
        actions.append(f"{_ML}/models/versions/write")
    mode = str(scene.bundle.get(ENDPOINT, "auth_mode") or "key")
    if not scene.batch and mode in _KEYS:
        actions.append(f"{_ML}/{kind}/{_KEYS[mode]}/action")
    return actions


def identities(scene: Scene) -> Iterator[AzureAnswer]:
    """Check that each identity of the endpoint has the roles that its container needs."""
    if scene.batch:
        return
    needs = _needs(scene)
    listed = "; ".join(f"{need.role} on {need.where}" for need in needs)
    wanted = _assigned(scene)
    if not wanted and scene.endpoint is None:
        message = f"The endpoint's system-assigned identity needs {listed}; Azure gives what is on the workspace's own"
        message += " registry, storage and connections when it creates the endpoint."
        if any(need.role == _VAULT_ROLE for need in needs):
            yield AzureAnswer("note", message, "Give it Key Vault Secrets User on the vault before deploying.")
        else:
            yield AzureAnswer("unverified", message, "Whoever creates the endpoint must be allowed to assign roles.")
        return
    principals = {identity: _principal(scene, identity) for identity in wanted} if wanted else _own(scene)
    for name, principal in principals.items():
        short = name.rsplit("/", 1)[-1]
        if principal is None:
            message = f"The identity {short} does not exist."
            yield AzureAnswer("no", message, f"Create it, or correct its id: {name}.", "not_in_azure")
            continue
        lacking = [need for need in needs if not _holds(scene, need, principal)]
        for need in lacking:
            message = f"The identity {short} lacks {need.role} on {need.where}."
            remedy = (
                f"az role assignment create --assignee-object-id {principal} --role '{need.role}' --scope {need.scope}"
            )
            yield AzureAnswer("no", message, remedy + ".", "access_denied")
        if not lacking:
            yield AzureAnswer("yes", f"The identity {short} has {listed}.")


def registry(scene: Scene) -> Iterator[AzureAnswer]:
    """Check that the workspace's container registry exists, and by which means images can be pulled."""
    path = scene.workspace.container_registry
    if not path:
        message = "The workspace has no container registry yet; Azure makes one with the first image."
        yield AzureAnswer("note", message, "Whoever deploys first must be allowed to create it.")
        return
    found = scene.arm.get(path, REGISTRY_API)
    name, properties = path.rsplit("/", 1)[1], found.get("properties", {})
    if properties.get("provisioningState", "Succeeded") != "Succeeded":
        message = f"The registry {name} is {properties['provisioningState']}."
        yield AzureAnswer("no", message, "Repair it, or give the workspace another one.", "access_denied")
    elif str(properties.get("publicNetworkAccess", "Enabled")).lower() == "disabled":
        message = f"The registry {name} takes no public traffic: the workspace must build and pull in its network."
        yield AzureAnswer("note", message, "Set the workspace's image build compute, or a managed network.")
    elif _abac(found):
        message = f"The registry {name} gives access by repository: AcrPull does not count there."
        yield AzureAnswer("note", message, "Give the endpoint's identity Container Registry Repository Reader.")
    else:
        yield AzureAnswer("yes", f"The registry {name} is there and reached publicly.")


def secrets(scene: Scene) -> Iterator[AzureAnswer]:
    """Check that the connections used for secrets exist."""
    from mii_azure.azure.assets import exists

    values = [str(value) for value in scene.bundle.section(DEPLOYMENT, "environment_variables").values()]
    for name in sorted({found[1] for value in values if (found := _CONNECTION.match(value))}):
        path = f"{scene.workspace_id}/connections/{name}"
        if exists(lambda path=path: scene.arm.get(path, "2024-10-01")) is None:  # type: ignore[misc]
            message = f"The workspace has no connection {name!r}, from which a secret is read."
            yield AzureAnswer("no", message, "Create it in the studio, under Connections.", "not_in_azure")
        else:
            yield AzureAnswer("yes", f"The connection {name} is there.")
    for vault in sorted({found[1] for value in values if (found := _VAULT.match(value))}):
        message = (
            f"The secret in the key vault {vault} is read by the endpoint's identity only when a container starts."
        )
        yield AzureAnswer("unverified", message, "Give that identity Key Vault Secrets User on the vault.")


def _assigned(scene: Scene) -> list[str]:
    """Resource ids of user-assigned identities."""
    given = scene.bundle.get(ENDPOINT, "identity", "user_assigned_identities")
    found = [entry.get("resource_id") if isinstance(entry, dict) else entry for entry in given or []]
    return [entry for entry in found if isinstance(entry, str) and entry.startswith("/subscriptions/")]


def _needs(scene: Scene) -> list[Need]:
    """Resources that the container reads: its image, its model, and secrets by reference."""
    found = []
    if path := scene.workspace.container_registry:
        if _abac(scene.arm.get(path, REGISTRY_API)):
            action = "Microsoft.ContainerRegistry/registries/repositories/content/read"
            found.append(Need("Container Registry Repository Reader", "the container registry", path, action, True))
        else:
            action = "Microsoft.ContainerRegistry/registries/pull/read"
            found.append(Need("AcrPull", "the container registry", path, action, False))
    if path := scene.workspace.storage_account:
        action = "Microsoft.Storage/storageAccounts/blobServices/containers/blobs/read"
        found.append(Need("Storage Blob Data Reader", "the storage account", path, action, True))
    values = [str(value) for value in scene.bundle.section(DEPLOYMENT, "environment_variables").values()]
    if any(uses_connection(value) for value in values):
        found.append(
            Need(CONNECTION_ROLE, "the workspace", scene.workspace_id, f"{_ML}/connections/listsecrets/action", False)
        )
    own = str(scene.workspace.key_vault or "")
    for vault in sorted({match[1] for value in values if (match := _VAULT.match(value))}):
        if vault.lower() == own.rsplit("/", 1)[-1].lower():  # the id of any other vault is not known here
            action = "Microsoft.KeyVault/vaults/secrets/getSecret/action"
            found.append(Need(_VAULT_ROLE, f"the key vault {vault}", own, action, True))
    return found


def _abac(registry: dict[str, Any]) -> bool:
    return bool(registry.get("properties", {}).get("roleAssignmentMode") == "AbacRepositoryPermissions")


def _own(scene: Scene) -> dict[str, str | None]:
    principal = getattr(getattr(scene.endpoint, "identity", None), "principal_id", None)
    return {f"of the endpoint {scene.endpoint_name}": principal} if principal else {}


def _principal(scene: Scene, identity: str) -> str | None:
    """Object id of a user-assigned identity; None if none has that id."""
    from mii_azure.azure.assets import exists

    found = exists(lambda: scene.arm.get(identity, IDENTITY_API))
    return str(found["properties"]["principalId"]) if found else None


def _holds(scene: Scene, need: Need, principal: str) -> bool:
    """True if a role that covers the scope, the identity's own or its group's, allows the action."""
    path = f"{need.scope}/providers/Microsoft.Authorization/roleAssignments"
    rows = scene.arm.pages(path, AUTHORIZATION_API, filter=f"atScope() and assignedTo('{principal}')")
    roles = {row["properties"]["roleDefinitionId"] for row in rows}
    definitions = (scene.arm.get(role, AUTHORIZATION_API) for role in sorted(roles))
    return any(permits(found["properties"]["permissions"], need.action, need.data) for found in definitions)
