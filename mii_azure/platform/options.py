"""Azure options of a spec: kind of endpoint, cluster, network, identity, secrets, autoscale."""

import re
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from mii_azure.platform.machine import MachineOptions
from mii_azure.platform.secret_references import FORMS, is_reference

_COMPUTE = r"^(azureml:)?[a-zA-Z][-a-zA-Z0-9]{1,62}$"
_REGISTRY = r"^[a-zA-Z0-9][-_a-zA-Z0-9]{1,32}$"
#: Repository of an image, with its host and without a tag: the tag is the content's hash.
_IMAGE = r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?(:\d{1,5})?(/[a-z0-9]+([._-]+[a-z0-9]+)*)+$"
IDENTITY = re.compile(
    r"/subscriptions/[^/]+/resourcegroups/[^/]+/providers/Microsoft\.ManagedIdentity/userAssignedIdentities/[^/]+",
    re.IGNORECASE,
)

_KINDS = {
    "managed": "a managed endpoint",
    "kubernetes": "a kubernetes endpoint",
    "batch": "a batch endpoint",
    "template": "a deployment template",
    "kaito": "a KAITO workspace",
}


@dataclass(frozen=True)
class OnCommandLine:
    """Help of a field's flag where the command line takes another form than Python does."""

    text: str


class AzureOptions(MachineOptions):
    """Part of a spec that only Azure reads; with every default the YAML is unchanged."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["managed", "kubernetes", "batch", "template", "kaito"] = Field(
        "managed", description="managed, kubernetes, batch, template or kaito."
    )
    registry: str | None = Field(
        None,
        pattern=_REGISTRY,
        description="Azure ML registry of the template's assets, for template: 2 to 33 letters, digits, - and _.",
    )
    image: str | None = Field(
        None,
        pattern=_IMAGE,
        description="Place of the bundle's image, for template and kaito: HOST/REPOSITORY in lower case, no tag.",
    )
    compute: str | None = Field(
        None,
        pattern=_COMPUTE,
        description="Name of the cluster, for kubernetes and batch: a letter, then 1 to 62 letters, digits, hyphens.",
    )
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
        self._check_place()
        managed = self.kind in ("managed", "template")
        if not managed and (self.max_instances or "disabled" in (self.public_network_access, self.egress)):
            raise ValueError("max_instances, public_network_access and egress are for managed endpoints")
        if self.kind == "batch" and (self.secrets or self.identities):
            raise ValueError("Azure ML injects no secrets and takes no identity at batch endpoints; use the cluster's")
        if self.kind == "template" and self.secrets:
            raise ValueError("a deployment template is shared, and Azure documents no secrets in it; leave out secrets")
        if self.kind == "kaito" and (self.secrets or self.identities):
            raise ValueError("secrets and identities are Azure ML's; give the workspace's pod the cluster's own")
        wrong = [identity for identity in self.identities if not IDENTITY.fullmatch(identity)]
        if wrong:
            raise ValueError(f"{wrong[0]!r} is not the resource id of a user-assigned identity")
        literal = [name for name, value in self.secrets.items() if not is_reference(value)]
        if literal:  # the value is not repeated: it may be the secret
            raise ValueError(f"the secret {literal[0]} is not given by reference: {FORMS}")
        return self

    def _check_place(self) -> None:
        """Raise ValueError unless the kind has what names its place, and nothing of another kind's."""
        needed = {
            "kubernetes": {"compute"},
            "batch": {"compute"},
            "template": {"registry", "image"},
            "kaito": {"image"},
        }
        wanted = needed.get(self.kind, set())
        given = {name for name in ("compute", "registry", "image") if getattr(self, name)}
        if missing := sorted(wanted - given):
            told = "the name of its cluster: compute" if missing == ["compute"] else " and ".join(missing)
            raise ValueError(f"{_KINDS[self.kind]} needs {told}")
        if surplus := sorted(given - wanted):
            hint = "; give instance_type" if surplus == ["compute"] else ""
            raise ValueError(f"{_KINDS[self.kind]} has no {' and no '.join(surplus)}{hint}")

    @property
    def carries_code(self) -> bool:
        """True if the image carries the code, since nothing else brings it there."""
        return self.kind in ("template", "kaito")

    @property
    def cluster(self) -> str | None:
        """Cluster as YAML names it."""
        return f"azureml:{self.compute.removeprefix('azureml:')}" if self.compute else None
