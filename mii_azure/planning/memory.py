"""Memory fit of a model on an instance type, the precision, and the choice of an instance type."""

from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

from mii_azure.errors import DoesNotFit, NotAvailable
from mii_azure.hardware.skus import Sku, all_skus
from mii_azure.model.profile import Profile
from mii_azure.model.safetensors import DTYPE_BYTES
from mii_azure.planning.budget import (
    Memory,
    Room,
    Work,
    batched_room,
    budget,
    device_of,
    is_paged,
    most_rows,
    paged_room,
    rows_with_states,
)
from mii_azure.platform import limits
from mii_azure.platform.limits import GB
from scoring.limits.memory_shares import FETCHED_LAYERS, LIVE_LAYERS
from scoring.passes.base import FP8_CAPABILITY
from scoring.passes.families import uncut
from scoring.passes.tensor_parallel import DEGREES


class Fit(NamedTuple):
    """Placement of a model on an instance type; `problem` is empty if it fits."""

    sku: Sku
    dtype: str
    dtype_reason: str
    room: Room
    memory: Memory
    gpus: int  # GPUs that share one copy of the weights; 1 on CPU
    problem: str


def choose_dtype(work: Work, sku: Sku, wanted: str) -> tuple[str, str]:
    """Choose the precision to serve in, with the reason; raise NotAvailable for one that the hardware lacks."""
    if sku.gpu is None:
        return _cpu_dtype(wanted)
    modern = sku.gpu.compute_capability >= limits.BF16_COMPUTE_CAPABILITY
    if wanted == "bfloat16" and not modern:
        raise NotAvailable(
            f"The {sku.gpu.name} of {sku.name} has no bfloat16 arithmetic.",
            "Ask for float16, or for an instance type with an A10, A100 or H100.",
        )
    if wanted != "auto":
        return wanted, "asked for"
    if not work.profile.known:
        return ("bfloat16" if modern else "float16"), "the stored type is not known; half the memory and tensor cores"
    stored, half = work.profile.dtype, work.family.half
    if half == "bfloat16":
        if modern:
            return half, f"{work.family.name} overflows in float16 and {sku.gpu.name} has bfloat16"
        return "float32", f"{work.family.name} overflows in float16 and {sku.gpu.name} has no bfloat16"
    if stored == "bfloat16" and modern:
        return stored, "as stored"
    if stored == "float16":
        return stored, "as stored"
    why = f"{sku.gpu.name} has no bfloat16" if stored == "bfloat16" else "half the memory and tensor cores"
    return "float16", f"stored in {stored}; {why}"


def _cpu_dtype(wanted: str) -> tuple[str, str]:
    if wanted == "auto":
        return "float32", "CPU instance types have no 16-bit arithmetic to gain from"
    if wanted == "float32":
        return wanted, "asked for"
    return wanted, "asked for; saves memory, and is slower than float32 on these CPUs"


def fit(work: Work, sku: Sku, wanted: str = "auto", gpus: int = 1, headroom: float = 1.0, held: float = 1.0) -> Fit:
    """Budget memory and disk of one instance for the most that fits; see `Fit.problem`.

    `gpus` share the weights; each GPU holds the fraction `held` of its share at a time.
    """
    dtype, reason = choose_dtype(work, sku, wanted)
    paged = held == 1.0 and is_paged(work, sku, gpus)
    rows = most_rows(work, sku, paged)
    if paged:
        rows = rows_with_states(work, sku, rows, lambda rows: budget(work, sku, dtype, rows, gpus, held, 0, 0))
    budgeted = partial(budget, work, sku, dtype, rows, gpus, held)
    room, memory = (paged_room if paged else batched_room)(work, sku, rows, budgeted, headroom)
    problem = ""
    if memory.needed * (1.0 if work.demand.share else headroom) > memory.available:
        place = f"each {sku.gpu.name}" if sku.gpu else "memory"
        problem = f"{_asked(work)}it needs {memory.needed / GB:.1f} GB and {place} has"
        problem += f" {memory.available / GB:.1f} GB free"
    return Fit(sku, dtype, reason, room, memory, gpus, problem or _disk_problem(work, sku))


def _asked(work: Work) -> str:
    """Words for what was asked of the memory, to begin a sentence of what it needs."""
    context, concurrency = work.demand.context, work.demand.concurrency
    words = [f"{context:,} tokens of context"] if context else []
    words += [f"{concurrency} requests at once"] if concurrency else []
    return f"with {' and '.join(words)} " if words else ""


def _disk_problem(work: Work, sku: Sku) -> str:
    image = limits.IMAGE_BYTES[device_of(sku)]
    need, room = work.stored_bytes + image, sku.disk_gb * GB
    if need <= room:
        return ""
    return (
        f"weights ({work.stored_bytes / GB:.1f} GB) and the container image (about {image / GB:.0f} GB)"
        f" do not fit its local disk of {sku.disk_gb:g} GB"
    )


def usable(sku: Sku) -> bool:
    """True if the image's CUDA supports its GPU; always for CPU instance types."""
    return sku.gpu is None or sku.gpu.compute_capability >= limits.MIN_COMPUTE_CAPABILITY


def choose(work: Work, wanted: str = "auto") -> Fit:
    """Choose the smallest instance type that holds the model; raise DoesNotFit if none does.

    Encoders below 400 M parameters go on the CPU type with fewest cores, then least memory, that fits with headroom;
    everything else on the GPU type with least GPU memory, then fewest cores.
    """
    on_cpu = work.profile.kind == "encoder" and work.profile.parameters < limits.CPU_ENCODER_PARAMETERS
    found = (smallest_cpu(work, wanted) if on_cpu else None) or smallest_gpu(work, wanted) or sliced(work, wanted)
    if found is None:
        size = work.profile.parameters / 1e9
        what = f"{work.profile.model} ({size:.0f} B parameters) {_asked(work)}"
        raise DoesNotFit(
            f"No Azure ML instance type holds {what}on its GPUs.",
            "Ask for less of it." if _asked(work) else "Use a smaller or a quantised variant of the model.",
        )
    return found


def smallest_cpu(work: Work, wanted: str) -> Fit | None:
    skus = [s for s in all_skus().values() if s.gpu is None and s.cores >= limits.MIN_CPU_CORES]
    return _first(work, sorted(skus, key=lambda s: (s.cores, s.ram_gb)), wanted)


def smallest_gpu(work: Work, wanted: str) -> Fit | None:
    return _first(work, sorted(_gpu_skus(work, wanted), key=_by_gpu_memory), wanted)


def _by_gpu_memory(sku: Sku) -> tuple[float, int]:
    return sku.gpus * sku.gpu_memory_gb, sku.cores


def _first(work: Work, skus: Iterable[Sku], wanted: str) -> Fit | None:
    """First instance type that holds the model on one device with headroom."""
    fits = (fit(work, sku, wanted, headroom=limits.HEADROOM[device_of(sku)]) for sku in skus)
    return next((f for f in fits if not f.problem), None)


def sliced(work: Work, wanted: str, only: Sku | None = None) -> Fit | None:
    """Smallest instance type (or `only`) whose GPUs together hold the model, its heads divided among them."""
    if work.profile.kind == "diffusion":
        return None
    skus = [only] if only else sorted(_gpu_skus(work, wanted), key=_by_gpu_memory)
    headroom = 1.0 if only else limits.HEADROOM["cuda"]
    fits = (fit(work, sku, wanted, n, headroom) for sku in skus for n in _degrees(work.profile, sku))
    return next((f for f in fits if not f.problem), None)


def _degrees(profile: Profile, sku: Sku) -> list[int]:
    """Numbers of slices that the heads can be divided into, one per GPU; powers of two, as GPUs are linked."""
    able = (n for n in DEGREES if n <= sku.whole_gpus)
    return [n for n in able if not uncut(profile.family, n, profile.heads, profile.kv_heads)]


def _instead(profile: Profile, only: Sku | None) -> str:
    """Remedy for a number of slices that cannot be."""
    able = [n for n in DEGREES if not uncut(profile.family, n, profile.heads, profile.kv_heads)]
    if not able:
        return "Leave --tensor-parallel out: no number of GPUs divides its heads."
    many = "" if only is None or only.whole_gpus >= able[0] else ", and an instance type with as many GPUs"
    return f"Choose {' or '.join(map(str, able))}{many}."


def in_slices(work: Work, degree: int, wanted: str, only: Sku | None = None) -> Fit:
    """Smallest instance type (or `only`) for `degree` slices; raises DoesNotFit, NotAvailable."""
    skus = [only] if only else sorted(_gpu_skus(work, wanted), key=_by_gpu_memory)
    able = [sku for sku in skus if degree in _degrees(work.profile, sku)]
    if not able:
        heads = f"{work.profile.heads} heads and {work.profile.kv_heads} key-value heads"
        place = (
            f"{only.name} has {only.whole_gpus} GPU{'' if only.whole_gpus == 1 else 's'}"
            if only
            else "no instance type suits"
        )
        raise NotAvailable(
            f"{work.profile.model} cannot be sliced over {degree} GPUs: it has {heads}; {place}.",
            _instead(work.profile, only),
        )
    fits = [fit(work, sku, wanted, degree) for sku in able]
    found = next((f for f in fits if not f.problem), None)
    if found is None:
        raise DoesNotFit(
            f"{work.profile.model} does not fit {degree} GPUs of {fits[-1].sku.name}: {fits[-1].problem}.",
            "Use more GPUs, or a smaller model.",
        )
    return found


def offloaded(work: Work, sku: Sku, wanted: str) -> Fit:
    """Placement on one GPU with the weights in host memory; raises DoesNotFit if that is too small."""
    found = fit(work, sku, wanted, held=min(1.0, (LIVE_LAYERS + FETCHED_LAYERS) / max(1, work.profile.layers)))
    weights = work.profile.parameters * DTYPE_BYTES[found.dtype]
    room = int(sku.ram_gb * GB) - limits.HOST_BYTES - limits.PROCESS_BYTES
    problem = found.problem
    if weights > room:
        problem = f"its weights take {weights / GB:.1f} GB and the RAM has {max(0, room) / GB:.1f} GB free"
    if problem:
        raise DoesNotFit(
            f"{work.profile.model} does not fit {sku.name}, its weights in RAM: {problem}.",
            "Choose an instance type with more memory.",
        )
    return found


def _gpu_skus(work: Work, wanted: str) -> list[Sku]:
    """GPU types that may be chosen by default: whole GPUs, able to run the wanted precision, and the cache's."""
    least = limits.BF16_COMPUTE_CAPABILITY if wanted == "bfloat16" else limits.MIN_COMPUTE_CAPABILITY
    if work.demand.narrow:
        least = max(least, FP8_CAPABILITY[0] + FP8_CAPABILITY[1] / 10)
    return [sku for sku in all_skus().values() if sku.gpu and sku.whole_gpus and sku.gpu.compute_capability >= least]


def place(work: Work, sku: Sku, wanted: str) -> Fit:
    """Place the model on the requested instance type; if it does not fit, raise with the smallest that holds it."""
    if not usable(sku):
        gpu = sku.gpu.name if sku.gpu else "none"
        retired = f", and Azure retired its series on {sku.retired}" if sku.retired else ""
        raise NotAvailable(
            f"{sku.name} has a GPU ({gpu}) that the CUDA 13 builds of torch no longer support{retired}.",
            f"Smallest that holds the model: {(smallest_gpu(work, wanted) or choose(work, wanted)).sku}.",
        )
    found = fit(work, sku, wanted)
    if not found.problem:
        return found
    spread = sliced(work, wanted, only=sku) if sku.gpu else None
    if spread:
        return spread
    raise DoesNotFit(
        f"{work.profile.model} does not fit {sku.name}: {found.problem}.",
        f"{_shorter(work, sku, wanted)}{_larger(work, sku, wanted)}",
    )


def _larger(work: Work, sku: Sku, wanted: str) -> str:
    """Sentence that names the smallest instance type that holds what another does not; raises DoesNotFit."""
    other = (smallest_cpu(work, wanted) if sku.gpu is None else None) or choose(work, wanted)
    return f"Smallest that holds it: {other.sku}."


def _shorter(work: Work, sku: Sku, wanted: str) -> str:
    """Sentence that says how much context an instance type does hold, if more was asked for."""
    own = fit(work._replace(demand=work.demand._replace(context=None)), sku, wanted)
    if not work.demand.context or own.problem:
        return ""
    return f"It holds a context of {own.room.context:,} tokens. "
