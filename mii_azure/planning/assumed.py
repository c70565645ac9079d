"""Places a model on an instance type of which only the name is known, by what the model needs at least."""

from mii_azure.errors import DoesNotFit
from mii_azure.hardware.described import NamedSize
from mii_azure.hardware.skus import DESCRIBE, Sku
from mii_azure.planning import memory
from mii_azure.planning.budget import Work
from mii_azure.planning.memory import Fit
from mii_azure.spec import Spec


def place(spec: Spec, work: Work, size: NamedSize) -> Fit:
    """Place the model as on the smallest known instance type that holds it, with GPUs or without as the name says.

    A machine with less could not serve the model, so that such settings suit every machine that can.
    Raises DoesNotFit, NotAvailable.
    """
    if spec.tensor_parallel > 1 and work.profile.known:
        found: Fit | None = memory.in_slices(work, spec.tensor_parallel, spec.dtype)
    elif size.gpus:
        found = memory.smallest_gpu(work, spec.dtype) or memory.sliced(work, spec.dtype)
    else:
        found = memory.smallest_cpu(work, spec.dtype)
    if found is None:
        what = "GPU" if size.gpus else "CPU"
        raise DoesNotFit(
            f"Only the name of {size.name} is known, and no {what} instance type of the data holds {work.profile.model}"
            " to plan it by.",
            DESCRIBE,
        )
    return found._replace(
        sku=_like(found.sku, found.gpus, size), dtype_reason=f"as on {found.sku.name}: {found.dtype_reason}"
    )


def _like(sku: Sku, gpus: int, size: NamedSize) -> Sku:
    """The named machine with the memory and as many GPUs of a known one as the model takes."""
    gpu = sku.gpu and sku.gpu.model_copy(update={"name": f"GPU like {sku.gpu.name}", "accelerator_type": None})
    own = {
        "name": size.name,
        "cores": size.cores,
        "gpus": gpus if gpu else 0,
        "gpu": gpu,
        "quota_family": f"the family of {size.name}",
        "skip_20_percent": False,
        "retired": None,
        "retires": None,
        "processors": (),
        "assumed_like": sku.name,
    }
    return sku.model_copy(update=own)
