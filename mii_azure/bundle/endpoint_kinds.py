"""Differences between kinds of bundles: files, limits, and the decisions that plan.md shows."""

import math
from typing import Any

from mii_azure.bundle.own_image import KAITO_PORT
from mii_azure.errors import InvalidName
from mii_azure.planning.plan import Plan
from mii_azure.planning.rationale import Decision
from mii_azure.platform import limits
from mii_azure.platform.limits import NAMES_LENGTH
from mii_azure.platform.secret_references import CONNECTION_ROLE, uses_connection
from mii_azure.spec import Spec

MINI_BATCH_FILES = 10
_MEMORY_SHARE = 0.85  # of a node's memory; Kubernetes' and Azure's agents use the rest


_COMMON = ("README.md", "plan.md", "deploy.sh")
_AZURE = ("endpoint.yml", "deployment.yml", "environment.yml")


def texts(spec: Spec) -> dict[str, str]:
    """Files of this kind of bundle beside code/ and environment/: {path in the bundle: template}."""
    found = {path: f"{path}.j2" for path in _COMMON} | {".gitattributes": "gitattributes.j2"}
    if spec.carries_code:
        found[".dockerignore"] = "dockerignore.j2"
    if spec.kind == "kaito":
        return found | {"workspace.yml": "workspace-kaito.yml.j2", "deploy.sh": "deploy-kaito.sh.j2"}
    found |= {path: f"{path}.j2" for path in _AZURE}
    if spec.max_instances:
        found |= {f"autoscale.{end}": f"autoscale.{end}.j2" for end in ("sh", "json")}
    if spec.kind == "batch":
        return found | {"endpoint.yml": "endpoint-batch.yml.j2", "deployment.yml": "deployment-batch.yml.j2"}
    if spec.kind == "template":
        return found | {
            "deployment.yml": "deployment-of-template.yml.j2",
            "environment.yml": "environment-of-template.yml.j2",
        }
    return found


def code(spec: Spec) -> dict[str, str]:
    """Rendered Python of this kind's code/: {path in the bundle: template}."""
    batch = {"code/batch_score.py": "batch_score.py.j2"} if spec.kind == "batch" else {}
    return {"code/score.py": "score.py.j2"} | batch


def adapt(spec: Spec, plan: Plan) -> Plan:
    """Adapt the plan to the kind's limits, with a decision for each choice about Azure; raises InvalidName."""
    timeout = plan.request_timeout_ms
    if spec.kind == "kubernetes":
        both = 2 * len(spec.azure_name)
        if not NAMES_LENGTH[0] <= both <= NAMES_LENGTH[1]:
            raise InvalidName(
                f"The names of endpoint and deployment have {both} characters together.",
                f"Kubernetes endpoints take {NAMES_LENGTH[1]}: choose a shorter --name.",
            )
        timeout = min(timeout, limits.KUBERNETES_TIMEOUT_MS)
    extra = [*_of_kind(spec, timeout), *_of_access(spec)]
    return plan.model_copy(update={"request_timeout_ms": timeout, "decisions": (*plan.decisions, *extra)})


def context(spec: Spec, plan: Plan) -> dict[str, Any]:
    """Template variables of the endpoint kinds."""
    return {
        "kind": spec.kind,
        "compute": spec.cluster,
        "resources": resources(plan) if spec.kind in ("kubernetes", "kaito") else {},
        "public_network_access": spec.public_network_access,
        "egress": spec.egress,
        "identities": spec.identities,
        "secrets": spec.secrets,
        "reads_connections": any(uses_connection(value) for value in spec.secrets.values()),
        "max_instances": spec.max_instances,
        "mini_batch_size": MINI_BATCH_FILES,
        "flavour": "batch" if spec.kind == "batch" else "online",
        "busy_metric": "GpuUtilizationPercentage" if plan.device == "cuda" else "CpuUtilizationPercentage",
        "slow_ms": plan.request_timeout_ms // 2,
    }


def resources(plan: Plan) -> dict[str, dict[str, str]]:
    """Kubernetes resources, all text, requests no higher than limits: half of the planned machine, up to all of it."""
    sku = plan.sku
    memory = math.floor(sku.ram_gb * _MEMORY_SHARE)
    gpu = {"nvidia.com/gpu": str(plan.tensor_parallel)} if plan.device == "cuda" else {}
    return {
        "requests": {"cpu": str(max(sku.cores // 2, 1)), "memory": f"{max(memory // 2, 1)}Gi"} | gpu,
        "limits": {"cpu": str(sku.cores), "memory": f"{memory}Gi"} | gpu,
    }


def _of_kind(spec: Spec, timeout: int) -> list[Decision]:
    if spec.kind == "managed":
        return []
    if spec.carries_code:
        return [_of_image(spec)]
    where = f"{spec.kind}, on {spec.cluster}"
    if spec.kind == "batch":
        reason = f"Mini-batches of {MINI_BATCH_FILES} files; one that fails as a whole is tried again."
        return [Decision(what="kind", value=where, reason=reason)]
    reason = f"Nodes like the instance type above; requests end after {timeout // 1000} s (Azure's cap there is 150 s)."
    return [Decision(what="kind", value=where, reason=reason)]


def _of_image(spec: Spec) -> Decision:
    """Decision on a bundle whose image carries it."""
    if spec.kind == "template":
        reason = "What deploys the model takes all from the template; no code is uploaded, so the image carries it."
        return Decision(what="kind", value=f"template, in the registry {spec.registry}", reason=reason)
    reason = f"One pod of an image with code and weights; KAITO's service asks port {KAITO_PORT}, the HTTP host's."
    return Decision(what="kind", value="kaito, on AKS", reason=reason)


def _of_access(spec: Spec) -> list[Decision]:
    """Decisions on identity with the roles that it needs, secrets and network, if they are not the defaults."""
    found = []
    if spec.identities:
        roles = ["AcrPull on the workspace's registry", "Storage Blob Data Reader on its storage account"]
        if any(uses_connection(value) for value in spec.secrets.values()):
            roles.append(f"{CONNECTION_ROLE} on the workspace")
        if any(not uses_connection(value) for value in spec.secrets.values()):
            roles.append("Key Vault Secrets User on the key vault")
        reason = f"Azure grants a user-assigned identity nothing by itself; it needs {', '.join(roles)}."
        found.append(Decision(what="identity", value=f"{len(spec.identities)} user-assigned", reason=reason))
    if spec.secrets:
        reason = "Injected when the container starts; the files hold references only."
        if not spec.identities:
            reason += " The endpoint's own identity reads connections if whoever creates it may; a key vault needs"
            reason += " the role Key Vault Secrets User."
        found.append(Decision(what="secrets", value=", ".join(sorted(spec.secrets)), reason=reason))
    if "disabled" in (spec.public_network_access, spec.egress):
        value = f"public access {spec.public_network_access}, egress {spec.egress}"
        reason = "Reached through the workspace's private endpoint; what the deployment pulls comes from the workspace."
        found.append(Decision(what="network", value=value, reason=reason))
    if spec.max_instances:
        value = f"{spec.instance_count} to {spec.max_instances} instances"
        reason = "`mii-azure deploy` sets it, or ./autoscale.sh; the quota must hold the largest number."
        found.append(Decision(what="autoscale", value=value, reason=reason))
    return found
