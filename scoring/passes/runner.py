"""Chooses passes, applies them, verifies each against plain transformers, and records the results.

A pass that differs beyond its tolerance, or raises anything, is undone and named; the model serves without
it. A pass that was forced on and cannot be served is an error.
"""

import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

from scoring.config import Optimisation, PassDecision
from scoring.errors import LoadError, PassNotServed
from scoring.model.loaded import Runtime
from scoring.passes.base import Applicability, Applied, Facts, Hardware, Pass, PassRefused

logger = logging.getLogger("mii_azure.passes")

#: Set in the environment of a process that answers few requests.
BRIEF = "MII_AZURE_BRIEF"
#: Reason of what such a process does without.
FEW = "this process answers few requests"
#: Passes in order, each with its decision.
Chosen = Sequence[tuple[Pass, Applicability]]

#: Remedy where a KV cache cannot be in FP8.
WITHOUT_FP8 = "Leave out kv_cache_dtype, or take what can: one GPU of compute capability 8.9, or a CPU with float32."

State = Literal["applied", "not taken", "refused", "dropped"]


@dataclass(frozen=True)
class Record:
    """Outcome of one pass."""

    name: str
    state: State  # refused: by the pass, on the loaded model; dropped: applied, and found to differ
    reason: str
    replaced: int = 0  # modules
    error: float | None = None  # relative, against plain transformers in fp32
    seconds: float = 0.0  # to apply and verify
    applied: Applied | None = field(default=None, repr=False, compare=False)
    retried: bool = field(default=False, repr=False, compare=False)  # another way of the pass was dropped before

    def to_dict(self) -> dict[str, Any]:
        """Return the record for metadata and logs; an error that is not finite is given as text."""
        fields = {name: value for name, value in vars(self).items() if name not in ("applied", "retried")}
        if self.error is not None and not math.isfinite(self.error):
            fields["error"] = str(self.error)
        return fields


def is_brief() -> bool:
    """Return True in a process that answers few requests, which spends no seconds on how to answer many."""
    return bool(os.environ.get(BRIEF))


def choose(
    passes: Sequence[Pass], facts: Facts, hardware: Hardware, settings: Optimisation
) -> list[tuple[Pass, Applicability]]:
    """Decide on every pass from facts alone: nothing is loaded, and the hardware need not be here.

    Raises LoadError for a forced pass that does not exist, PassNotServed for one that cannot apply.
    """
    known = [each.name for each in passes]
    for name in (*settings.on, *settings.off):
        if name not in known:
            raise LoadError(
                f"There is no pass {name!r} for this model.", f"Passes: {', '.join(known) or 'none'}. Leave it out."
            )
    chosen = [(each, _decide(each, facts, hardware, settings)) for each in passes]
    for each, decision in list(chosen):
        # Forcing the weaker of two passes over the same layers rules out the other.
        stronger = next((o for o, d in chosen if d.take and each.name in o.supersedes), None)
        if decision.take and stronger is not None:
            loser, reason = each, f"{stronger.name} serves the same layers faster"
            if each.name in settings.on and stronger.name not in settings.on:
                loser, reason = stronger, f"{each.name} was forced on for the same layers"
            chosen = [(o, Applicability(False, reason) if o is loser else d) for o, d in chosen]
    return chosen


def tell_differences(chosen: Chosen, planned: Sequence[PassDecision]) -> None:
    """Log each pass that was planned but is not taken here, or is taken though not planned."""
    forecast = {each.name: each.take for each in planned}
    for each, decision in chosen:
        if forecast.get(each.name, decision.take) != decision.take:
            here, there = ("taken", "not") if decision.take else ("not taken", "taken")
            logger.info("pass %s is %s here and was planned %s: %s", each.name, here, there, decision.reason)


def _decide(each: Pass, facts: Facts, hardware: Hardware, settings: Optimisation) -> Applicability:
    if each.name in settings.off:
        return Applicability(False, "switched off")
    if is_brief() and each.name not in settings.on and not each.repays(facts, hardware):
        return Applicability(False, f"{FEW}, which do not repay its start")
    try:
        decision = each.applies(facts, hardware, settings.objective)
        if decision.take and facts.adapters and not each.serves_adapters:
            decision = Applicability(False, "it serves no adapters beside the model")
    except Exception as failure:
        logger.exception("pass %s failed while it was decided on", each.name)
        decision = Applicability(False, f"it failed while it was decided on: {_brief(failure)}")
    if each.name in settings.on:
        if not decision.take:
            raise not_served(each.name, decision.reason)
        return decision
    if decision.take and settings.profile == "public" and not each.public:
        return Applicability(False, "not among DeepSpeed's own open passes, which the profile is limited to")
    return decision


def run_passes(
    model: Any,
    runtime: Runtime,
    chosen: Chosen,
    forced: Sequence[str],
    reference: Callable[[Any], Callable[..., Any]],
    known: Mapping[str, float] = MappingProxyType({}),
) -> list[Record]:
    """Apply the passes that were taken to a loaded model, in order; call it on the thread that will run the model.

    `reference(model)` gives plain transformers' answers; it is called once, before the first change, and not at all
    if the errors of all passes are `known` from a verification on such a machine. Raises PassNotServed if a forced
    pass is refused or dropped, or if a pass broke a model that cannot be loaded again. `runtime` then holds the objects
    that the applied passes made beside the model.
    """
    records: list[Record] = []
    unknown = [each for each, decision in chosen if decision.take and each.name not in known]
    expected, silence = _told(reference, model) if unknown else (None, "")
    for each, decision in chosen:
        if not decision.take:
            records.append(Record(each.name, "not taken", decision.reason))
            continue
        if silence and each.name not in known:
            record, kept = Record(each.name, "dropped", silence), True
        else:
            record, kept = _serve(each, model, expected, decision, known.get(each.name))
            if record.state == "dropped" and kept and expected is not None and each.another():
                logger.warning("pass %s: tried another way, for %s", each.name, record.reason)
                first, (record, kept) = record, _serve(each, model, expected, decision, None)
                told = f"{record.reason}; tried before: {first.reason}"
                record = replace(record, reason=told, seconds=first.seconds + record.seconds, retried=True)
        if not kept:
            records = _lost(records, f"the model was loaded again after {each.name}")
        records.append(record)
    _settle(runtime, records)
    records = _warmed(model, runtime, records, [each for each, _ in chosen])
    for record in records:
        logger.info("pass %s: %s, %s", record.name, record.state, record.reason)
        if record.name in forced and record.state != "applied":
            raise not_served(record.name, record.reason)
    return records


def withdraw(model: Any, runtime: Runtime, records: Sequence[Record], reason: str) -> list[Record] | None:
    """Undo the pass that was applied last, for a reason; None if no pass is left."""
    last = next((record for record in reversed(records) if record.applied is not None), None)
    if last is None or last.applied is None:
        return None
    logger.warning("pass %s: withdrawn, %s", last.name, reason)
    kept = _undone(model, last.applied)
    without = [
        replace(each, state="dropped", reason=reason, applied=None) if each is last else each for each in records
    ]
    without = without if kept else _lost(without, f"the model was loaded again after {last.name}")
    _settle(runtime, without)
    return without


def _settle(runtime: Runtime, records: Sequence[Record]) -> None:
    """Leave only the objects of applied passes in the runtime."""
    runtime.become(record.applied.made for record in records if record.applied is not None)


def _told(reference: Callable[[Any], Callable[..., Any]], model: Any) -> tuple[Callable[..., Any] | None, str]:
    """Answers of plain transformers, or the reason why there are none."""
    try:
        return reference(model), ""
    except Exception as failure:
        logger.exception("plain transformers does not answer what passes are compared with")
        return None, f"plain transformers does not answer what it would be compared with: {_brief(failure)}"


def _serve(
    each: Pass, model: Any, expected: Callable[..., Any] | None, decision: Applicability, known: float | None
) -> tuple[Record, bool]:
    """Apply and verify a pass; return its record, and True if the passes before it are still applied."""
    from scoring.passes.model_snapshot import PlainForm  # imports torch, which deciding from facts does not need

    began, before = time.perf_counter(), PlainForm(model)
    try:
        applied = each.apply(model)
    except PassRefused as refused:
        return Record(each.name, "refused", str(refused), seconds=time.perf_counter() - began), before.kept()
    except Exception as failure:
        logger.exception("pass %s failed while it was applied", each.name)
        reason = f"it failed while it was applied: {_brief(failure)}"
        return Record(each.name, "dropped", reason, seconds=time.perf_counter() - began), before.restore()
    if known is not None or expected is None:
        reason = f"{decision.reason}; {applied.detail}; verified when the bundle was prepared"
        seconds = time.perf_counter() - began
        return Record(each.name, "applied", reason, applied.count, known, seconds, applied), True
    record = _verified(each, model, expected, f"{decision.reason}; {applied.detail}", applied)
    record = replace(record, seconds=time.perf_counter() - began)
    return record, record.applied is not None or before.kept_after(applied.undo)


def _verified(each: Pass, model: Any, expected: Callable[..., Any], reason: str, applied: Applied) -> Record:
    """Record of an applied pass compared with plain transformers; without `applied` if it is to be undone."""
    try:
        error, bound = each.verify(model, expected), each.bound(expected)
    except PassRefused as refused:
        return Record(each.name, "dropped", str(refused), applied.count)
    except Exception as failure:  # a pass that cannot even be verified is not served
        logger.exception("pass %s failed while it was verified", each.name)
        reason = f"it failed while it was verified: {_brief(failure)}"
        return Record(each.name, "dropped", reason, applied.count)
    if not error <= bound:  # also where it is not a number
        reason = f"it differs from plain transformers by {error:.1e}, more than {bound:.1e}"
        return Record(each.name, "dropped", reason, applied.count, error)
    return Record(each.name, "applied", reason, applied.count, error, applied=applied)


def _warmed(model: Any, runtime: Runtime, records: list[Record], passes: Sequence[Pass]) -> list[Record]:
    """Warm every applied pass; one that fails is undone, with those that depend on it."""
    for number, each in enumerate(passes):
        if records[number].state != "applied":
            continue
        try:
            each.warm(model)
        except Exception as failure:
            logger.exception("pass %s failed while it was warmed", each.name)
            reason = f"it failed while it was warmed: {_brief(failure)}"
            while records[number].applied is not None:
                top = next(record for record in reversed(records) if record.applied is not None)
                why = reason if top is records[number] else f"it stood on {each.name}, which failed"
                records = withdraw(model, runtime, records, why) or records
    return records


def _undone(model: Any, applied: Applied) -> bool:
    """Undo a pass; False if that failed, so that the model had to be loaded again."""
    try:
        applied.undo()
    except Exception:
        from scoring.passes.model_snapshot import reload_whole

        logger.exception("what was applied cannot be undone: the model is loaded again")
        reload_whole(model)
        return False
    return True


def _lost(records: Sequence[Record], reason: str) -> list[Record]:
    """Records after the model was loaded again: nothing is applied any more."""
    return [
        replace(each, state="dropped", reason=reason, applied=None) if each.state == "applied" else each
        for each in records
    ]


def _brief(failure: Exception) -> str:
    said = (str(failure).strip().splitlines() or [""])[0][:200].rstrip(".")
    return f"{type(failure).__name__}: {said}" if said else type(failure).__name__


def require_cache(records: Sequence[Record]) -> None:
    """Raise PassNotServed unless the pass that has a KV cache in FP8, which was asked for, is applied."""
    record = next((each for each in records if each.name == "static_decode"), None)
    if record is None or record.state != "applied":
        reason = record.reason if record else "this model generates no text"
        raise PassNotServed(f"A KV cache in FP8 was asked for and cannot be served: {reason}.", WITHOUT_FP8)


def not_served(name: str, reason: str) -> PassNotServed:
    """Error for a pass that was forced on and is not served, for a reason."""
    return PassNotServed(
        f"The pass {name} was forced on and cannot be served: {reason}.", "Leave it out, or choose other hardware."
    )
