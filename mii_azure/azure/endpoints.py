"""Online endpoint, its slots and its traffic."""

import time
from pathlib import Path
from typing import Any

from mii_azure.azure.assets import exists
from mii_azure.azure.client import Say, wait
from mii_azure.errors import AzureUnavailable, ContainerNotReady

TAG = "mii_azure_bundle"  # the bundle's hash on a deployment, by which a rerun sees that nothing is left to do
BUSY = {"Creating", "Updating", "Scaling"}
_POLL_S = 5.0
_BUSY_S = 3600.0
_LOG_LINES = 30


def ensure_endpoint(client: Any, bundle: Path, say: Say) -> Any:
    """Create endpoint.yml's endpoint unless it exists and is healthy; return it."""
    from azure.ai.ml import load_online_endpoint

    wanted = load_online_endpoint(bundle / "endpoint.yml")
    found = settled(lambda: client.online_endpoints.get(wanted.name), say, f"endpoint {wanted.name}")
    if found is None or state(found) == "Failed":
        return wait(client.online_endpoints.begin_create_or_update(wanted), say, f"endpoint {wanted.name}")
    if found.auth_mode != wanted.auth_mode:
        say(f"endpoint {wanted.name} has auth_mode {found.auth_mode}, not {wanted.auth_mode}: left as it is")
    return found


def ensure_deployment(client: Any, bundle: Path, endpoint: str, slot: str, digest: str, say: Say) -> Any:
    """Create or update the deployment of the bundle in `slot`, unless that very bundle runs there; return it."""
    from azure.ai.ml import load_online_deployment

    wanted = load_online_deployment(bundle / "deployment.yml")
    wanted.name, wanted.endpoint_name = slot, endpoint
    wanted.tags = {**(wanted.tags or {}), TAG: digest}
    what = f"deployment {slot}"
    found = settled(lambda: client.online_deployments.get(slot, endpoint), say, what)
    if found is not None and state(found) == "Succeeded" and (found.tags or {}).get(TAG) == digest:
        return found
    from azure.core.exceptions import HttpResponseError

    poller = client.online_deployments.begin_create_or_update(wanted)
    try:
        wait(poller, say, what)
    except HttpResponseError as error:
        raise _with_log(client, endpoint, slot, error) from error
    return client.online_deployments.get(slot, endpoint)


def settled(read: Any, say: Say, what: str) -> Any | None:
    """Wait until no operation runs on the resource, e.g. one of an interrupted command; None if it does not exist."""
    deadline = time.monotonic() + _BUSY_S
    while (found := exists(read)) is not None and state(found) in BUSY:
        if time.monotonic() > deadline:
            raise AzureUnavailable(f"{what} is still {state(found)}.", "Run the same command again later.")
        say(f"{what}: waiting, it is {state(found)}")
        time.sleep(_POLL_S)
    return found


def set_traffic(client: Any, endpoint: str, shares: dict[str, int], mirror: dict[str, int], say: Say) -> Any:
    """Set each slot's percentage, and the mirrored slot; sends no request if unchanged. Returns the endpoint."""
    found = client.online_endpoints.get(endpoint)
    if nonzero(found.traffic) == nonzero(shares) and nonzero(found.mirror_traffic) == nonzero(mirror):
        return found
    found.traffic, found.mirror_traffic = dict(shares), dict(mirror)
    return wait(client.online_endpoints.begin_create_or_update(found), say, f"traffic of {endpoint}")


def state(resource: Any) -> str:
    """Provisioning state: Succeeded, Failed, Creating, ...; the client gives an enumeration or text."""
    given = resource.provisioning_state
    return str(getattr(given, "value", given))


def nonzero(shares: Any) -> dict[str, int]:
    """Slots that receive traffic."""
    return {str(slot): int(share) for slot, share in (shares or {}).items() if share}


def log_tail(client: Any, endpoint: str, slot: str, lines: int = _LOG_LINES) -> str:
    """Last lines of a slot's container log; empty if Azure gives none."""
    from azure.core.exceptions import AzureError

    try:
        return str(client.online_deployments.get_logs(slot, endpoint, lines))
    except AzureError:
        return ""


def _with_log(client: Any, endpoint: str, slot: str, error: Exception) -> Exception:
    """Translate the error; if the container is at fault, append the end of its log."""
    from mii_azure.azure.errors import translate

    told = translate(error)
    if isinstance(told, ContainerNotReady) and (log := log_tail(client, endpoint, slot)):
        from local_runner.process.launch import tail

        told.message = f"{told.message} The container's last words: {tail(log)}"
        told.args = (told.message,)
    return told
