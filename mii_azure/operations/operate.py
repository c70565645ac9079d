"""Verbs status, logs, invoke and delete on endpoints by name."""

import json
from typing import Any

from pydantic import BaseModel, ConfigDict

from local_runner.protocol.errors import error_from_body, read_answer
from mii_azure.azure import batch, endpoints
from mii_azure.azure.assets import exists
from mii_azure.azure.autoscale import drop_autoscale
from mii_azure.azure.client import Say, wait
from mii_azure.azure.errors import translated
from mii_azure.azure.live import Live
from mii_azure.operations.deploy import silent
from mii_azure.spec import azure_name


class SlotStatus(BaseModel):
    """Deployment of an endpoint."""

    model_config = ConfigDict(frozen=True)

    slot: str
    state: str
    traffic: int  # percent
    mirrored: int  # percent
    instance_type: str
    instances: int
    bundle: str  # the bundle's hash; empty for other deployments
    adapters: tuple[str, ...] = ()  # beside its model, as they were deployed


class Status(BaseModel):
    """Endpoint and its slots."""

    model_config = ConfigDict(frozen=True)

    endpoint: str
    state: str
    auth_mode: str
    scoring_uri: str
    slots: tuple[SlotStatus, ...]


def status(client: Any, endpoint: str) -> Status:
    """Status of an endpoint and its slots; raises NotInAzure. A name too short for Azure is the bundle's own."""
    endpoint = azure_name(endpoint)
    with translated():
        found = exists(lambda: client.online_endpoints.get(endpoint))
        if found is None and batch.is_live(client, endpoint):
            return _batch_status(client, endpoint)
        found = client.online_endpoints.get(endpoint) if found is None else found
        slots = [
            client.online_deployments.get(entry.name, endpoint) for entry in client.online_deployments.list(endpoint)
        ]
    traffic, mirrored = endpoints.nonzero(found.traffic), endpoints.nonzero(found.mirror_traffic)
    return Status(
        endpoint=endpoint,
        state=endpoints.state(found),
        auth_mode=str(found.auth_mode),
        scoring_uri=str(found.scoring_uri or ""),
        slots=tuple(_slot(entry, traffic, mirrored) for entry in sorted(slots, key=lambda entry: entry.name)),
    )


def _batch_status(client: Any, endpoint: str) -> Status:
    """Status of a batch endpoint: the default deployment takes all jobs."""
    found = client.batch_endpoints.get(endpoint)
    names = sorted(entry.name for entry in client.batch_deployments.list(endpoint))
    default = batch.default_of(found)
    return Status(
        endpoint=endpoint,
        state=endpoints.state(found),
        auth_mode=str(found.auth_mode),
        scoring_uri=str(found.scoring_uri or ""),
        slots=tuple(
            _batch_slot(client.batch_deployments.get(name, endpoint), 100 if name == default else 0) for name in names
        ),
    )


def _batch_slot(entry: Any, share: int) -> SlotStatus:
    return SlotStatus(
        slot=entry.name,
        state=endpoints.state(entry),
        traffic=share,
        mirrored=0,
        instance_type=str(entry.compute or "").rsplit("/", 1)[-1],
        instances=int(getattr(entry.resources, "instance_count", 0) or 0),
        bundle=(entry.tags or {}).get(endpoints.TAG, ""),
        adapters=tuple((entry.tags or {}).get(endpoints.ADAPTERS, "").split()),
    )


def _slot(entry: Any, traffic: dict[str, int], mirrored: dict[str, int]) -> SlotStatus:
    return SlotStatus(
        slot=entry.name,
        state=endpoints.state(entry),
        traffic=traffic.get(entry.name, 0),
        mirrored=mirrored.get(entry.name, 0),
        instance_type=str(entry.instance_type or ""),
        instances=entry.instance_count or 0,
        bundle=(entry.tags or {}).get(endpoints.TAG, ""),
        adapters=tuple((entry.tags or {}).get(endpoints.ADAPTERS, "").split()),
    )


def logs(client: Any, endpoint: str, slot: str, lines: int = 200, container: str | None = None) -> str:
    """Last lines of a slot's container, `inference-server` or `storage-initializer`; raises NotInAzure."""
    endpoint = azure_name(endpoint)
    with translated():
        return str(client.online_deployments.get_logs(slot, endpoint, lines, container_type=container))


def invoke(client: Any, endpoint: str, payload: Any, slot: str | None = None) -> Any:
    """Answer to one request, by traffic or from one slot; raises the error that the model's own reply names."""
    live = Live(client, endpoint, slot)
    try:
        reply = live.send(json.dumps(payload, ensure_ascii=False))
    finally:
        live.close()
    if reply.status != 200:
        raise error_from_body(reply.body, reply.status)
    return read_answer(reply.body, live.uri)


def delete(client: Any, endpoint: str, slot: str | None = None, say: Say = silent) -> None:
    """Delete a slot, after removing its traffic, or the endpoint with all of its slots; raises NotInAzure."""
    endpoint = azure_name(endpoint)
    with translated():
        if batch.is_live(client, endpoint) and exists(lambda: client.online_endpoints.get(endpoint)) is None:
            operations = client.batch_deployments if slot else client.batch_endpoints
            named = (slot, endpoint) if slot else (endpoint,)
            wait(operations.begin_delete(*named), say, " ".join(named))
            return
        if slot is None:
            for entry in client.online_deployments.list(endpoint):
                drop_autoscale(client, endpoint, entry.name)
            wait(client.online_endpoints.begin_delete(endpoint), say, f"endpoint {endpoint}")
            return
        client.online_deployments.get(slot, endpoint)
        found = client.online_endpoints.get(endpoint)
        traffic, mirror = endpoints.nonzero(found.traffic), endpoints.nonzero(found.mirror_traffic)
        others = {name: share for name, share in traffic.items() if name != slot}
        if slot in traffic and others:
            main = max(others, key=lambda name: others[name])
            others[main] += traffic[slot]
        if slot in traffic or slot in mirror:
            kept = {name: share for name, share in mirror.items() if name != slot}
            endpoints.set_traffic(client, endpoint, others, kept, say)
        drop_autoscale(client, endpoint, slot)
        wait(client.online_deployments.begin_delete(slot, endpoint), say, f"deployment {slot}")
