"""What will be done and why."""

from typing import Any

from mii_azure import decisions, limits, optimising, quantising, sizing, timing
from mii_azure.errors import SpecError
from mii_azure.families import Options, family_named, find_task
from mii_azure.plans import Plan
from mii_azure.profile import Profile, profile, task_check, task_options
from mii_azure.remote_code import check_remote_code
from mii_azure.resolving import resolve
from mii_azure.sizing import Fit, Work
from mii_azure.skus import find_sku
from mii_azure.spec import Spec, make_spec
from scoring.config import Limits


def plan(task: str, model: str, instance_type: str | None = None, name: str = "model", **preferences: Any) -> Plan:
    """Plan the deployment of a model; `preferences` are the other fields of `Spec`.

    Reads config.json and safetensors headers only. Raises the SpecError and ModelError branches of the error tree.
    """
    return plan_spec(make_spec(task=task, model=model, name=name, instance_type=instance_type, **preferences))


def plan_spec(spec: Spec) -> Plan:
    """Resolve the spec's model, check that it can do the task, and plan."""
    task = find_task(spec.task)
    if spec.instance_type:
        find_sku(spec.instance_type)
    found = resolve(spec.model, spec.revision, spec.allow_pickle)
    check_remote_code(found, spec.revision, spec.trust_remote_code)
    facts = profile(found)
    if not facts.known:
        facts = facts.model_copy(update={"kind": task.kinds[0]})
    task_check(facts, task)
    return make_plan(spec, quantising.as_asked(spec, found, facts), {**task_options(found, task), **spec.languages})


def make_plan(spec: Spec, facts: Profile, options: Options) -> Plan:
    """Derive every setting from the spec and the model's facts; does no I/O."""
    work = Work(facts, family_named(facts.family, facts.kind), spec.task)
    placed = _place(spec, work)
    sku, device = placed.sku, sizing.device_of(placed.sku)
    # Of an azureml: reference the size is not known: allow for the largest that the device holds.
    begun = timing.start(facts.weight_bytes if facts.known else placed.memory.available, device)
    seconds = timing.batch_seconds(work, placed)
    timeout = timing.request_timeout_ms(seconds) if facts.known else limits.MAX_REQUEST_TIMEOUT_MS
    batch = sizing.batch_rows(facts, device, placed.tokens)
    quota = timing.quota_cores(sku.cores, spec.instance_count, sku.skip_20_percent)
    served = min(facts.context_length, placed.tokens)
    budget = Limits(max_batch_tokens=placed.tokens, max_batch_size=batch, context_length=served, slots=placed.slots)
    passes = optimising.pass_decisions(spec, facts, placed, budget) if facts.known else ()
    sliced = any(each.name == "tensor_slicing" and each.take for each in passes)
    return Plan(
        task=spec.task,
        task_options=options,
        profile=facts,
        instance_type=sku.name,
        quota_family=sku.quota_family,
        quota_cores=quota,
        device=device,
        image="cuda13" if sku.gpu else "cpu",
        dtype=placed.dtype,
        tensor_parallel=placed.gpus,
        memory=placed.memory,
        fits=placed.gpus == 1 or sliced,
        context_length=served,
        max_batch_tokens=placed.tokens,
        max_batch_size=batch,
        slots=placed.slots,
        queue_size=limits.QUEUE_ROWS,
        max_payload_bytes=limits.ENDPOINT_BYTES_PER_S,
        max_concurrent_requests=placed.slots or batch,
        request_timeout_ms=timeout,
        readiness=begun.readiness,
        liveness=begun.liveness,
        passes=passes,
        decisions=(
            *decisions.of_model(work, options),
            *decisions.of_place(spec, work, placed),
            *([quantising.decision(facts, placed.dtype)] if facts.shipped else []),
            *decisions.of_serving(facts, placed, batch),
            *decisions.of_time(facts, device, begun, seconds, timeout),
            *optimising.lines(passes),
            decisions.of_quota(spec, sku, quota),
        ),
    )


def _place(spec: Spec, work: Work) -> Fit:
    sku = find_sku(spec.instance_type) if spec.instance_type else None
    if spec.tensor_parallel > 1 and work.profile.known:
        return sizing.in_slices(work, spec.tensor_parallel, spec.dtype, sku)
    if sku and sku.gpu and "zero_inference" in spec.passes_on:
        return sizing.offloaded(work, sku, spec.dtype)
    if sku:
        return sizing.place(work, sku, spec.dtype)
    if not work.profile.known:
        raise SpecError(
            f"{spec.model} is not opened, so its size is not known and no instance type can be chosen.",
            "Give --instance-type, or plan with the model's folder or hub id.",
        )
    return sizing.choose(work, spec.dtype)
