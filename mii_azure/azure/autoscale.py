"""Autoscale of a slot: Azure Monitor's setting on the deployment, from the bundle's autoscale.json."""

import json
from pathlib import Path
from typing import Any

API = "2022-10-01"
FILE = "autoscale.json"
_TARGET = "DEPLOYMENT"  # placeholder in the file for the resource id that the rules apply to


def setting(bundle: Path, deployment_id: str, location: str, name: str) -> dict[str, Any]:
    """Request body for Azure Monitor, for one deployment."""
    text = (bundle / FILE).read_text(encoding="utf-8").replace(f'"{_TARGET}"', json.dumps(deployment_id))
    properties = json.loads(text)
    return {"location": location, "properties": {"name": name, **properties}}


def ensure_autoscale(client: Any, bundle: Path, endpoint: str, slot: str) -> bool:
    """Apply the bundle's autoscale rules to the slot, unless it has them; False if the bundle has none."""
    from mii_azure.azure.arm import Arm
    from mii_azure.azure.assets import exists

    if not (bundle / FILE).is_file():
        return False
    deployment = client.online_deployments.get(slot, endpoint)
    name = rules_name(endpoint, slot)
    desired = setting(bundle, deployment.id, client.online_endpoints.get(endpoint).location, name)
    arm = Arm(client)
    try:
        current = exists(lambda: arm.get(_path(client, name), API))
        if current is None or not _within(desired["properties"], current.get("properties", {})):
            arm.put(_path(client, name), API, desired)
    finally:
        arm.close()
    return True


def drop_autoscale(client: Any, endpoint: str, slot: str) -> None:
    """Remove the slot's rules, if any: Azure keeps them when the deployment is deleted.

    Needs no permission if no rules can be seen: a refused read counts as none.
    """
    from azure.core.exceptions import HttpResponseError

    from mii_azure.azure.arm import Arm
    from mii_azure.azure.assets import exists

    arm = Arm(client)
    path = _path(client, rules_name(endpoint, slot))
    try:
        if exists(lambda: arm.get(path, API)) is not None:
            arm.delete(path, API)
    except HttpResponseError as error:
        if error.status_code != 403:
            raise
    finally:
        arm.close()


def rules_name(endpoint: str, slot: str) -> str:
    """Name of the rules, the same as in autoscale.sh."""
    return f"autoscale-{endpoint}-{slot}"


def _path(client: Any, name: str) -> str:
    group = f"/subscriptions/{client.subscription_id}/resourceGroups/{client.resource_group_name}"
    return f"{group}/providers/Microsoft.Insights/autoscaleSettings/{name}"


def _within(desired: Any, current: Any) -> bool:
    """True if everything wanted is there; Azure adds fields of its own, and changes the case of ids."""
    if isinstance(desired, dict):
        return isinstance(current, dict) and all(_within(value, current.get(key)) for key, value in desired.items())
    if isinstance(desired, list):
        same = isinstance(current, list) and len(current) == len(desired)
        return same and all(_within(a, b) for a, b in zip(desired, current, strict=True))
    return str(desired).lower() == str(current).lower()
