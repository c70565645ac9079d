"""Context of the questions to Azure, and the form of their answers."""

from functools import cached_property
from typing import Any, Literal, NamedTuple

from mii_azure.azure.arm import Arm
from mii_azure.azure.endpoints import TAG, nonzero
from mii_azure.bundle.bundle_view import DEPLOYMENT, ENDPOINT, Inspected

COMPUTE_API = "2021-07-01"
Verdict = Literal["yes", "no", "note", "unverified"]


class AzureAnswer(NamedTuple):
    """Answer of Azure to one question: yes, no, a warning, or nothing, with the reason."""

    verdict: Verdict
    message: str
    remedy: str = ""
    code: str = ""  # of the error that deploying would raise, e.g. quota_exceeded


class Scene:
    """Bundle, or YAML alone, with a client of the workspace; each request to Azure is made once."""

    def __init__(self, bundle: Inspected, client: Any, arm: Arm, slot: str | None = None) -> None:
        self.bundle, self.client, self.arm = bundle, client, arm
        self._slot = slot

    @cached_property
    def workspace(self) -> Any:
        return self.client.workspaces.get(self.client.workspace_name)

    @property
    def workspace_id(self) -> str:
        client = self.client
        group = f"/subscriptions/{client.subscription_id}/resourceGroups/{client.resource_group_name}"
        return f"{group}/providers/Microsoft.MachineLearningServices/workspaces/{client.workspace_name}"

    @property
    def region(self) -> str:
        """Region as in Azure's paths, e.g. westeurope."""
        return str(self.workspace.location).replace(" ", "").lower()

    @cached_property
    def sizes(self) -> list[Any]:
        """Machines that Azure ML offers in the region."""
        return list(self.client.compute.list_sizes(location=self.region))

    @cached_property
    def usages(self) -> list[Any]:
        """Core quotas in the region and their current use."""
        return list(self.client.compute.list_usage(location=self.region))

    @cached_property
    def machines(self) -> list[dict[str, Any]]:
        """Machines in the region from Azure Compute's own list, with the restrictions of this subscription."""
        path = f"/subscriptions/{self.client.subscription_id}/providers/Microsoft.Compute/skus"
        listed = self.arm.pages(path, COMPUTE_API, filter=f"location eq '{self.region}'")
        return [row for row in listed if row.get("resourceType") == "virtualMachines"]

    @property
    def endpoint_name(self) -> str:
        """Name of the endpoint, which azure-ai-ml sends unchanged and Azure stores in lower case."""
        return str(self.bundle.get(ENDPOINT, "name") or self.bundle.get(DEPLOYMENT, "endpoint_name") or "")

    @property
    def batch(self) -> bool:
        return self.bundle.kind == "batch"

    @property
    def slot(self) -> str:
        """Deployment that would be created or changed."""
        return (self._slot or str(self.bundle.get(DEPLOYMENT, "name") or "")).lower()

    @cached_property
    def endpoint(self) -> Any | None:
        """Endpoint of that name in this workspace, if there is one."""
        from mii_azure.azure.assets import exists

        operations = self.client.batch_endpoints if self.batch else self.client.online_endpoints
        return exists(lambda: operations.get(self.endpoint_name)) if self.endpoint_name else None

    @cached_property
    def deployments(self) -> list[Any]:
        """Deployments of the endpoint, each with all of its fields."""
        if self.endpoint is None:
            return []
        operations = self.client.batch_deployments if self.batch else self.client.online_deployments
        names = [entry.name for entry in operations.list(self.endpoint_name)]
        return [operations.get(name, self.endpoint_name) for name in sorted(names)]

    @property
    def traffic(self) -> dict[str, int]:
        return nonzero(getattr(self.endpoint, "traffic", None))

    @property
    def deployed(self) -> bool:
        """True if the slot runs this very bundle."""
        digest = self.bundle.manifest.get("bundle")
        return any(
            entry.name == self.slot and digest and (entry.tags or {}).get(TAG) == digest for entry in self.deployments
        )
