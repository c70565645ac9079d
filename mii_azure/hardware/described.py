"""Instance types that the data do not know: as the user describes them, or by what their names say."""

import re
from typing import NamedTuple

from mii_azure.errors import SpecError, UnknownInstanceType
from mii_azure.hardware.skus import Gpu, Sku, find_sku
from mii_azure.spec import Spec

_SINGLE = 0.07  # of the 16-bit peak in float32 without tensor cores: as of an H100; only a float32 forecast goes by it
#: Azure's form of names: series, vCPUs, constrained vCPUs, features, accelerator and version.
_FORM = re.compile(
    r"(standard_)?([abdefghlmn])[a-z]{0,2}([1-9][0-9]{0,3})(-[0-9]{1,4})?[a-z]{0,8}(_[a-z0-9]{1,16}){0,4}",
    re.IGNORECASE,
)
_AMD = re.compile(r"_(mi[0-9]|v620|v710)", re.IGNORECASE)
_VERSION = re.compile(r"_v[0-9]{1,2}$", re.IGNORECASE)


class NamedSize(NamedTuple):
    """Facts that the name of an instance type says, by Azure's convention."""

    name: str
    cores: int
    gpus: bool  # N series


def named_size(name: str) -> NamedSize | None:
    """Reads the name of an instance type; None if Azure names none so."""
    name = name.strip()
    found = _FORM.fullmatch(name)
    if not found or not (found[1] or _VERSION.search(name)):
        return None
    cores = int((found[4] or "")[1:] or found[3])
    return NamedSize(name if found[1] else f"Standard_{name}", max(cores, 1), found[2].lower() == "n")


def unfamiliar(name: str | None, described: bool) -> UnknownInstanceType | None:
    """Error about an instance type that is planned by its name alone; None for any other.

    Its message says what is not known, its remedy which names are near, and how the machine is described.
    """
    if name is None or described or named_size(name) is None:
        return None
    try:
        find_sku(name)
    except UnknownInstanceType as error:
        amd = "By its name it has AMD's GPUs, and the image runs on NVIDIA's. " if _AMD.search(name) else ""
        return UnknownInstanceType(error.message, f"{amd}{error.hint}")
    return None


def asked_sku(spec: Spec) -> Sku | None:
    """Instance type of a spec: the data's, or as described; None if the plan is to choose, or has only a name.

    Raises UnknownInstanceType for a name that is none of Azure's, and SpecError for a description of one that the data
    know.
    """
    if not spec.describes:
        if spec.instance_type is None or unfamiliar(spec.instance_type, described=False):
            return None
        return find_sku(spec.instance_type)
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
