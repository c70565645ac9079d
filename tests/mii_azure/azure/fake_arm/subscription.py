"""What a subscription holds around a workspace: quotas, machine sizes, roles, the registry, identities, names."""

import re
from typing import Any

SUBSCRIPTION = "/subscriptions/00000000-0000-0000-0000-000000000001"
GROUP = f"{SUBSCRIPTION}/resourceGroups/group/providers"
REGISTRY = f"{GROUP}/Microsoft.ContainerRegistry/registries/fakeregistry"
STORAGE = f"{GROUP}/Microsoft.Storage/storageAccounts/fakestore"
VAULT = f"{GROUP}/Microsoft.KeyVault/vaults/fakevault"
IDENTITY = f"{GROUP}/Microsoft.ManagedIdentity/userAssignedIdentities/scorer"
_ROLES = "providers/Microsoft.Authorization/roleDefinitions"
#: Roles as Azure defines them, shortened to what is asked of them; wildcards as they are.
ROLES: dict[str, dict[str, Any]] = {
    "AcrPull": {"actions": ["Microsoft.ContainerRegistry/registries/pull/read"]},
    "Contributor": {"actions": ["*"], "notActions": ["Microsoft.Authorization/*/Write"]},
    "Storage Blob Data Reader": {
        "actions": ["Microsoft.Storage/storageAccounts/blobServices/containers/read"],
        "dataActions": ["Microsoft.Storage/storageAccounts/blobServices/containers/blobs/read"],
    },
    "Container Registry Repository Reader": {
        "dataActions": ["Microsoft.ContainerRegistry/registries/repositories/*/read"]
    },
    "AzureML Data Scientist": {
        "actions": [f"Microsoft.MachineLearningServices/workspaces/*/{verb}" for verb in ("read", "write", "action")]
    },
    "Reader": {"actions": ["*/read"]},
}


class Subscription:
    """Answers the reads; tests change its fields, and refuse reads by a Fault."""

    def __init__(self) -> None:
        self.usages = [
            usage("Total Cluster Dedicated Regional vCPUs", 14, 200),
            usage("Standard FSv2 Family Cluster Dedicated vCPUs", 0, 48),
            usage("Standard NCASv3_T4 Family Cluster Dedicated vCPUs", 4, 12),
        ]
        self.sizes = {"Standard_F8s_v2": "standardFSv2Family", "Standard_F4s_v2": "standardFSv2Family"}
        self.sizes |= {"Standard_NC4as_T4_v3": "standardNCASv3_T4Family"}
        self.restrictions: dict[str, list[dict[str, Any]]] = {}
        self.caller = ["AzureML Data Scientist", "Contributor"]
        self.assigned: dict[tuple[str, str], list[str]] = {}  # by principal and scope
        self.registry: dict[str, Any] = {"adminUserEnabled": True, "roleAssignmentMode": "LegacyRegistryPermissions"}
        self.identities = {IDENTITY.lower(): "principal-of-scorer"}
        self.metrics: dict[str, dict[str, float]] = {}  # by slot: requests a minute by class of status, and p90
        self.named: list[dict[str, str]] = []  # resources of other workspaces

    def answer(self, path: str, query: dict[str, str]) -> Any | None:
        """The body of a read, or None where the path is none of these."""
        table = (
            (r"/locations/[^/]+/usages$", lambda: {"value": self.usages}),
            (r"/locations/[^/]+/vmSizes$", self._sizes),
            (r"Microsoft.Compute/skus$", self._machines),
            (r"Microsoft.Authorization/permissions$", lambda: {"value": [ROLES[role] for role in self.caller]}),
            (r"Microsoft.Authorization/roleAssignments$", lambda: self._assignments(path, query)),
            (rf"{_ROLES}/[^/]+$", lambda: {"properties": {"permissions": [ROLES[path.rsplit("/", 1)[1]]]}}),
            (r"Microsoft.ContainerRegistry/registries/[^/]+$", lambda: {"id": path, "properties": self.registry}),
            (r"/onlineEndpoints/[^/]+/providers/Microsoft.Insights/metrics$", lambda: self._metrics(query)),
            (rf"^{SUBSCRIPTION}/resources$", lambda: {"value": self.named}),
        )
        for pattern, make in table:
            if re.search(pattern, path, re.IGNORECASE):
                return make()
        if principal := self.identities.get(path.lower()):
            return {"id": path, "properties": {"principalId": principal}}
        return None

    def _sizes(self) -> dict[str, Any]:
        sizes = [
            {"name": name, "family": family, "vCPUs": 8, "supportedComputeTypes": ["AmlCompute"]}
            for name, family in self.sizes.items()
        ]
        return {"value": sizes}

    def _machines(self) -> dict[str, Any]:
        rows = [
            {"resourceType": "virtualMachines", "name": name, "restrictions": self.restrictions.get(name, [])}
            for name in self.sizes
        ]
        return {"value": [{"resourceType": "disks", "name": "Premium_LRS"}, *rows]}

    def _metrics(self, query: dict[str, str]) -> dict[str, Any]:
        """Azure Monitor's answer, one minute of it."""
        slot = re.match(r"deployment eq '([^']+)'", query["$filter"])
        numbers = self.metrics.get(slot[1] if slot else "", {})
        by_class = query["metricnames"] == "RequestsPerMinute"
        series = [
            {
                "metadatavalues": [{"name": {"value": "statuscodeclass"}, "value": name}] if by_class else [],
                "data": [
                    {"timeStamp": "2026-11-24T10:00:00Z", "average": value},
                    {"timeStamp": "2026-11-24T10:01:00Z"},
                ],
            }
            for name, value in numbers.items()
            if (name != "p90") == by_class
        ]
        return {"value": [{"name": {"value": query["metricnames"]}, "timeseries": series}]}

    def _assignments(self, path: str, query: dict[str, str]) -> dict[str, Any]:
        found = re.fullmatch(r"atScope\(\) and assignedTo\('(.+)'\)", query["$filter"])
        scope = path.partition("/providers/Microsoft.Authorization")[0]
        roles = self.assigned.get((found[1] if found else "", scope), [])
        return {"value": [{"properties": {"roleDefinitionId": f"{SUBSCRIPTION}/{_ROLES}/{role}"}} for role in roles]}


def usage(name: str, used: int, limit: int, workspace: str = "") -> dict[str, Any]:
    """A row of the quota list, of the subscription or of a workspace."""
    base = f"{GROUP}/Microsoft.MachineLearningServices/workspaces/{workspace}" if workspace else SUBSCRIPTION
    names = {"value": name, "localizedValue": name}
    return {"id": f"{base}/usages/x", "currentValue": used, "limit": limit, "unit": "Count", "name": names}


def restricted(reason: str, zones: tuple[str, ...] = ()) -> dict[str, Any]:
    """A restriction of the region, or of some of its zones."""
    return {
        "type": "Zone" if zones else "Location",
        "reasonCode": reason,
        "values": ["eastus"],
        "restrictionInfo": {"locations": ["eastus"], "zones": list(zones)},
    }
