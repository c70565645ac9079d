"""Which passes would be chosen for an instance type that this machine does not have; decided on paper."""

from mii_azure.decisions import Decision
from mii_azure.profile import Profile
from mii_azure.skus import Sku
from mii_azure.spec import Spec
from scoring.config import Limits, Optimisation
from scoring.optimise import choose
from scoring.passes.base import Facts, Hardware
from scoring.passes.catalogue import decoder_passes, diffusion_passes, encoder_passes
from scoring.tasks import TASKS

_GB = 10**9


def settings(spec: Spec) -> Optimisation:
    """What a spec asks of the passes."""
    return Optimisation(spec.objective, spec.optimisations, spec.passes_on, spec.passes_off)


def pass_decisions(spec: Spec, facts: Profile, sku: Sku, dtype: str, limits: Limits) -> list[Decision]:
    """One decision per pass, taken or not, with its reason.

    Raises LoadError for a forced pass that does not exist, PassNotServed for one that cannot apply there.
    """
    if spec.task == "text-to-image":
        passes = diffusion_passes()
    else:
        passes = decoder_passes(limits) if TASKS[spec.task].generative else encoder_passes()
    bytes_each = 4 if dtype == "float32" else 2
    on_paper = Facts(
        family=facts.family,
        architecture=facts.architecture,
        kind=facts.kind,
        parameters=facts.parameters,
        weight_bytes=facts.parameters * bytes_each,
        layers=facts.layers,
        heads=facts.heads,
        kv_heads=facts.kv_heads,
        hidden_size=facts.hidden_size,
    )
    chosen = choose(passes, on_paper, _hardware(sku), settings(spec))
    return [
        Decision(what=f"pass {each.name}", value="yes" if decision.take else "no", reason=_sentence(decision.reason))
        for each, decision in chosen
    ]


def _hardware(sku: Sku) -> Hardware:
    if sku.gpu is None:
        return Hardware("cpu", "cpu", (0, 0), 0, 0, nvcc=False)
    major, minor = str(sku.gpu.compute_capability).split(".")
    # The CUDA image is built on NVIDIA's development image, which has nvcc.
    return Hardware("cuda", sku.gpu.name, (int(major), int(minor)), int(sku.gpu_memory_gb * _GB), 1, nvcc=True)


def _sentence(reason: str) -> str:
    named = "_" in reason.split(" ", 1)[0]  # a pass's own name stays as it is written
    return f"{reason if named else reason[0].upper() + reason[1:]}."
