"""Ranking of all instance types: those that hold the model, with predicted speed and cost.

Times are expected from measured constants where what will run was measured (`basis`), else the roofline's floors over
the stated efficiency. Costs hold only for the stated batch and utilisation.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict

from mii_azure.errors import MiiAzureError, SpecError
from mii_azure.hardware.prices import Prices
from mii_azure.hardware.skus import Sku, all_skus
from mii_azure.model.families import family_named, find_task
from mii_azure.model.profile import Profile, profile, task_check
from mii_azure.model.safetensors import DTYPE_BYTES
from mii_azure.model.sentence import as_embedder, sentence_model
from mii_azure.model.source import resolve
from mii_azure.planning import expected, latency, memory, quantization
from mii_azure.planning.budget import Work, device_of
from mii_azure.planning.demand import demand_of
from mii_azure.planning.expected import Basis
from mii_azure.planning.memory import Fit
from mii_azure.platform import limits
from mii_azure.spec import Spec, make_spec
from scoring.passes.families import TENSOR_SLICING

MILLION = 1_000_000


class Ranked(BaseModel):
    """Ranked instance type; the fields after `why` are None if the model does not fit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    instance_type: str
    device: str
    fits: bool
    why: str  # reason why it does not fit; "" if it does
    dtype: str | None = None
    headroom: float | None = None  # free after the model and its largest batch, as a fraction of available memory
    batch: int | None = None  # requests served at once in the throughput and the cost
    latency_s: float | None = None  # one request alone
    throughput: float | None = None  # per second, in the ranking's unit, at that batch
    basis: Basis | None = None  # of the two
    quota_family: str
    quota_cores: int
    price_per_hour: float | None = None  # of all instances
    cost_per_million: float | None = None  # in the ranking's unit


class Ranking(BaseModel):
    """Instance types, best first: those that fit, by cost if prices are known, else the smallest first."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    task: str
    unit: str  # "tokens" generated, or "requests"
    request_tokens: int
    new_tokens: int
    utilisation: float  # fraction of time that the instances are busy with full batches
    efficiency: dict[str, float]  # fraction of the floor's speed of rows whose basis is "assumed", by device
    instance_count: int
    currency: str | None = None
    region: str | None = None
    prices_of: str | None = None  # date
    rows: tuple[Ranked, ...]


def rank(
    task: str, model: str, *, prices: Prices | None = None, utilisation: float = 0.5, batch: int = 0, **preferences: Any
) -> Ranking:
    """Rank every inference instance type for a model; `batch` 0 is the largest that can be served there.

    `preferences` are other fields of Spec. Raises the SpecError and ModelError branches of the error tree.
    """
    spec = make_spec(task=task, model=model, name=preferences.pop("name", "model"), **preferences)
    kind = find_task(spec.task)
    found = resolve(spec.model, spec.revision, spec.allow_pickle)
    facts = profile(found)
    if not facts.known:
        raise SpecError(f"{spec.model} is not opened, so its size is not known.", "Rank its folder or its hub id.")
    task_check(facts, kind)
    facts = as_embedder(facts, found, sentence_model(found, kind, spec.allow_pickle), kind)
    facts = quantization.as_asked(spec, found, facts)
    return rank_profile(spec, facts, prices=prices, utilisation=utilisation, batch=batch)


def rank_profile(
    spec: Spec, facts: Profile, *, prices: Prices | None = None, utilisation: float = 0.5, batch: int = 0
) -> Ranking:
    """Rank from known facts; does no I/O."""
    if not 0 < utilisation <= 1 or batch < 0:
        raise SpecError("utilisation is a share above 0 and up to 1, batch a number of requests.", "Leave them out.")
    work = Work(facts, family_named(facts.family, facts.kind), spec.task, demand_of(spec, facts))
    answer = 0 if facts.kind == "encoder" or not _generates(spec.task) else limits.RANKED_ANSWER_TOKENS
    length = max(min(limits.RANKED_PROMPT_TOKENS, work.context - answer), 1)
    rows = [_row(spec, work, sku, (length, answer, batch), prices, utilisation) for sku in all_skus().values()]
    return Ranking(
        model=facts.model,
        task=spec.task,
        unit="tokens" if answer else "requests",
        request_tokens=length,
        new_tokens=answer,
        utilisation=utilisation,
        efficiency=dict(limits.EFFICIENCY),
        instance_count=spec.instance_count,
        currency=prices.currency if prices else None,
        region=prices.region if prices else None,
        prices_of=prices.date if prices else None,
        rows=tuple(sorted(rows, key=_order)),
    )


def _generates(task: str) -> bool:
    return task in ("text-generation", "conversational", "summarization", "translation")


def _order(row: Ranked) -> tuple[bool, bool, float, float, int, str]:
    sku = all_skus()[row.instance_type]
    cost = row.cost_per_million
    return not row.fits, cost is None, cost or 0.0, sku.gpus * sku.gpu_memory_gb, sku.cores, sku.name


def _row(
    spec: Spec, work: Work, sku: Sku, request: tuple[int, int, int], prices: Prices | None, utilisation: float
) -> Ranked:
    device = device_of(sku)
    hourly = prices.of(sku.name) if prices else None
    shared: dict[str, Any] = {
        "instance_type": sku.name,
        "device": device,
        "quota_family": sku.quota_family,
        "quota_cores": latency.quota_cores(sku.cores, spec.instance_count, sku.skip_20_percent),
        "price_per_hour": hourly * spec.instance_count if hourly else None,
    }
    placed, why = _placed(spec, work, sku)
    if placed is None:
        return Ranked(fits=False, why=why, **shared)
    length, answer, asked = request
    room = placed.room
    most = room.rows if room.pool else max(min(room.tokens // (length + answer), room.rows), 1)
    batch = min(asked or most, most)
    seconds = _seconds(work, placed, batch, length, answer)
    throughput = batch * (answer or 1) / seconds * spec.instance_count
    busy = throughput * 3600 * utilisation
    return Ranked(
        fits=True,
        why="",
        dtype=placed.dtype,
        headroom=1 - placed.memory.needed / placed.memory.available,
        batch=batch,
        latency_s=_seconds(work, placed, 1, length, answer),
        throughput=throughput,
        basis=expected.basis(work, placed, batch),
        cost_per_million=hourly * spec.instance_count / busy * MILLION if hourly else None,
        **shared,
    )


def _placed(spec: Spec, work: Work, sku: Sku) -> tuple[Fit | None, str]:
    if sku.retired:
        return None, f"Azure retired the series on {sku.retired}"
    if not memory.usable(sku):
        return None, "the image's CUDA does not run on its GPU"
    try:
        placed = memory.fit(work, sku, spec.dtype)
    except MiiAzureError as error:
        return None, error.message.rstrip(".")
    if placed.problem and sku.whole_gpus > 1 and (spread := memory.sliced(work, spec.dtype, only=sku)):
        if work.profile.family in TENSOR_SLICING.served:
            return spread, ""
        return None, f"it fits only in slices over its {spread.gpus} GPUs, and {work.profile.family} cannot be sliced"
    return (None, placed.problem) if placed.problem else (placed, "")


def _seconds(work: Work, placed: Fit, rows: int, length: int, answer: int) -> float:
    """Predicted seconds for `rows` requests of `length` tokens at once, with `answer` new tokens each."""
    seconds = expected.prompt_seconds(work, placed, rows * length, length)
    if not answer:
        return seconds
    item = DTYPE_BYTES[placed.dtype]
    per_token = work.profile.kv_bytes_per_token * item // DTYPE_BYTES[work.profile.dtype]
    kept = per_token * rows * (length + answer // 2)  # keys and values that the average step reads
    return seconds + answer * expected.step_seconds(work, placed, kept, rows)
