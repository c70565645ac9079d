"""Autoscale of a slot: Azure Monitor's settings on the deployment, from the bundle's autoscale.json."""

import json
from pathlib import Path
from typing import Any

API = "2022-10-01"
FILE = "autoscale.json"
_TARGET = "DEPLOYMENT"  # stands in the file for the resource id that the rules are about


def setting(bundle: Path, deployment_id: str, location: str, name: str) -> dict[str, Any]:
    """The body that Azure Monitor takes, for one deployment."""
    text = (bundle / FILE).read_text(encoding="utf-8").replace(f'"{_TARGET}"', json.dumps(deployment_id))
    properties = json.loads(text)
    return {"location": location, "properties": {"name": name, **properties}}


def ensure_autoscale(client: Any, bundle: Path, endpoint: str, slot: str) -> bool:
    """Give the slot the bundle's rules, unless it has them; False where the bundle has none."""
    from mii_azure.azure.arm import Arm
    from mii_azure.azure.assets import exists

    if not (bundle / FILE).is_file():
        return False
    deployment = client.online_deployments.get(slot, endpoint)
    name = rules_name(endpoint, slot)
    wanted = setting(bundle, deployment.id, client.online_endpoints.get(endpoint).location, name)
    arm = Arm(client)
    try:
        found = exists(lambda: arm.get(_path(client, name), API))
        if found is None or not _within(wanted["properties"], found.get("properties", {})):
            arm.put(_path(client, name), API, wanted)
    finally:
        arm.close()
    return True


def drop_autoscale(client: Any, endpoint: str, slot: str) -> None:
    """Remove the slot's rules, if it has any: Azure keeps them when the deployment goes.

    Needs no permission where there are none to see: a refusal to look counts as none.
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
    """As autoscale.sh names them too."""
    return f"autoscale-{endpoint}-{slot}"


def _path(client: Any, name: str) -> str:
    group = f"/subscriptions/{client.subscription_id}/resourceGroups/{client.resource_group_name}"
    return f"{group}/providers/Microsoft.Insights/autoscaleSettings/{name}"


def _within(wanted: Any, found: Any) -> bool:
    """Whether everything wanted is there; Azure adds fields of its own, and ids come back in other letter case."""
    if isinstance(wanted, dict):
        return isinstance(found, dict) and all(_within(value, found.get(key)) for key, value in wanted.items())
    if isinstance(wanted, list):
        same = isinstance(found, list) and len(found) == len(wanted)
        return same and all(_within(a, b) for a, b in zip(wanted, found, strict=True))
    return str(wanted).lower() == str(found).lower()
