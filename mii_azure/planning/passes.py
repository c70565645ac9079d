"""Passes that would be chosen for an instance type that this machine does not have; decided without running them."""

from collections.abc import Collection, Sequence

from mii_azure.errors import NotAvailable
from mii_azure.model.profile import Profile
from mii_azure.model.safetensors import DTYPE_BYTES
from mii_azure.planning import processors
from mii_azure.planning.budget import device_of
from mii_azure.planning.memory import Fit
from mii_azure.planning.rationale import Decision
from mii_azure.platform.limits import GB
from mii_azure.spec import Spec
from scoring.config import Deployment, Limits, Optimisation, PassDecision
from scoring.passes.base import Applicability, Facts, Hardware
from scoring.passes.families import RECURRENT, WHOLE_PROMPTS
from scoring.passes.registry import catalogue
from scoring.passes.runner import WITHOUT_FP8, choose
from scoring.passes.speculation import decide


def settings(spec: Spec, gpus: int) -> Optimisation:
    """Settings that a spec gives the passes, on a plan whose weights are shared by `gpus` GPUs."""
    return Optimisation(spec.objective, spec.optimisations, spec.passes_on, spec.passes_off, gpus if gpus > 1 else 0)


def pass_decisions(spec: Spec, facts: Profile, placed: Fit, limits: Limits) -> tuple[PassDecision, ...]:
    """Decide on each pass, taken or not, with the reason; those that are not forced are forecasts.

    Raises LoadError for a forced pass that does not exist, PassNotServed for one that cannot apply there.
    """
    asked = settings(spec, placed.gpus)
    passes = catalogue(Deployment(spec.name, spec.task, limits=limits, optimisation=asked))
    bytes_each = DTYPE_BYTES[placed.dtype]
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
        shipped=facts.shipped,
        adapters=len(spec.adapters),
        head_width=facts.widest_head if facts.kind == "decoder" else 0,
    )
    chosen = choose(passes, on_paper, _hardware(placed), asked)
    _require_cache(spec, [(each.name, decision) for each, decision in chosen])
    forced = {*asked.on, *asked.off, *(["tensor_slicing"] if asked.tensor_parallel else [])}
    return tuple(
        PassDecision(each.name, decision.take, _sentence(decision.reason), forecast=each.name not in forced)
        for each, decision in chosen
    )


def _require_cache(spec: Spec, chosen: Sequence[tuple[str, Applicability]]) -> None:
    """Raise NotAvailable where a cache in FP8 is asked for, and the pass that has one is not taken."""
    refused = next((decision for name, decision in chosen if name == "static_decode" and not decision.take), None)
    if spec.kv_cache_dtype == "fp8" and refused:
        raise NotAvailable(f"{spec.model} cannot keep a KV cache in FP8: {refused.reason}.", WITHOUT_FP8)


def lines(spec: Spec, facts: Profile, placed: Fit, passes: Collection[PassDecision]) -> list[Decision]:
    """Lines of the plan that show a CPU's instruction sets, the pass decisions, and of a decoder whether it drafts."""
    decisions = processors.lines(placed.sku) + [
        Decision(
            what=f"pass {each.name}",
            value="yes" if each.take else "no",
            reason=each.reason,
            forecast=each.forecast,
        )
        for each in passes
    ]
    taken = {each.name for each in passes if each.take}
    drafts = [_drafts(spec, facts.family, placed, "weight_only" in taken)] if "static_decode" in taken else []
    kept = _states(facts) if "static_decode" in taken else []
    return [*decisions, *drafts, *kept, *_invariance(spec, taken, device_of(placed.sku))]


def _invariance(spec: Spec, taken: Collection[str], device: str) -> list[Decision]:
    """Describe how answers are made independent of the rest of their batch, if that is asked for."""
    if not spec.batch_invariant:
        return []
    value, reason = "one row at a time", "Asked for; nothing else of this model's shares a batch without a trace."
    if "static_decode" in taken:
        value = "sums of one order"
        reason = "Asked for; rows share steps and are the same bits alone, which every start tries. Nothing is"
        reason += " drafted."
        if device == "cuda":
            reason += " On an H200 many streams of a 1.1B run as fast as without, a single one takes 1.7 times as long."
    return [Decision(what="batch invariance", value=value, reason=reason)]


def _drafts(spec: Spec, family: str, placed: Fit, rounded: bool) -> Decision:
    told = decide(
        spec.speculation,
        device_of(placed.sku),
        placed.gpus,
        rounded=rounded,
        draft=bool(spec.draft_model),
        fixed=spec.batch_invariant,
        recurrent=family in RECURRENT,
    )
    value = ("the draft model" if spec.draft_model else "n-grams") if told.take else "off"
    return Decision(what="speculation", value=value, reason=_sentence(told.reason), forecast=spec.speculation == "auto")


def _states(facts: Profile) -> list[Decision]:
    """Describe the recurrent states of a sequence, where layers keep them, and what they rule out."""
    if facts.family not in RECURRENT:
        return []
    reason = "They are of whole sequences: no prefix is reused, and a preempted one is computed from its beginning."
    if facts.family in WHOLE_PROMPTS:
        reason += " A prompt is one step, for which the streams beside it wait: the modules begin anew with each piece."
    return [Decision(what="recurrent states", value=f"{facts.state_bytes / 1e6:.1f} MB a sequence", reason=reason)]


def _hardware(placed: Fit) -> Hardware:
    sku = placed.sku
    if sku.gpu is None:
        memory = placed.memory  # of which weights may take what nothing else needs
        room = max(0, memory.available - memory.needed + memory.weights)
        return Hardware("cpu", "cpu", (0, 0), room, 0, nvcc=False)
    major, minor = str(sku.gpu.compute_capability).split(".")
    # The CUDA image is built on NVIDIA's development image, which has nvcc.
    return Hardware(
        "cuda", sku.gpu.name, (int(major), int(minor)), int(sku.gpu_memory_gb * GB), sku.whole_gpus, nvcc=True
    )


def _sentence(reason: str) -> str:
    named = "_" in reason.split(" ", 1)[0]  # a pass's own name keeps its spelling
    return f"{reason if named else reason[0].upper() + reason[1:]}."
