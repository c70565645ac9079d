"""Remarks of a plan on a CPU's instruction sets, on which the passes for CPUs depend."""

from mii_azure.hardware.skus import Sku
from mii_azure.planning.rationale import Decision

#: Sets that make a number format fast, in the order in which they came.
ASKED = ("AVX2", "AVX-512", "VNNI", "bfloat16", "AMX")


def lines(sku: Sku) -> list[Decision]:
    """Line of the instruction sets that every, and that some, processor of the size's series has; none of a GPU's."""
    if sku.gpu is not None or not sku.processors:
        return []
    named = [each.name for each in sku.processors]
    every = [name for name in ASKED if all(name in each.sets for each in sku.processors)]
    some = [name for name in ASKED if name not in every and any(name in each.sets for each in sku.processors)]
    without = [name for name in ASKED if name not in every and name not in some]
    value = ", ".join(every) + (f"; on some {', '.join(some)}" if some else "")
    choice = f"Azure runs the series on {_joined(named)}" + (", and chooses." if len(named) > 1 else ".")
    lacking = f" None has {_joined(without)}." if without else ""
    reason = f"{choice}{lacking} What the machine has is found at start."
    return [Decision(what="instruction sets", value=value, reason=reason, forecast=bool(some))]


def _joined(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
