"""Planner: decides every setting of a deployment, with reasons."""

from typing import Any, Unpack

from mii_azure.errors import NotAvailable, SpecError
from mii_azure.hardware.described import asked_sku, named_size
from mii_azure.hardware.skus import Sku
from mii_azure.model.adapters import Adapter
from mii_azure.model.consistency import check_consistency
from mii_azure.model.draft import FOLDER
from mii_azure.model.families import Options, family_named, find_task
from mii_azure.model.profile import Profile, profile, task_check, task_options
from mii_azure.model.remote_code import check_remote_code
from mii_azure.model.sentence import as_embedder, sentence_model, vector_options
from mii_azure.model.source import resolve
from mii_azure.planning import assumed, expected, latency, memory, quantization, rationale
from mii_azure.planning import passes as planning_passes
from mii_azure.planning.beside import adapters_of, draft_of, parameters_beside
from mii_azure.planning.budget import Room, Work, at_once, device_of
from mii_azure.planning.demand import demand_of
from mii_azure.planning.memory import Fit
from mii_azure.planning.plan import AdapterPlan, Plan
from mii_azure.platform import limits
from mii_azure.spec import OtherPreferences, Spec, make_spec
from scoring.config import Limits, PassDecision


def plan(
    task: str,
    model: str,
    instance_type: str | None = None,
    name: str = "model",
    **preferences: Unpack[OtherPreferences],
) -> Plan:
    """Plan the deployment of a model; `preferences` are the other fields of `Spec`.

    Reads config.json and safetensors headers only. Raises the SpecError and ModelError branches of the error tree.
    """
    return plan_spec(make_spec(task=task, model=model, name=name, instance_type=instance_type, **preferences))


def plan_spec(spec: Spec) -> Plan:
    """Resolve the spec's model, check that it can do the task, and plan."""
    task = find_task(spec.task)
    asked_sku(spec)
    found = resolve(spec.model, spec.revision, spec.allow_pickle)
    check_remote_code(found, spec.revision, spec.trust_remote_code)
    check_consistency(found, spec.trust_remote_code)
    facts = profile(found)
    if not facts.known:
        facts = facts.model_copy(update={"kind": task.kinds[0]})
    task_check(facts, task)
    told = sentence_model(found, task, spec.allow_pickle)
    facts = as_embedder(facts, found, told, task)
    adapters = adapters_of(spec, found, facts)
    options = {**vector_options(told, task_options(found, task)), **spec.languages}
    beside = parameters_beside(spec, adapters)
    planned = make_plan(spec, quantization.as_asked(spec, found, facts), options, beside, draft_of(spec, found))
    return _with_adapters(spec, planned, adapters) if adapters else planned


def _with_adapters(spec: Spec, planned: Plan, adapters: list[Adapter]) -> Plan:
    told = tuple(
        AdapterPlan(
            name=each.name,
            sha256=each.sha256,
            rank=each.content.rank,
            products=len(each.content.products),
            parameters=each.parameters,
            merged=spec.adapter is not None,
        )
        for each in adapters
    )
    reasons = [each.decision() for each in told]
    first, *others = planned.decisions  # that of the model, which they change
    return planned.model_copy(update={"adapters": told, "decisions": (first, *reasons, *others)})


def make_plan(spec: Spec, facts: Profile, options: Options, beside: int = 0, draft: Profile | None = None) -> Plan:
    """Derive every setting from the spec, and from the facts of its model, adapters and draft model; does no I/O."""
    work = Work(facts, family_named(facts.family, facts.kind), spec.task, demand_of(spec, facts, beside), draft)
    placed = _checked(spec, _place(spec, work))
    sku, room, device = placed.sku, placed.room, device_of(placed.sku)
    # The size of an azureml: reference is not known: allow for the largest that the device holds.
    begun = latency.start(work.stored_bytes if facts.known else placed.memory.available, device)
    wait = latency.longest_wait(work, placed)
    timeout = latency.request_timeout_ms(wait.seconds) if facts.known else limits.MAX_REQUEST_TIMEOUT_MS
    quota = rationale.quota_cores(spec, sku)
    bounds = _bounds(spec, room, device)
    passes = planning_passes.pass_decisions(spec, facts, placed, bounds) if facts.known else ()
    return Plan(
        task=spec.task,
        task_options=options,
        profile=facts,
        **_machine(spec, sku),
        quota_family=sku.quota_family,
        quota_cores=quota,
        device=device,
        image="cuda13" if sku.gpu else "cpu",
        dtype=placed.dtype,
        tensor_parallel=placed.gpus,
        memory=placed.memory,
        fits=None if sku.assumed_like else placed.gpus == 1 or _sliced(passes),
        context_length=room.context,
        max_batch_tokens=room.tokens,
        max_batch_size=bounds.max_batch_size,
        slots=bounds.slots,
        kv_cache_tokens=room.pool,
        at_once=at_once(work, room),
        queue_size=limits.QUEUE_ROWS,
        max_payload_bytes=limits.ENDPOINT_BYTES_PER_S,
        max_concurrent_requests=room.rows,
        request_timeout_ms=timeout,
        outlook=expected.outlook(work, placed, spec.instance_count) if facts.known and not sku.assumed_like else None,
        readiness=begun.readiness,
        liveness=begun.liveness,
        passes=passes,
        decisions=(
            *rationale.of_model(work, options),
            *rationale.of_draft(work, placed),
            *rationale.of_place(spec, work, placed),
            *([quantization.decision(facts, placed.dtype)] if facts.shipped else []),
            *rationale.of_serving(work, placed, bounds),
            *rationale.of_time(facts, device, begun, wait, timeout),
            *planning_passes.lines(spec, facts, placed, passes),
            *rationale.of_instances(spec, sku, quota),
        ),
    )


def _machine(spec: Spec, sku: Sku) -> dict[str, Any]:
    """Fields of a plan that name its instance type, and describe one that the data do not know."""
    return {"instance_type": sku.name, "machine": sku if spec.describes or sku.assumed_like else None}


def _sliced(passes: tuple[PassDecision, ...]) -> bool:
    return any(each.name == "tensor_slicing" and each.take for each in passes)


def _bounds(spec: Spec, room: Room, device: str) -> Limits:
    """Limits of the scoring script that memory decides."""
    return Limits(
        max_batch_tokens=room.tokens,
        max_batch_size=min(room.rows, limits.MAX_BATCH_SIZE[device]) if room.pool else room.rows,
        context_length=room.context,
        slots=room.rows if room.pool else 0,
        kv_cache_tokens=room.pool,
        memory_share=spec.memory_share or 0.0,
        batch_invariant=spec.batch_invariant,
        kv_cache_dtype=spec.kv_cache_dtype,
        speculation=spec.speculation,
        draft_model=FOLDER if spec.draft_model else "",
    )


def _checked(spec: Spec, placed: Fit) -> Fit:
    """The place; raises NotAvailable for a share of memory that no cache takes, and for what slices do not serve."""
    if spec.batch_invariant and placed.gpus > 1:
        raise NotAvailable(
            f"{spec.model} is put on {placed.gpus} GPUs of {placed.sku.name}, whose sums are added up in an order that"
            " depends on the batch.",
            "Leave out batch_invariant, or take an instance type whose GPU holds the model.",
        )
    if spec.draft_model and placed.gpus > 1:
        raise NotAvailable(
            f"{spec.model} is put on {placed.gpus} GPUs of {placed.sku.name}, and several take no steps with drafts.",
            "Leave out draft_model, or take an instance type whose GPU holds both.",
        )
    if spec.memory_share and not placed.room.pool:
        raise NotAvailable(
            f"memory_share sizes a decoder's KV cache, and {spec.model} runs in batches on {placed.sku.name}.",
            "Leave it out; --max-concurrency and --context-length bound batches too.",
        )
    return placed


def _place(spec: Spec, work: Work) -> Fit:
    sku = asked_sku(spec)
    if sku is None and spec.instance_type and (size := named_size(spec.instance_type)):
        return assumed.place(spec, work, size)
    if spec.tensor_parallel > 1 and work.profile.known:
        return memory.in_slices(work, spec.tensor_parallel, spec.dtype, sku)
    if sku and sku.gpu and "zero_inference" in spec.passes_on:
        return memory.offloaded(work, sku, spec.dtype)
    if sku:
        return memory.place(work, sku, spec.dtype)
    if not work.profile.known:
        raise SpecError(
            f"{spec.model} is not opened, so its size is not known and no instance type can be chosen.",
            "Give --instance-type, or plan with the model's folder or hub id.",
        )
    return memory.choose(work, spec.dtype)
