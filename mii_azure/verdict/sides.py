"""Sides of a comparison: what each target is and runs on, how fast it answered, and what it is billed by."""

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from mii_azure.platform.target_names import BUNDLE, ENDPOINT, URL

if TYPE_CHECKING:
    from local_runner.targets.targets import Target

_SHOWN = ("device", "architecture", "threads")  # of a target's metadata


class Side(BaseModel):
    """One target of a comparison; what it does not tell of itself is empty."""

    model_config = ConfigDict(frozen=True)

    target: str
    where: str
    facts: dict[str, str] = {}
    passes: tuple[str, ...] = ()  # that were applied
    versions: dict[str, str] = {}
    answered: int = 0  # requests with a 200, sent one at a time
    p50_ms: float | None = None  # of those
    p90_ms: float | None = None
    instance_type: str = ""  # of Azure; empty for what is not billed by the instance
    instances: int = 0

    def price_per_hour(self, prices: Any) -> float | None:
        """Price of an hour of all instances, by `prices` of `hardware.prices`; None where nothing tells it."""
        one = prices.of(self.instance_type) if prices and self.instance_type else None
        return None if one is None else one * self.instances


def side_of(name: str, target: "Target", metadata: Mapping[str, Any], seconds: Sequence[float] = ()) -> Side:
    """Side of a target that was asked; `seconds` are those of its answers, one at a time."""
    instance_type, instances = target.billed()
    facts = {key: str(metadata[key]) for key in _SHOWN if metadata.get(key)}
    dtype, precision = metadata.get("dtype"), metadata.get("precision")
    if dtype:
        facts["computes in"] = str(dtype) if precision in (None, dtype) else f"{precision}, weights {dtype}"
    if beside := [each for each in metadata.get("adapters") or () if not each["merged"]]:
        facts["adapters"] = ", ".join(f"{each['name']} ({each['sha256'][:12]})" for each in beside)
    states = metadata.get("optimisations") or {}
    return Side(
        target=name,
        where=_where(name),
        facts=facts,
        passes=tuple(passed for passed, state in states.items() if state == "applied"),
        versions={package: str(version) for package, version in (metadata.get("versions") or {}).items()},
        answered=len(seconds),
        p50_ms=1e3 * statistics.median(seconds) if seconds else None,
        p90_ms=1e3 * statistics.quantiles(seconds, n=10, method="inclusive")[8] if len(seconds) > 1 else None,
        instance_type=instance_type,
        instances=instances,
    )


def _where(name: str) -> str:
    kinds = {ENDPOINT: "deployed in Azure", URL: "a server that runs already", BUNDLE: "this machine, another bundle"}
    return next((told for kind, told in kinds.items() if name.startswith(kind)), "this machine")
