"""Bundles whose image carries the code: deployment templates in a registry, and KAITO's workspaces on AKS.

Neither uploads a code folder as a deployment does, so that the image is built over the whole bundle, and its tag is the
hash of what it carries.
"""

import re
from typing import Any

from mii_azure.errors import NotAvailable, SpecError
from mii_azure.hardware.skus import Sku, all_skus
from mii_azure.model.source import names_files
from mii_azure.planning.plan import Plan
from mii_azure.spec import Spec

HOME = "/opt/mii-azure/bundle"  # in the image
MOUNTS = "/var/azureml-app/azureml-models"  # where Azure ML mounts a model, unless it says so by AZUREML_MODEL_DIR
KAITO_PORT = 5000  # that the service of KAITO asks: PortInferenceServer of its pkg/utils/consts
NODE_S = 1800  # allowed for a new node and the pull of its image
#: Sizes that KAITO makes nodes of by itself: N_SERIES_PREFIX and D_SERIES_PREFIX of its pkg/sku.
KAITO_SIZES = re.compile(r"Standard_[ND]", re.IGNORECASE)
_ACR = re.compile(r"([a-z0-9]+)\.azurecr\.(io|cn|us)")


def carried(spec: Spec) -> tuple[str, ...]:
    """Folders of the bundle that its image carries."""
    return {"template": ("code",), "kaito": ("code", "model")}.get(spec.kind, ())


def require(spec: Spec, plan: Plan, model_version: str | None) -> None:
    """Raise SpecError or NotAvailable for what the kind cannot serve."""
    if spec.carries_code and (model_version is None or names_files(spec.model)):
        raise SpecError(
            f"A bundle of kind {spec.kind} holds its model, and {spec.model} is only a reference.",
            "Give the model's folder or hub id.",
        )
    if spec.kind == "kaito" and not KAITO_SIZES.match(plan.instance_type):
        raise NotAvailable(
            f"KAITO makes nodes of the N and D series only, and {plan.instance_type} is neither.",
            "Give --instance-type, e.g. Standard_D8as_v4 or Standard_NC4as_T4_v3.",
        )


def context(spec: Spec, plan: Plan) -> dict[str, Any]:
    """Template variables of a bundle whose image carries it; those of other kinds are empty."""
    registry = _ACR.match(spec.image or "")
    return {
        "carried": carried(spec),
        "carried_home": HOME,
        "mounts": MOUNTS,
        "registry": spec.registry,
        "image_name": spec.image,
        "acr": registry[1] if registry else None,
        "repository": (spec.image or "").partition("/")[2],
        "template_name": f"{spec.azure_name}-template",
        "allowed_types": [sku.name for sku in _like(plan.sku)] if spec.kind == "template" else [],
        "accelerator": _accelerator(plan),
        "accelerators": plan.tensor_parallel,
        "kaito_port": KAITO_PORT,
        "start_s": NODE_S + plan.readiness.initial_delay + plan.readiness.period * plan.readiness.failure_threshold,
    }


def _like(sku: Sku) -> list[Sku]:
    """Instance types that serve the same image and plan: the same GPUs, or CPUs of the family, and no less of them."""

    def same(other: Sku) -> bool:
        machine = other.gpu == sku.gpu and other.gpus == sku.gpus and other.gpu_memory_gb >= sku.gpu_memory_gb
        family = sku.gpu is not None or other.quota_family == sku.quota_family
        room = other.cores >= sku.cores and other.ram_gb >= sku.ram_gb and other.disk_gb >= sku.disk_gb
        return machine and family and room and not other.retired

    return [other for other in all_skus().values() if same(other)] or [sku]


def _accelerator(plan: Plan) -> str | None:
    """Azure's name of the GPU in accelerator maps; None where it documents none."""
    gpu = plan.sku.gpu
    return gpu.accelerator_type if gpu and plan.device == "cuda" else None
