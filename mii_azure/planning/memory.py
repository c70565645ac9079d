"""Memory fit of a model on an instance type, the precision, and the choice of an instance type."""

from collections.abc import Iterable
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from mii_azure.errors import DoesNotFit, NotAvailable
from mii_azure.hardware.skus import Sku, all_skus
from mii_azure.model.families import Family
from mii_azure.model.profile import Profile
from mii_azure.model.safetensors import DTYPE_BYTES
from mii_azure.platform import limits
from mii_azure.platform.limits import GB
from scoring.limits.memory_shares import FETCHED_LAYERS, LIVE_LAYERS
from scoring.passes.families import SLICED_DECODERS, decoder_tier
from scoring.passes.tensor_parallel import DEGREES


class Memory(BaseModel):
    """Memory budget in bytes on the device that holds the weights (on each one, if they are sliced)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: int
    kv_cache: int
    activations: int
    context: int  # CUDA context and libraries, or the Python process on CPU
    available: int

    @property
    def needed(self) -> int:
        return self.weights + self.kv_cache + self.activations + self.context


class Work(NamedTuple):
    """Workload to place: a model, its family, and its task."""

    profile: Profile
    family: Family
    task: str


class Fit(NamedTuple):
    """Placement of a model on an instance type; `problem` is empty if it fits."""

    sku: Sku
    dtype: str
    dtype_reason: str
    tokens: int  # in one batch, padded
    slots: int  # sequences that a decoder advances at once, each of full length; 0: it runs batches
    memory: Memory
    gpus: int  # GPUs that share one copy of the weights; 1 on CPU
    problem: str


def device_of(sku: Sku) -> str:
    return "cuda" if sku.gpu else "cpu"


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
    """Budget memory and disk of one instance for the largest batch that fits; see `Fit.problem`.

    `gpus` share the weights; each GPU holds the fraction `held` of its share at a time.
    """
    dtype, reason = choose_dtype(work, sku, wanted)
    available = _available(sku)
    context_length = work.profile.context_length
    least = min(context_length, limits.MIN_CONTEXT)
    tokens = max(limits.MAX_BATCH_TOKENS[device_of(sku)], context_length)
    if work.profile.kind == "diffusion":
        least = image_tokens(work.profile)
        tokens = limits.MAX_BATCH_IMAGES[device_of(sku)] * least
    memory = _budget(work, sku, dtype, tokens, available, gpus, held)
    while memory.needed * headroom > available and tokens > least:
        tokens = max(tokens // 2, least)
        memory = _budget(work, sku, dtype, tokens, available, gpus, held)
    problem = ""
    if memory.needed * headroom > available:
        place = f"each {sku.gpu.name}" if sku.gpu else "memory"
        problem = f"it needs {memory.needed / GB:.1f} GB and {place} has {available / GB:.1f} GB free"
    slots = 0
    family = work.profile.family
    served = decoder_tier(family).tier is not None if gpus == 1 else family in SLICED_DECODERS
    if held == 1.0 and sku.gpu and work.profile.kind == "decoder" and served:
        slots, memory = _slots(memory, work.profile, dtype, tokens, gpus)
    return Fit(sku, dtype, reason, tokens, slots, memory, gpus, problem or _disk_problem(work.profile, sku))


def _slots(memory: Memory, profile: Profile, dtype: str, tokens: int, gpus: int) -> tuple[int, Memory]:
    """Maximum of full-length slots that fit with headroom beside a batch, and the memory with them on each GPU."""
    context = min(profile.context_length, tokens)
    each = context * profile.kv_bytes_per_token * DTYPE_BYTES[dtype] // DTYPE_BYTES[profile.dtype] // gpus
    for slots in limits.SLOTS:
        # Requests that still run in batches (beam search, say) use the headroom.
        more = memory.model_copy(update={"kv_cache": max(memory.kv_cache, slots * each)})
        if more.needed * limits.HEADROOM["cuda"] <= more.available:
            return slots, more
    slots = max(1, tokens // context)
    return slots, memory


def _available(sku: Sku) -> int:
    if sku.gpu:
        return int(sku.gpu_memory_gb * GB * limits.GPU_USABLE)
    return max(int(sku.ram_gb * GB) - limits.HOST_BYTES, 0)


def _budget(work: Work, sku: Sku, dtype: str, tokens: int, available: int, gpus: int, held: float) -> Memory:
    profile, item = work.profile, DTYPE_BYTES[dtype]
    kv_per_token = profile.kv_bytes_per_token * item // DTYPE_BYTES[profile.dtype]
    return Memory(
        weights=int(_own_parameters(profile, gpus) * item * held),
        kv_cache=kv_per_token * tokens // gpus,
        activations=_activations(work, tokens, item, device_of(sku)),
        context=limits.CUDA_CONTEXT_BYTES if sku.gpu else limits.PROCESS_BYTES,
        available=available,
    )


def _own_parameters(profile: Profile, gpus: int) -> int:
    """Parameters on each of `gpus` GPUs: products are sliced, but neither the embedding nor a static decoder's head."""
    if gpus == 1:
        return profile.parameters
    tables = 2 if profile.family in SLICED_DECODERS else 1  # a head tied to the embedding counts twice, to be safe
    whole = min(tables * profile.vocab_size * profile.hidden_size, profile.parameters)
    return whole + (profile.parameters - whole) // gpus


def image_tokens(profile: Profile) -> int:
    """Tokens of a batch that one image takes: its latent positions and its prompt's tokens, both at full size."""
    side = (profile.image_size or limits.IMAGE_SIZE) // limits.LATENT_SCALE
    return side * side + (profile.context_length or limits.PROMPT_TOKENS)


def batch_rows(profile: Profile, device: str, tokens: int) -> int:
    """Maximum rows of one batch."""
    if profile.kind == "diffusion":
        return max(1, tokens // image_tokens(profile))
    return limits.MAX_BATCH_SIZE[device]


def _drawing_bytes(profile: Profile, tokens: int, item: int) -> int:
    """Bytes of a batch through the UNet, images doubled for guidance, then one image through the VAE's widest maps."""
    unet = 2 * tokens * profile.hidden_size * limits.UNET_WIDTHS * item
    side = profile.image_size or limits.IMAGE_SIZE
    return unet + side * side * limits.VAE_CHANNELS * limits.VAE_MAPS * item


def _activations(work: Work, tokens: int, item: int, device: str) -> int:
    """Bytes alive at the widest point of a forward pass over `tokens` tokens: a layer's values, scores, logits."""
    profile = work.profile
    if profile.kind == "diffusion":
        return _drawing_bytes(profile, tokens, item)
    layer = tokens * profile.hidden_size * limits.ACTIVATION_WIDTHS * item
    length = min(profile.context_length, tokens)
    scores = 0 if work.family.sdpa else 2 * profile.heads * tokens * length * item
    rows = tokens if work.task == "fill-mask" else limits.MAX_BATCH_SIZE[device] if profile.kind != "encoder" else 0
    graphs = limits.GRAPHED_BUFFERS * layer if profile.kind == "encoder" and device == "cuda" else 0
    return layer + graphs + scores + 2 * rows * profile.vocab_size * 4


def _disk_problem(profile: Profile, sku: Sku) -> str:
    image = limits.IMAGE_BYTES[device_of(sku)]
    need, room = profile.weight_bytes + image, sku.disk_gb * GB
    if need <= room:
        return ""
    return (
        f"weights ({profile.weight_bytes / GB:.1f} GB) and the container image (about {image / GB:.0f} GB)"
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
        raise DoesNotFit(
            f"No Azure ML instance type holds {work.profile.model} ({size:.0f} B parameters) on its GPUs.",
            "Use a smaller or a quantised variant of the model.",
        )
    return found


def smallest_cpu(work: Work, wanted: str) -> Fit | None:
    skus = [s for s in all_skus().values() if s.gpu is None and s.cores >= limits.MIN_CPU_CORES]
    return _first(work, sorted(skus, key=lambda s: (s.cores, s.ram_gb)), wanted)


def smallest_gpu(work: Work, wanted: str) -> Fit | None:
    return _first(work, sorted(_gpu_skus(wanted), key=_by_gpu_memory), wanted)


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
    skus = [only] if only else sorted(_gpu_skus(wanted), key=_by_gpu_memory)
    headroom = 1.0 if only else limits.HEADROOM["cuda"]
    fits = (fit(work, sku, wanted, n, headroom) for sku in skus for n in _degrees(work.profile, sku))
    return next((f for f in fits if not f.problem), None)


def _degrees(profile: Profile, sku: Sku) -> list[int]:
    """Numbers of slices that the heads can be divided into, one per GPU; powers of two, as GPUs are linked."""
    able = (n for n in DEGREES if n <= sku.whole_gpus)
    return [n for n in able if profile.heads % n == 0 and profile.kv_heads % n == 0]


def in_slices(work: Work, degree: int, wanted: str, only: Sku | None = None) -> Fit:
    """Smallest instance type (or `only`) for `degree` slices; raises DoesNotFit, NotAvailable."""
    skus = [only] if only else sorted(_gpu_skus(wanted), key=_by_gpu_memory)
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
            f"Choose {', '.join(map(str, DEGREES))}: one that divides both, and an instance type with as many GPUs.",
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


def _gpu_skus(wanted: str) -> list[Sku]:
    """GPU types that may be chosen by default: whole GPUs, able to run the wanted precision."""
    least = limits.BF16_COMPUTE_CAPABILITY if wanted == "bfloat16" else limits.MIN_COMPUTE_CAPABILITY
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
    other = (smallest_cpu(work, wanted) if sku.gpu is None else None) or choose(work, wanted)
    raise DoesNotFit(
        f"{work.profile.model} does not fit {sku.name}: {found.problem}.", f"Smallest that holds it: {other.sku}."
    )
