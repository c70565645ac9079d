"""Instance types that the user describes, because the data do not know them."""

from mii_azure.errors import SpecError, UnknownInstanceType
from mii_azure.hardware.skus import Gpu, Sku, find_sku
from mii_azure.spec import Spec

_SINGLE = 0.07  # of the 16-bit peak in float32 without tensor cores: as of an H100; only a float32 forecast goes by it


def asked_sku(spec: Spec) -> Sku | None:
    """Instance type of a spec: the data's, or as described; None if the plan is to choose.

    Raises UnknownInstanceType for one that neither knows, and SpecError for a description of one that the data know.
    """
    if not spec.describes:
        return find_sku(spec.instance_type) if spec.instance_type else None
    if spec.instance_type is None:
        raise SpecError("A machine is described, and instance_type does not name it.", "Give --instance-type.")
    try:
        known = find_sku(spec.instance_type)
    except UnknownInstanceType:
        return _described(spec, spec.instance_type)
    raise SpecError(f"The data know {known}, which needs no description.", "Leave out --cores, --gpus and the like.")


def _described(spec: Spec, name: str) -> Sku:
    gpu = None
    if spec.gpus:
        gpu = Gpu(
            name=f"GPU of {name}",
            compute_capability=spec.gpu_capability or 0.0,
            bandwidth_gb_s=spec.gpu_bandwidth or 0.0,
            half_tflops=spec.gpu_tflops or 0.0,
            single_tflops=(spec.gpu_tflops or 0.0) * _SINGLE,
        )
    return Sku(
        name=name,
        cores=spec.cores or 1,
        ram_gb=spec.ram or 0.0,
        disk_gb=spec.disk or 0.0,
        gpus=spec.gpus or 0,
        gpu_memory_gb=spec.gpu_memory or 0.0,
        gpu=gpu,
        quota_family=f"the family of {name}",
        skip_20_percent=False,
        retired=None,
        retires=None,
    )
