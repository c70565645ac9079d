"""Reasons of a plan, in sentences."""

from pydantic import BaseModel, ConfigDict

from mii_azure.hardware.skus import Sku
from mii_azure.model.consistency import shown
from mii_azure.model.families import Options
from mii_azure.model.profile import Profile
from mii_azure.model.safetensors import DTYPE_BYTES
from mii_azure.planning import latency
from mii_azure.planning.budget import Work, device_of, draft_bytes, layer_groups
from mii_azure.planning.latency import Start, Wait
from mii_azure.planning.memory import Fit, smallest_gpu
from mii_azure.platform import limits
from mii_azure.platform.limits import GB
from mii_azure.spec import Spec
from scoring.config import Limits
from scoring.decoder.layer_groups import LayerGroups
from scoring.limits.memory_shares import DRAFT_CACHE_TOKENS
from scoring.sentence.forms import COLBERT, COLBERT_FILE


class Decision(BaseModel):
    """Choice with its reason."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    what: str  # e.g. "precision", "instance type", "readiness probe"
    value: str
    reason: str
    forecast: bool = False  # decided again on the serving machine, perhaps differently

    @property
    def shown(self) -> str:
        """Value, marked if it is a forecast."""
        return f"{self.value} (forecast)" if self.forecast else self.value


SOURCES = {
    "folder": "From config.json and safetensors headers of the folder",
    "hub": "From config.json and safetensors headers read from the hub",
    "recorded": "From facts recorded by hand, since the hub could not be asked",
    "reference": "The reference is not opened, so nothing about the model was checked",
}


def of_model(work: Work, options: Options) -> list[Decision]:
    """Describe the model and its task's options."""
    facts = work.profile
    size = f"{facts.parameters:,} parameters" if facts.known else facts.model
    decisions = [Decision(what="model", value=size, reason=f"{SOURCES[facts.source]}.")]
    if facts.widened:
        wide = f"{facts.parameters * DTYPE_BYTES[facts.dtype] / 1e6:,.1f} MB"
        reason = f"Widened to {facts.dtype} when the bundle is written: {wide} shipped and loaded, and as fast as they"
        smaller = "" if facts.shipped else "; --quantise int4 or int8 brings the bytes down again"
        decisions.append(Decision(what="file", value=facts.widened, reason=f"{reason} are{smaller}."))
    if facts.known and not work.family.tested:
        reason = "Facts were read under their usual names; this family is not among those tested here."
        decisions.append(Decision(what="family", value=facts.family or "unknown", reason=reason))
    if facts.estimated:
        told = ", ".join(name.replace("_", " ") for name in facts.estimated)
        reason = "config.json says them under no known name; only the estimates of memory and time rest on them."
        decisions.append(Decision(what="estimated facts", value=told, reason=reason))
    if facts.unembedded:
        reason = "The tokenizer has them and the model no embedding: a request that holds one is answered 400."
        decisions.append(Decision(what="tokens without embedding", value=shown(facts.unembedded), reason=reason))
    if facts.pooling:
        own = facts.architecture == COLBERT
        reason = f"What {COLBERT_FILE} says." if own else "What the folder's modules.json says, in its order."
        decisions.append(Decision(what="pooling", value=facts.pooling, reason=reason))
    if options:
        value = ", ".join(f"{key} {str(value).lower()}" for key, value in options.items())
        asked = "As asked for." if "tgt_lang" in options or "src_lang" in options else ""
        default = "The task's default: the folder has no modules.json." if "pooling" in options else ""
        reason = asked or default or "The model's own, or the task's default."
        decisions.append(Decision(what="task options", value=value, reason=reason))
    return decisions


def of_draft(work: Work, placed: Fit) -> list[Decision]:
    """Describe the draft model, if there is one."""
    if work.draft is None:
        return []
    size = draft_bytes(work, placed.dtype) / GB
    reason = f"Its vocabulary is the model's. Weights and a cache of {DRAFT_CACHE_TOKENS:,} tokens take {size:.2f} GB."
    return [Decision(what="draft model", value=f"{work.draft.parameters:,} parameters", reason=reason)]


def of_place(spec: Spec, work: Work, placed: Fit) -> list[Decision]:
    """Describe the model's instance type, its precision, and its use of memory."""
    sku, memory = placed.sku, placed.memory
    decisions = [
        Decision(what="instance type", value=sku.name, reason=_why_sku(spec, work, placed)),
        Decision(
            what="precision", value=placed.dtype, reason=placed.dtype_reason[:1].upper() + placed.dtype_reason[1:] + "."
        ),
        Decision(what="image", value="cuda13" if sku.gpu else "cpu", reason=_why_image(sku)),
    ]
    if not work.profile.known:
        return decisions
    parts = f"weights {memory.weights / GB:.2f}, keys and values {memory.kv_cache / GB:.2f}"
    parts += f", activations {memory.activations / GB:.2f}, context {memory.context / GB:.2f}"
    room = "" if sku.assumed_like else f"of {memory.available / GB:.2f} "
    share = "On each GPU" if placed.gpus > 1 else "On the GPU" if sku.gpu else "In RAM"
    decisions.append(
        Decision(
            what="memory",
            value=f"{memory.needed / GB:.2f} {room}GB",
            reason=f"{share}, in GB: {parts}.",
        )
    )
    if placed.gpus > 1:
        reason = "Asked for." if spec.tensor_parallel else "No single GPU holds it."
        decisions.append(Decision(what="tensor parallel", value=str(placed.gpus), reason=reason))
    if sku.whole_gpus > placed.gpus:
        decisions.append(_of_idle_gpus(spec, work, placed))
    return decisions


def _of_idle_gpus(spec: Spec, work: Work, placed: Fit) -> Decision:
    """Tell of GPUs that are paid for and not used, and what would use them or cost less."""
    sku = placed.sku
    smaller = smallest_gpu(work, spec.dtype)
    reason = f"An instance serves one copy of the model, on {placed.gpus} of its {sku.whole_gpus} GPUs."
    if smaller and smaller.sku.whole_gpus < sku.whole_gpus:
        reason += f" {smaller.sku.name} holds it on {smaller.sku.whole_gpus}, so more instances of it cost less."
    reason += f" `mii-azure serve --replicas {sku.whole_gpus // placed.gpus}` on a machine of your own uses them all."
    return Decision(what="idle GPUs", value=f"{sku.whole_gpus - placed.gpus} of {sku.whole_gpus}", reason=reason)


def _why_sku(spec: Spec, work: Work, placed: Fit) -> str:
    sku = placed.sku
    what = f"{sku.cores} cores, {sku.ram_gb:g} GB"
    if sku.gpu:
        what = f"{sku.gpus:g} x {sku.gpu.name}, {what}"
    if sku.assumed_like:
        return _why_assumed(work, sku)
    if spec.describes:
        return f"Described by you: the data do not know it; {what}. Its quota family and price are not known here."
    if spec.instance_type:
        shared = " It is a share of a GPU, which others use too." if sku.gpu and not sku.whole_gpus else ""
        return f"Asked for; {what}.{shared}"
    if sku.gpu is None:
        limit = limits.CPU_ENCODER_PARAMETERS // 1_000_000
        return f"Encoder below {limit} M parameters: fewest cores that hold it with headroom; {what}."
    if placed.gpus > 1:
        return f"Least GPU memory that holds it in slices; {what}."
    kind = work.profile.kind
    return f"{kind.capitalize()}: the smallest GPU that holds it, then fewest cores; {what}."


def _why_assumed(work: Work, sku: Sku) -> str:
    kind, holds = "GPUs" if sku.gpu else "no GPUs", " that holds the model" if work.profile.known else ""
    reason = "Asked for; the data do not know it, nor is it known whether the model fits. By its name it has"
    reason += f" {sku.cores} cores and {kind}. Precision, batch, cache, concurrency, timeout and probes are those of"
    reason += f" {sku.assumed_like}, the smallest of the data{holds}; describe the machine for its own."
    return reason


def _why_image(sku: Sku) -> str:
    if sku.assumed_like and sku.gpu:
        return "For NVIDIA GPUs of compute capability 7.5 and later, in case it has those; AMD's do not run it."
    if sku.gpu is None:
        return "No GPU."
    return f"{sku.gpu.name} has compute capability {sku.gpu.compute_capability}; torch's CUDA 13 builds start at 7.5."


def of_serving(work: Work, placed: Fit, bounds: Limits) -> list[Decision]:
    """Describe context, batches, cache, concurrency and payload."""
    facts, room, batch = work.profile, placed.room, bounds.max_batch_size
    decisions = [_of_context(work, placed)] if facts.known else []
    decisions.append(Decision(what="batch", value=_batch(facts, batch, placed), reason=_why_batch(facts, placed)))
    if room.pool:
        decisions += _of_cache(work, placed)
    decisions += _of_cached_layers(facts)
    return [
        *decisions,
        Decision(
            what="concurrency",
            value=f"{room.rows} requests per instance",
            reason=f"{_why_rows(work, placed)}; Azure answers 429 past {limits.IN_FLIGHT_FACTOR} times that.",
        ),
        Decision(
            what="payload",
            value=f"{limits.ENDPOINT_BYTES_PER_S / 1e6:g} MB",
            reason="What an Azure endpoint's bandwidth carries in a second.",
        ),
    ]


def _of_context(work: Work, placed: Fit) -> Decision:
    served, own = placed.room.context, work.profile.context_length
    reason = "The model's own."
    if work.demand.context:
        reason = f"Asked for; the model's own is {own}."
    elif served < own:
        reason = f"Memory does not hold the model's {own} tokens."
        if placed.room.pool:
            reason = f"Memory does not hold one sequence of the model's {own} tokens."
    return Decision(what="context length", value=f"{served} tokens", reason=reason)


def _of_cache(work: Work, placed: Fit) -> list[Decision]:
    """Describe the paged cache, and the requests that it is expected to hold."""
    demand, room = work.demand, placed.room
    share = f"the asked {demand.share:.0%} of the GPU's memory" if demand.share else "the GPU's memory"
    each = f" on each of {placed.gpus} GPUs" if placed.gpus > 1 else ""
    asked = (demand.prompt, demand.new) != (limits.EXPECTED_PROMPT_TOKENS, limits.EXPECTED_NEW_TOKENS)
    return [
        *_of_windows(work, placed),
        Decision(
            what="KV cache",
            value=f"{room.pool} tokens{' in FP8' if demand.narrow else ''}, {placed.memory.kv_cache / GB:.1f} GB{each}",
            reason=f"What is left of {share}; sequences take pages of it as they grow, whatever their number."
            + (" In FP8, as asked for: a byte a number, whose error the start measures." if demand.narrow else ""),
        ),
        Decision(
            what="expected request",
            value=f"{demand.prompt} prompt tokens and {demand.new} new ones",
            reason=("Asked for." if asked else "Unless told: --expected-prompt-tokens, --expected-new-tokens.")
            + " Longer ones are served too, fewer at once.",
        ),
    ]


def _of_windows(work: Work, placed: Fit) -> list[Decision]:
    """Describe the layers that see a window, where some do, and what a paged cache keeps of them."""
    facts, context = work.profile, placed.room.context
    if not facts.windowed_layers:
        return []
    groups = layer_groups(work, context)
    reason = "They keep no more of a sequence than that, and the pages of a piece of its prompt while it is computed."
    if not any(groups.windows):
        reason = f"In a context of {context:,} tokens that saves too little: they keep all, as the others do."
    elif facts.windowed_layers < facts.layers:
        reason += " The others keep all."
        reason += _empty(facts, groups)
    value = f"{facts.windowed_layers} of {facts.layers}, {facts.window:,} tokens"
    return [Decision(what="layers with a window", value=value, reason=reason)]


def _empty(facts: Profile, groups: LayerGroups) -> str:
    """Sentence on places of a paged cache that no layer fills; empty where all are filled."""
    if facts.cached_layers:
        share = 1 - sum(own.numbers for own in facts.cached_layers) / groups.room
        return f" Pages are as large for layers with other heads: {share:.0%} of them stays empty." if share else ""
    layers, places = (number // (facts.kv_heads * facts.head_dim) for number in (groups.size, groups.room))
    empty = places - facts.layers
    return f" Pages hold {layers} layers: {empty} of {places} places stay empty." if empty else ""


def _of_cached_layers(facts: Profile) -> list[Decision]:
    """Describe what layers keep of a token, where they differ in their heads or share what they keep."""
    if not facts.cached_layers:
        return []
    told = [
        f"{own.layers} with {own.heads} key-value heads of {own.head_dim}"
        + (f" that see {own.window:,} tokens" if own.window else "")
        for own in facts.cached_layers
    ]
    readers = sum(own.readers for own in facts.cached_layers)
    shared = f" {readers} more read what the last of these keep, and keep none." if readers else ""
    reason = f"Layers that keep keys and values: {', '.join(told)}.{shared}"
    return [Decision(what="cache of a token", value=f"{facts.kv_bytes_per_token:,} bytes", reason=reason)]


def _why_rows(work: Work, placed: Fit) -> str:
    asked, room = work.demand.concurrency, placed.room
    if not room.pool:
        return "Asked for, one full batch" if asked == room.rows else "One full batch"
    if room.rows == asked:
        return "Asked for"
    held = "As many expected requests as the cache holds"
    return f"{held}, at most {asked or limits.MAX_SEQUENCES}"


def _batch(facts: Profile, batch: int, placed: Fit) -> str:
    if facts.kind == "diffusion":
        return f"{batch} image{'s' if batch > 1 else ''}, {placed.room.tokens} latent positions and tokens"
    return f"{batch} rows, {placed.room.tokens} tokens"


def _why_batch(facts: Profile, placed: Fit) -> str:
    device = device_of(placed.sku)
    if facts.kind == "diffusion":
        most = limits.MAX_BATCH_IMAGES[device]
        return f"The largest that memory holds, at most {most} of the model's own size; more gain nothing in speed."
    most = limits.MAX_BATCH_TOKENS[device]
    if placed.room.pool:
        return f"Of prompts, and of what cannot use the cache (beam search, say); at most {most} tokens."
    return f"The largest that memory holds, at most {most} tokens or one request of full length."


def of_time(facts: Profile, device: str, begun: Start, wait: Wait, timeout_ms: int) -> list[Decision]:
    """Describe probes and the request timeout."""
    cap = limits.MAX_REQUEST_TIMEOUT_MS
    counted = f"{limits.EFFICIENCY[device]:.0%} of the hardware's floor"
    reason = f"{wait.what}, at {counted}, take {wait.seconds:.1f} s; never below 30 s."
    if 1000 * wait.seconds > cap:
        reason += f" Azure's cap is {cap // 1000} s: send shorter requests, or take a faster instance type."
    if not facts.known:
        reason = "The size is not known, so Azure's cap."
    rate = limits.LOAD_BYTES_PER_S // 1_000_000
    started = f"Start predicted at {begun.seconds} s: imports and warm-up, then weights at {rate} MB/s"
    alive = begun.liveness.initial_delay + begun.liveness.failure_threshold * begun.liveness.period
    return [
        Decision(what="request timeout", value=f"{timeout_ms // 1000} s", reason=reason),
        Decision(
            what="liveness probe",
            value=f"after {begun.liveness.initial_delay} s, {begun.liveness.failure_threshold} failures",
            reason=f"{started}; a start of {alive} s is no failure yet.",
        ),
        Decision(
            what="readiness probe",
            value=f"after {begun.readiness.initial_delay} s, {begun.readiness.failure_threshold} failures",
            reason="Early and often, so that a fast start takes traffic at once.",
        ),
    ]


def of_instances(spec: Spec, sku: Sku, cores: int) -> list[Decision]:
    """Describe the number of instances, and the cores of quota that they take."""
    reason = "Asked for."
    if spec.instance_count < limits.PRODUCTION_INSTANCES:
        reason = f"For production Microsoft advises {limits.PRODUCTION_INSTANCES} or more: with fewer, an upgrade or a"
        reason += " lost machine takes a large part of the endpoint away."
    return [Decision(what="instances", value=str(spec.instance_count), reason=reason), _of_quota(spec, sku, cores)]


def quota_cores(spec: Spec, sku: Sku) -> int:
    """Cores of quota that the deployment takes: with the reserve of managed endpoints, and none on a cluster's pods."""
    if spec.kind == "kubernetes":
        return 0
    managed = spec.kind not in _NODES
    return latency.quota_cores(sku.cores, spec.instance_count, sku.skip_20_percent or not managed)


#: Whose nodes the quota is for, of kinds that Azure ML reserves none for upgrades of.
_NODES = {
    "batch": "for as many nodes of the cluster of that size as run at once; Azure ML reserves none for upgrades.",
    "kaito": "of Azure Compute in the cluster's region, for the nodes that KAITO makes.",
}


def _of_quota(spec: Spec, sku: Sku, cores: int) -> Decision:
    """Describe the cores of quota and their family."""
    n = spec.instance_count
    if spec.kind == "kubernetes":
        reason = f"Pods run on nodes of your own cluster, of {sku.cores} cores and {sku.ram_gb:g} GB or more for each."
        return Decision(what="quota", value="none of Azure ML's", reason=reason)
    if whose := _NODES.get(spec.kind):
        told = f"{n} x {sku.cores} cores {whose}"
        return Decision(what="quota", value=f"{cores} cores of {sku.quota_family}", reason=told)
    rule = f"{n} x {sku.cores} cores; this family skips Azure's 20 % reserve for upgrades."
    if not sku.skip_20_percent:
        rule = f"ceil(1.2 x {n}) x {sku.cores} cores: Azure reserves 20 % for upgrades."
    return Decision(what="quota", value=f"{cores} cores of {sku.quota_family}", reason=rule)
