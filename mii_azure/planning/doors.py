"""Doors side by side: what each way to serve one model allows, costs, and can prove."""

import re
from typing import Any

from pydantic import BaseModel, ConfigDict

from mii_azure.hardware.prices import Prices
from mii_azure.hardware.skus import load_data
from mii_azure.planning.plan import Plan
from mii_azure.planning.planner import plan
from mii_azure.platform import limits

#: Azure's cap on a request, by what `timeout` says in data/doors.json; others have none but the plan's own.
_CAPS = {"managed": limits.MAX_REQUEST_TIMEOUT_MS, "kubernetes": limits.KUBERNETES_TIMEOUT_MS}
_WITH = {"http": "with --server http", "yes": "yes", "no": "no"}


class Door(BaseModel):
    """One way to serve a model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    door: str
    command: str
    request_timeout_s: float  # of this model there: as planned, or Azure's cap
    timeout: str  # what bounds it
    payload: str
    streams: str
    openai: str  # /v1/*
    identity: str
    scale: str
    price_per_hour: float | None  # of all instances; None if the door has no price, or the file none of it
    proof: str  # what parity can prove there
    remark: str  # "" if the plan's instance type serves there
    source: str


class DoorComparison(BaseModel):
    """Doors for one model, on the instance type of its plan."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    task: str
    instance_type: str
    instance_count: int
    currency: str | None = None
    region: str | None = None
    prices_of: str | None = None
    recorded: str  # date of the facts
    doors: tuple[Door, ...]


def compare(
    task: str, model: str, *, prices: Prices | None = None, instance_count: int = 1, **preferences: Any
) -> DoorComparison:
    """Set the doors side by side for a model; `preferences` are other fields of Spec.

    Raises the SpecError and ModelError branches of the error tree.
    """
    made = plan(task=task, model=model, instance_count=instance_count, **preferences)
    data = load_data("doors")
    hour = prices.of(made.instance_type) if prices else None
    rows = (_door(row, data["sources"], made, hour, instance_count) for row in data["doors"])
    told = {"currency": prices.currency, "region": prices.region, "prices_of": prices.date} if prices else {}
    return DoorComparison(
        model=made.profile.model,
        task=made.task,
        instance_type=made.instance_type,
        instance_count=instance_count,
        recorded=data["recorded"],
        doors=tuple(rows),
        **told,
    )


def _door(row: dict[str, Any], sources: dict[str, str], made: Plan, hour: float | None, instances: int) -> Door:
    planned, cap = made.request_timeout_ms, _CAPS.get(row["timeout"])
    one = row["door"] == "kaito"
    sizes = row.get("sizes")
    fits = sizes is None or re.match(sizes, made.instance_type, re.IGNORECASE)
    batch = "of a mini-batch's request; a mini-batch is tried again"
    bounds = {"own": "the plan's, no cap of Azure's", "batch": batch}
    timeout = f"Azure's cap is {cap // 1000} s" if cap else bounds[row["timeout"]]
    return Door(
        door=row["door"],
        command=row["command"],
        request_timeout_s=min(planned, cap or planned) / 1000,
        timeout=timeout,
        payload=_payload(row["payload"], made),
        streams=_WITH[row["streams"]] if _generates(made) or row["streams"] == "no" else "nothing to stream",
        openai=_WITH[row["openai"]],
        identity=row["identity"],
        scale=row["scale"],
        price_per_hour=hour * (1 if one else instances) if hour is not None and row["priced"] and fits else None,
        proof=row["proof"],
        remark="" if fits else f"not on {made.instance_type}: it makes nodes of the N and D series only",
        source=sources[row["source"]],
    )


def _payload(kind: str, made: Plan) -> str:
    body = f"{made.max_payload_bytes / 1e6:g} MB a request"
    shared = f"; {limits.ENDPOINT_BYTES_PER_S / 1e6:g} MB/s for all callers together"
    return {"endpoint": body + shared, "files": "files of requests", "cluster": f"{body}; the cluster's ingress"}.get(
        kind, body
    )


def _generates(made: Plan) -> bool:
    return made.task in ("text-generation", "conversational")
