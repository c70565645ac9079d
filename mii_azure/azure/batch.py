"""Batch endpoints: the same steps as online ones, with a default deployment in place of traffic."""

from pathlib import Path
from typing import Any

from mii_azure.azure import endpoints
from mii_azure.azure.assets import exists
from mii_azure.azure.client import Say, wait
from mii_azure.bundle.yaml_text import parse_yaml


def is_batch(bundle: Path) -> bool:
    """True if a bundle's endpoint is a batch endpoint."""
    return "batch" in (bundle / "endpoint.yml").read_text(encoding="utf-8").partition("\n")[0].lower()


def ensure_endpoint(client: Any, bundle: Path, say: Say) -> Any:
    """Create endpoint.yml's batch endpoint unless it exists and is healthy; return it.

    Its default deployment is left out: Azure refuses one that does not exist yet.
    """
    from azure.ai.ml import load_batch_endpoint

    desired = load_batch_endpoint(bundle / "endpoint.yml")
    desired.defaults = None
    what = f"batch endpoint {desired.name}"
    current = endpoints.settled(lambda: client.batch_endpoints.get(desired.name), say, what)
    if current is None or endpoints.state(current) == "Failed":
        return wait(client.batch_endpoints.begin_create_or_update(desired), say, what)
    return current


def ensure_deployment(client: Any, bundle: Path, endpoint: str, slot: str, digest: str, say: Say) -> Any:
    """Create or update the deployment of the bundle in `slot`, unless that very bundle is there; return it."""
    desired = load_deployment(bundle / "deployment.yml")
    desired.name, desired.endpoint_name = slot, endpoint
    desired.tags = {**(desired.tags or {}), **endpoints.tags_of(bundle, digest)}
    what = f"deployment {slot}"
    current = endpoints.settled(lambda: client.batch_deployments.get(slot, endpoint), say, what)
    same = current is not None and (current.tags or {}).get(endpoints.TAG) == digest
    if same and endpoints.state(current) != "Failed":
        return current
    wait(client.batch_deployments.begin_create_or_update(desired), say, what)
    return client.batch_deployments.get(slot, endpoint)


def load_deployment(path: Path) -> Any:
    """Load a batch deployment as `az ml batch-deployment create` does: its `type` selects one of three loaders."""
    from azure.ai.ml import load_batch_deployment
    from azure.ai.ml.entities._load_functions import (
        load_model_batch_deployment,
        load_pipeline_component_batch_deployment,
    )

    found = parse_yaml(path.read_text(encoding="utf-8"))
    kind = str(found.get("type") if isinstance(found, dict) else None).lower()
    if kind == "model":
        return load_model_batch_deployment(path)
    return load_pipeline_component_batch_deployment(path) if kind == "pipeline" else load_batch_deployment(path)


def default_of(endpoint: Any) -> str | None:
    """Name of the deployment that runs the jobs."""
    defaults = endpoint.defaults
    name = defaults.get("deployment_name") if isinstance(defaults, dict) else getattr(defaults, "deployment_name", None)
    return str(name) if name else None


def set_default(client: Any, endpoint: str, slot: str, say: Say) -> None:
    """Route jobs to `slot`; sends no request if they go there already."""
    current = client.batch_endpoints.get(endpoint)
    if default_of(current) != slot:
        current.defaults = {"deployment_name": slot}
        wait(client.batch_endpoints.begin_create_or_update(current), say, f"default of {endpoint}")


def is_live(client: Any, endpoint: str) -> bool:
    """True if a batch endpoint of that name exists."""
    return exists(lambda: client.batch_endpoints.get(endpoint)) is not None
