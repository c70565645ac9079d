"""Availability of machines in Azure, in three verdicts: offered in the region, within quota, and free now."""

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from mii_azure.azure.autoscale import FILE
from mii_azure.bundle.bundle_view import DEPLOYMENT
from mii_azure.hardware.skus import find_sku
from mii_azure.planning.latency import quota_cores
from mii_azure.preflight.scene import AzureAnswer, Scene

_REGIONAL = "Total Cluster Dedicated Regional vCPUs"


class Machines(NamedTuple):
    """Machines that a deployment requests."""

    instance_type: str  # canonical spelling
    instances: int


def machines(scene: Scene) -> Machines | None:
    """Machines of a managed deployment; None if Azure ML does not allocate them by instance type."""
    from mii_azure.errors import UnknownInstanceType

    name = scene.bundle.get(DEPLOYMENT, "instance_type")
    if scene.bundle.kind != "managed" or not isinstance(name, str):
        return None
    try:
        return Machines(find_sku(name).name, scene.bundle.number(DEPLOYMENT, "instance_count") or 1)
    except UnknownInstanceType:
        return Machines(name, scene.bundle.number(DEPLOYMENT, "instance_count") or 1)


def offered(scene: Scene) -> Iterator[AzureAnswer]:
    """Check that the region offers the instance type to Azure ML, and to this kind of subscription."""
    asked = machines(scene)
    if asked is None:
        return
    size = _size(scene, asked.instance_type)
    remedy = (
        "Choose another instance type, or a workspace in another region; `mii-azure plan --rank` lists those that fit."
    )
    if size is None:
        message = f"Azure ML does not offer {asked.instance_type} in {scene.region}."
        yield AzureAnswer("no", message, remedy, "instance_type_not_offered")
        return
    reasons = {entry["reasonCode"] for entry in _restrictions(scene, asked.instance_type) if _whole_region(entry)}
    if "QuotaId" in reasons:
        message = f"This subscription's offer does not include {asked.instance_type} in {scene.region}."
        yield AzureAnswer(
            "no", message, "Use a subscription of another offer, or another type.", "instance_type_not_offered"
        )
        return
    yield AzureAnswer("yes", f"{asked.instance_type} is offered in {scene.region}.")


def quota(scene: Scene) -> Iterator[AzureAnswer]:
    """Check that the free cores of the family, and of the region, suffice for the deployment beside current use."""
    asked = machines(scene)
    if asked is None:
        return
    if scene.deployed:
        yield AzureAnswer("yes", f"{scene.slot} runs this bundle already: it takes no more quota.")
        return
    needed, family = _needed(scene, asked)
    rows = [row for row in _usages(scene) if _same(row.name, family)]
    if not rows:
        message = f"Azure lists no quota of the family {family} in {scene.region}; {needed} cores are needed."
        yield AzureAnswer("unverified", message, "Look it up in the studio, under Quota.")
        return
    rows += [row for row in _usages(scene) if row.name == _REGIONAL]
    for row in rows:
        if 0 <= row.limit < row.used + needed:
            message = f"{needed} cores are needed and {max(row.limit - row.used, 0)} of {row.limit} are free: {row}."
            remedy = f"Ask for a limit of {row.used + needed} in the studio, under Quota, or delete what is not used."
            yield AzureAnswer("no", message, remedy, "quota_exceeded")
            return
    free = min((row.limit - row.used for row in rows if row.limit >= 0), default=None)
    told = "no limit" if free is None else f"{free} cores free"
    yield AzureAnswer("yes", f"{needed} cores of {family} are needed; {told}.")
    most = _most(scene)
    grown, _ = _needed(scene, asked._replace(instances=most))
    if free is not None and grown > free:
        message = f"Autoscale up to {most} instances needs {grown} cores of {family}, and {free} are free."
        yield AzureAnswer(
            "note", message, "Ask for more, or generate the bundle with fewer --max-instances.", "quota_exceeded"
        )


def capacity(scene: Scene) -> Iterator[AzureAnswer]:
    """Check that the region has such machines; Azure is sure only when it allocates them."""
    asked = machines(scene)
    if asked is None or scene.deployed:
        return
    restricted = [
        e for e in _restrictions(scene, asked.instance_type) if e["reasonCode"] == "NotAvailableForSubscription"
    ]
    remedy = "Choose another type or region, or ask Azure's support for access to it there."
    if any(_whole_region(entry) for entry in restricted):
        message = f"{scene.region} has no capacity of {asked.instance_type} for this subscription."
        yield AzureAnswer("no", message, remedy, "no_capacity")
        return
    if restricted:
        zones = sorted({z for entry in restricted for z in entry.get("restrictionInfo", {}).get("zones", [])})
        message = f"{scene.region} has no {asked.instance_type} for this subscription in the zones {', '.join(zones)}."
        yield AzureAnswer(
            "note", message, "Others may have some; if not, choose another type or region.", "no_capacity"
        )
        return
    message = (
        f"No restriction on {asked.instance_type} in {scene.region}; whether one is free Azure says on allocating."
    )
    yield AzureAnswer("unverified", message, "If `deploy` ends in no_capacity, run it later or in another region.")


class _Usage(NamedTuple):
    name: str
    used: int
    limit: int  # -1 means none
    where: str

    def __str__(self) -> str:
        return f"{self.name}, {self.where}"


def _most(scene: Scene) -> int:
    """Maximum of instances in the bundle's autoscale rules; 0 without any."""
    file = scene.bundle.root / FILE
    if scene.bundle.loose is not None or not file.is_file():
        return 0
    return max(int(entry["capacity"]["maximum"]) for entry in json.loads(file.read_text("utf-8"))["profiles"])


def _needed(scene: Scene, asked: Machines) -> tuple[int, str]:
    """Required (cores, family), less the slot's current use; the family by Azure's own list of sizes if listed."""
    from mii_azure.errors import UnknownInstanceType

    size: Any = _size(scene, asked.instance_type)
    try:
        sku = find_sku(asked.instance_type)
        cores, family, skip = sku.cores, sku.quota_family, sku.skip_20_percent
    except UnknownInstanceType:
        cores, family, skip = 0, "", False
    cores = cores or int(_field(size, "v_cp_us", "vCPUs") or 0)
    mine = [entry for entry in scene.deployments if entry.name == scene.slot]
    mine = [entry for entry in mine if str(entry.instance_type).lower() == asked.instance_type.lower()]
    held = sum(quota_cores(cores, int(entry.instance_count or 0), skip) for entry in mine)
    needed = max(quota_cores(cores, asked.instances, skip) - held, 0)
    return needed, str(getattr(size, "family", "") or family)


def _size(scene: Scene, name: str) -> Any | None:
    return next((size for size in scene.sizes if str(size.name).lower() == name.lower()), None)


def _usages(scene: Scene) -> Iterator[_Usage]:
    """Limits of the subscription in the region and of this workspace; shares of clusters are left out."""
    mine = f"/workspaces/{scene.client.workspace_name}/".lower()
    for row in scene.usages:
        path = str(row.id or "").lower()
        of_workspace = "/workspaces/" in path
        if "/computes/" in path or (of_workspace and mine not in path):
            continue
        name = row.name if isinstance(row.name, dict) else vars(row.name)
        where = f"workspace {scene.client.workspace_name}" if of_workspace else f"subscription in {scene.region}"
        used, limit = _field(row, "current_value", "currentValue") or 0, -1 if row.limit is None else row.limit
        yield _Usage(str(name.get("value")), int(used), int(limit), where)


def _field(entry: Any, *names: str) -> Any:
    """First of these attributes with a value: azure-ai-ml 1.35 exposes numbers under their names on the wire."""
    return next((value for name in names if (value := getattr(entry, name, None)) is not None), None)


def _same(usage: str, family: str) -> bool:
    """True if `Standard NCASv3_T4 Family Cluster Dedicated vCPUs` is the quota of `standardNCASv3_T4Family`."""
    if "lowpriority" in usage.lower().replace(" ", ""):
        return False

    def core(text: str) -> str:
        text = re.sub(r"[^a-z0-9]", "", text.lower())
        return re.sub(r"^standard|family(clusterdedicatedvcpus)?$", "", text)

    return bool(core(family)) and core(usage) == core(family)


def _restrictions(scene: Scene, name: str) -> list[dict[str, Any]]:
    """Restrictions on this machine in the region, from Azure's own list."""
    found = [row for row in scene.machines if row["name"].lower() == name.lower()]
    return [entry for row in found for entry in row.get("restrictions") or []]


def _whole_region(restriction: dict[str, Any]) -> bool:
    return bool(restriction.get("type") == "Location")
