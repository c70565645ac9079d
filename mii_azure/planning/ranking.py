"""Ranking of all instance types: those that hold the model, with predicted speed and cost.

Times are expected from measured constants where what will run was measured (`basis`), else the roofline's floors over
the stated efficiency. Costs hold only for the stated batch and utilisation.
"""

from collections.abc import Callable, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from mii_azure.errors import MiiAzureError, SpecError
from mii_azure.hardware.prices import Prices
from mii_azure.hardware.skus import Sku, all_skus
from mii_azure.model.families import family_named, find_task
from mii_azure.model.profile import Profile, profile, task_check
from mii_azure.model.sentence import as_embedder, sentence_model
from mii_azure.model.source import resolve
from mii_azure.planning import expected, latency, memory, quantization
from mii_azure.planning.beside import adapters_of, draft_of, parameters_beside
from mii_azure.planning.budget import Work, device_of
from mii_azure.planning.cheaper import MILLION, Cheaper, Offer, compared
from mii_azure.planning.demand import demand_of
from mii_azure.planning.expected import Basis
from mii_azure.planning.memory import Fit
from mii_azure.platform import limits
from mii_azure.spec import Spec, make_spec
from scoring.passes.families import TENSOR_SLICING

PICKS = 5  # rows that are told with their reasons


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


class Pick(BaseModel):
    """Instance type worth a look, and why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    instance_type: str
    reason: str
    chosen: bool


class Ranking(BaseModel):
    """Instance types, best first: those that fit, by cost if prices are known, else the smallest first."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    task: str
    unit: expected.Unit
    request_tokens: int
    new_tokens: int
    utilisation: float  # fraction of time that the instances are busy with full batches
    efficiency: dict[str, float]  # fraction of the floor's speed of rows whose basis is "assumed", by device
    instance_count: int
    currency: str | None = None
    region: str | None = None
    prices_of: str | None = None  # date
    rows: tuple[Ranked, ...]
    picks: tuple[Pick, ...]  # few of them, in their order, one of them chosen; none if nothing fits
    cheaper: Cheaper  # CPU against GPU


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
    beside = parameters_beside(spec, adapters_of(spec, found, facts))
    draft = draft_of(spec, found)
    facts = quantization.as_asked(spec, found, facts)
    return rank_profile(spec, facts, beside, draft, prices=prices, utilisation=utilisation, batch=batch)


def rank_profile(
    spec: Spec,
    facts: Profile,
    beside: int = 0,
    draft: Profile | None = None,
    *,
    prices: Prices | None = None,
    utilisation: float = 0.5,
    batch: int = 0,
) -> Ranking:
    """Rank from known facts, with `beside` parameters of adapters and a draft model beside the model; does no I/O."""
    if not 0 < utilisation <= 1 or batch < 0:
        raise SpecError("utilisation is a share above 0 and up to 1, batch a number of requests.", "Leave them out.")
    work = Work(facts, family_named(facts.family, facts.kind), spec.task, demand_of(spec, facts, beside), draft)
    request = expected.request_of(work)
    rows = [_row(spec, work, sku, batch, prices, utilisation) for sku in all_skus().values()]
    rows.sort(key=_order)
    return Ranking(
        model=facts.model,
        task=spec.task,
        unit=request.unit,
        request_tokens=request.prompt,
        new_tokens=request.answer,
        utilisation=utilisation,
        efficiency=dict(limits.EFFICIENCY),
        instance_count=spec.instance_count,
        currency=prices.currency if prices else None,
        region=prices.region if prices else None,
        prices_of=prices.date if prices else None,
        rows=tuple(rows),
        picks=tuple(picks(work, spec.dtype, rows)),
        cheaper=_cheaper(spec, rows, prices, request, utilisation),
    )


def _cheaper(
    spec: Spec, rows: Sequence[Ranked], prices: Prices | None, request: expected.Workload, utilisation: float
) -> Cheaper:
    """Compare CPUs with GPUs by what one instance answers and costs."""
    fits = [row for row in rows if row.fits]
    offers = []
    for row in fits:
        if row.price_per_hour and row.throughput and row.basis:
            rate = row.throughput / spec.instance_count / (request.answer or 1)
            if request.unit == "requests":  # a fast GPU waits for the cores that read its texts
                rate = min(rate, expected.most_read(all_skus()[row.instance_type], request.prompt))
            offer = {"instance_type": row.instance_type, "device": row.device, "basis": row.basis}
            hourly = row.price_per_hour / spec.instance_count
            offers.append(Offer(**offer, price_per_hour=hourly, per_second=rate * utilisation))
    uncounted = "what the draft model gains" if spec.draft_model else ""
    if request.unit == "requests":
        uncounted = "what the server does for a request beside reading its text on all cores"
    currency = prices.currency if prices else None
    return compared(offers, currency, [row.device for row in fits], utilisation, uncounted)


def _order(row: Ranked) -> tuple[bool, bool, float, float, int, str]:
    sku = all_skus()[row.instance_type]
    cost = row.cost_per_million
    return not row.fits, cost is None, cost or 0.0, sku.gpus * sku.gpu_memory_gb, sku.cores, sku.name


def _row(spec: Spec, work: Work, sku: Sku, batch: int, prices: Prices | None, utilisation: float) -> Ranked:
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
    made = expected.outlook(work, placed, spec.instance_count, batch)
    busy = made.per_second * 3600 * utilisation
    return Ranked(
        fits=True,
        why="",
        dtype=placed.dtype,
        headroom=1 - placed.memory.needed / placed.memory.available,
        batch=made.batch,
        latency_s=made.alone_s,
        throughput=made.per_second,
        basis=made.basis,
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


def picks(work: Work, dtype: str, rows: Sequence[Ranked]) -> list[Pick]:
    """Few of the rows that fit: the choice, the best by each measure, and what comes next; in the order of the rows.

    The choice costs least where prices are known, among those with as many cores as Azure advises; else it is what a
    plan chooses.
    """
    fits = [row for row in rows if row.fits]
    if not fits:
        return []
    chosen = _choice(work, dtype, fits)
    reasons = {chosen.instance_type: [_why_chosen(chosen)]}
    for told, value in _MEASURES.items():
        known = [row for row in fits if value(row) is not None]
        if known and len({value(row) for row in known}) > 1:
            best = min(known, key=lambda row: (value(row) or 0.0, rows.index(row)))
            reasons.setdefault(best.instance_type, []).append(told)
    for row in fits:
        if len(reasons) < PICKS:
            reasons.setdefault(row.instance_type, [_beside(row, chosen)])
    for name, why in reasons.items():
        why += [f"Azure retires it on {date}"] if (date := all_skus()[name].retires) else []
    return [
        Pick(
            instance_type=row.instance_type,
            reason=", ".join(reasons[row.instance_type]),
            chosen=row is chosen,
        )
        for row in fits
        if row.instance_type in reasons
    ]


def _choice(work: Work, dtype: str, fits: Sequence[Ranked]) -> Ranked:
    able = [row for row in fits if all_skus()[row.instance_type].cores >= limits.MIN_CPU_CORES] or fits
    priced = [row for row in able if row.cost_per_million is not None]
    if priced:
        return min(priced, key=lambda row: row.cost_per_million or 0.0)
    try:
        named = memory.choose(work, dtype).sku.name
    except MiiAzureError:
        return able[0]
    return next((row for row in fits if row.instance_type == named), able[0])


def _why_chosen(row: Ranked) -> str:
    if row.cost_per_million is not None:
        return "costs least for what it serves"
    if row.device == "cuda":
        return "smallest GPU that holds it with headroom"
    return f"fewest cores that hold it, {limits.MIN_CPU_CORES} at least"


def _beside(row: Ranked, chosen: Ranked) -> str:
    """Comparison with the choice, for a row that is best at nothing."""
    speed = (row.throughput or 0.0) / (chosen.throughput or 1.0)
    return f"{speed:.2g} x the speed of the choice"


#: Measures that an instance type may be best by: the least value wins.
_MEASURES: dict[str, Callable[[Ranked], float | None]] = {
    "least cost for what it serves": lambda row: row.cost_per_million,
    "least cost an hour": lambda row: row.price_per_hour,
    "fastest alone": lambda row: row.latency_s,
    "most at once": lambda row: -(row.throughput or 0.0),
    "least quota": lambda row: row.quota_cores,
}
