"""Chooses passes, applies them, verifies each against plain transformers, and keeps a record of all of it.

A pass that differs beyond its tolerance is undone and named; the model serves without it. A pass that was forced on
and cannot be served is an error.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Literal

from scoring.config import Optimisation, PassDecision
from scoring.errors import LoadError, PassNotServed
from scoring.loaded import Runtime
from scoring.passes.base import Decision, Facts, Hardware, Pass, PassRefused

logger = logging.getLogger("mii_azure.optimise")

#: Passes in order, each with whether it is taken.
Chosen = Sequence[tuple[Pass, Decision]]

State = Literal["applied", "not taken", "refused", "dropped"]


@dataclass(frozen=True)
class Record:
    """What became of one pass."""

    name: str
    state: State  # refused: by the pass, on the loaded model; dropped: applied, and found to differ
    reason: str
    replaced: int = 0  # modules
    error: float | None = None  # relative, against plain transformers in fp32
    seconds: float = 0.0  # to apply and verify

    def to_dict(self) -> dict[str, Any]:
        """For metadata and logs; an error that is not a number is told as text."""
        fields = asdict(self)
        if self.error is not None and not math.isfinite(self.error):
            fields["error"] = str(self.error)
        return fields


def choose(
    passes: Sequence[Pass], facts: Facts, hardware: Hardware, settings: Optimisation
) -> list[tuple[Pass, Decision]]:
    """Decide on every pass, on paper: nothing is loaded, and the hardware need not be here.

    Raises LoadError for a forced pass that does not exist, PassNotServed for one that cannot apply.
    """
    known = [each.name for each in passes]
    for name in (*settings.on, *settings.off):
        if name not in known:
            raise LoadError(f"There is no pass {name!r} for this model.", f"Passes: {', '.join(known)}.")
    chosen = [(each, _decide(each, facts, hardware, settings)) for each in passes]
    for each, decision in list(chosen):
        # Forcing the weaker of two passes on the same layers means not to have the other.
        stronger = next((o for o, d in chosen if d.take and each.name in o.supersedes), None)
        if decision.take and stronger is not None:
            loser, reason = each, f"{stronger.name} serves the same layers faster"
            if each.name in settings.on and stronger.name not in settings.on:
                loser, reason = stronger, f"{each.name} was forced on for the same layers"
            chosen = [(o, Decision(False, reason) if o is loser else d) for o, d in chosen]
    return chosen


def tell_differences(chosen: Chosen, planned: Sequence[PassDecision]) -> None:
    """Log each pass that is not taken here as it was planned, or is taken though it was not."""
    forecast = {each.name: each.take for each in planned}
    for each, decision in chosen:
        if forecast.get(each.name, decision.take) != decision.take:
            here, there = ("taken", "not") if decision.take else ("not taken", "taken")
            logger.info("pass %s is %s here and was planned %s: %s", each.name, here, there, decision.reason)


def _decide(each: Pass, facts: Facts, hardware: Hardware, settings: Optimisation) -> Decision:
    if each.name in settings.off:
        return Decision(False, "switched off")
    decision = each.applies(facts, hardware, settings.objective)
    if each.name in settings.on:
        if not decision.take:
            raise _not_served(each.name, decision.reason)
        return decision
    if decision.take and settings.profile == "public" and not each.public:
        return Decision(False, "not among DeepSpeed's own open passes, which the profile is limited to")
    return decision


def optimise(
    model: Any,
    runtime: Runtime,
    chosen: Chosen,
    forced: Sequence[str],
    reference: Callable[[Any], Callable[..., Any]],
    known: Mapping[str, float] = MappingProxyType({}),
) -> list[Record]:
    """Apply the passes that were taken to a loaded model, in order; call it on the thread that will run the model.

    `reference(model)` is what plain transformers answers; it is asked for once, before the first change, and not at all
    where the errors of all passes are `known` from a verification on such a machine. Raises PassNotServed when a forced
    pass is refused or dropped. What the passes made beside the model is added to `runtime`.
    """
    records = []
    unknown = [each for each, decision in chosen if decision.take and each.name not in known]
    told = reference(model) if unknown else None
    for each, decision in chosen:
        if not decision.take:
            records.append(Record(each.name, "not taken", decision.reason))
            continue
        record = _serve(each, model, runtime, told, decision, known.get(each.name))
        if record.state != "applied" and each.name in forced:
            raise _not_served(each.name, record.reason)
        records.append(record)
    for record, (each, _) in zip(records, chosen, strict=True):
        if record.state == "applied":
            each.warm(model)
        logger.info("pass %s: %s, %s", record.name, record.state, record.reason)
    return records


def _serve(
    each: Pass,
    model: Any,
    runtime: Runtime,
    told: Callable[..., Any] | None,
    decision: Decision,
    known: float | None,
) -> Record:
    began = time.perf_counter()
    try:
        applied = each.apply(model)
    except PassRefused as refused:
        return Record(each.name, "refused", str(refused), seconds=time.perf_counter() - began)
    except Exception as failure:  # a defect of the pass: go on only if it left the model as it was
        logger.exception("pass %s failed while it was applied", each.name)
        reason = f"it failed while it was applied: {type(failure).__name__}"
        if told is None or not each.verify(model, told) <= each.bound(told):
            raise PassNotServed(
                f"The pass {each.name} broke the model: {reason}.", f"Switch it off: {each.name}."
            ) from failure
        return Record(each.name, "dropped", reason, seconds=time.perf_counter() - began)
    if known is not None or told is None:
        runtime.add(applied.made)
        reason = f"{decision.reason}; {applied.detail}; verified when the bundle was prepared"
        return Record(each.name, "applied", reason, applied.count, known, time.perf_counter() - began)
    try:
        error, bound = each.verify(model, told), each.bound(told)
    except Exception as failure:  # a pass that cannot even be verified is not served
        applied.undo()
        logger.exception("pass %s failed while it was verified", each.name)
        reason = f"it failed while it was verified: {type(failure).__name__}"
        return Record(each.name, "dropped", reason, applied.count, seconds=time.perf_counter() - began)
    seconds = time.perf_counter() - began
    if not error <= bound:  # also where it is not a number
        applied.undo()
        reason = f"it differs from plain transformers by {error:.1e}, more than {bound:.1e}"
        return Record(each.name, "dropped", reason, applied.count, error, seconds)
    runtime.add(applied.made)
    return Record(each.name, "applied", f"{decision.reason}; {applied.detail}", applied.count, error, seconds)


def _not_served(name: str, reason: str) -> PassNotServed:
    return PassNotServed(
        f"The pass {name} was forced on and cannot be served: {reason}.", "Leave it out, or choose other hardware."
    )
