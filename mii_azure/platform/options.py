"""Azure options of a spec: kind of endpoint, cluster, network, identity, secrets, autoscale."""

import re
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mii_azure.platform.secret_references import FORMS, is_reference

_COMPUTE = r"^(azureml:)?[a-zA-Z][-a-zA-Z0-9]{1,62}$"
IDENTITY = re.compile(
    r"/subscriptions/[^/]+/resourcegroups/[^/]+/providers/Microsoft\.ManagedIdentity/userAssignedIdentities/[^/]+",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class OnCommandLine:
    """Help of a field's flag where the command line takes another form than Python does."""

    text: str


class AzureOptions(BaseModel):
    """Part of a spec that only Azure reads; with every default the YAML is unchanged."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["managed", "kubernetes", "batch"] = Field("managed", description="managed, kubernetes or batch.")
    compute: str | None = Field(None, pattern=_COMPUTE, description="Name of the cluster, for kubernetes and batch.")
    public_network_access: Literal["enabled", "disabled"] = Field(
        "enabled", description="enabled or disabled, of a managed endpoint."
    )
    egress: Literal["enabled", "disabled"] = Field(
        "enabled", description="enabled or disabled: whether a managed deployment reaches the internet."
    )
    identities: Annotated[
        tuple[str, ...], OnCommandLine("Comma-separated resource ids of user-assigned identities.")
    ] = Field((), description="Resource ids of user-assigned identities; none: the system's.")
    secrets: Annotated[
        dict[str, str], OnCommandLine("Comma-separated NAME=REFERENCE of secrets in the environment.")
    ] = Field(default_factory=dict, description=f"Environment variables that hold secrets, by reference: {FORMS}.")
    max_instances: int | None = Field(None, ge=2, le=50, description="Write autoscale rules, up to so many instances.")

    @model_validator(mode="after")
    def _options(self) -> Self:
        if self.kind != "managed" and not self.compute:
            raise ValueError(f"a {self.kind} endpoint needs the name of its cluster: compute")
        if self.kind == "managed" and self.compute:
            raise ValueError("a managed endpoint has no compute; give instance_type")
        if self.kind != "managed" and (self.max_instances or "disabled" in (self.public_network_access, self.egress)):
            raise ValueError("max_instances, public_network_access and egress are for managed endpoints")
        if self.kind == "batch" and (self.secrets or self.identities):
            raise ValueError("Azure ML injects no secrets and takes no identity at batch endpoints; use the cluster's")
        wrong = [identity for identity in self.identities if not IDENTITY.fullmatch(identity)]
        if wrong:
            raise ValueError(f"{wrong[0]!r} is not the resource id of a user-assigned identity")
        literal = [name for name, value in self.secrets.items() if not is_reference(value)]
        if literal:  # the value is not repeated: it may be the secret
            raise ValueError(f"the secret {literal[0]} is not given by reference: {FORMS}")
        return self

    @property
    def cluster(self) -> str | None:
        """Cluster as YAML names it."""
        return f"azureml:{self.compute.removeprefix('azureml:')}" if self.compute else None
