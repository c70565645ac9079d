"""Online endpoint, its slots and its traffic."""

import time
from pathlib import Path
from typing import Any

from mii_azure.azure.assets import exists
from mii_azure.azure.client import Say, wait
from mii_azure.errors import AzureUnavailable, ContainerNotReady
from scoring.config import Deployment

TAG = "mii_azure_bundle"  # the bundle's hash on a deployment, by which a rerun sees that nothing is left to do
ADAPTERS = "mii_azure_adapters"  # names of the adapters beside its model, with spaces between
_MOST_TAG = 256  # characters of a tag's value, in Azure
BUSY = {"Creating", "Updating", "Scaling"}
_POLL_S = 5.0
_BUSY_S = 3600.0
_LOG_LINES = 30


def ensure_endpoint(client: Any, bundle: Path, say: Say) -> Any:
    """Create endpoint.yml's endpoint unless it exists and is healthy; return it."""
    from azure.ai.ml import load_online_endpoint

    desired = load_online_endpoint(bundle / "endpoint.yml")
    current = settled(lambda: client.online_endpoints.get(desired.name), say, f"endpoint {desired.name}")
    if current is None or state(current) == "Failed":
        return wait(client.online_endpoints.begin_create_or_update(desired), say, f"endpoint {desired.name}")
    if current.auth_mode != desired.auth_mode:
        say(f"endpoint {desired.name} has auth_mode {current.auth_mode}, not {desired.auth_mode}: left as it is")
    return current


def ensure_deployment(client: Any, bundle: Path, endpoint: str, slot: str, digest: str, say: Say) -> Any:
    """Create or update the deployment of the bundle in `slot`, unless that very bundle runs there; return it."""
    from azure.ai.ml import load_online_deployment

    desired = load_online_deployment(bundle / "deployment.yml")
    desired.name, desired.endpoint_name = slot, endpoint
    desired.tags = {**(desired.tags or {}), **tags_of(bundle, digest)}
    what = f"deployment {slot}"
    current = settled(lambda: client.online_deployments.get(slot, endpoint), say, what)
    if current is not None and state(current) == "Succeeded" and (current.tags or {}).get(TAG) == digest:
        return current
    from azure.core.exceptions import HttpResponseError

    poller = client.online_deployments.begin_create_or_update(desired)
    try:
        wait(poller, say, what)
    except HttpResponseError as error:
        raise _with_log(client, endpoint, slot, error) from error
    return client.online_deployments.get(slot, endpoint)


def tags_of(bundle: Path, digest: str) -> dict[str, str]:
    """Tags by which a deployment tells its bundle, and the adapters that it serves beside its model."""
    names, told = Deployment.read(bundle / "code" / "deployment.json").beside, ""
    for name in names:
        if len(told) + len(name) + 2 > _MOST_TAG - 1:
            told += " …"
            break
        told = f"{told} {name}".strip()
    return {TAG: digest, **({ADAPTERS: told} if told else {})}


def settled(read: Any, say: Say, what: str) -> Any | None:
    """Wait until no operation runs on the resource, e.g. one of an interrupted command; None if it does not exist."""
    deadline = time.monotonic() + _BUSY_S
    while (current := exists(read)) is not None and state(current) in BUSY:
        if time.monotonic() > deadline:
            raise AzureUnavailable(f"{what} is still {state(current)}.", "Run the same command again later.")
        say(f"{what}: waiting, it is {state(current)}")
        time.sleep(_POLL_S)
    return current


def set_traffic(client: Any, endpoint: str, shares: dict[str, int], mirror: dict[str, int], say: Say) -> Any:
    """Set each slot's percentage, and the mirrored slot; sends no request if unchanged. Returns the endpoint."""
    current = client.online_endpoints.get(endpoint)
    if nonzero(current.traffic) == nonzero(shares) and nonzero(current.mirror_traffic) == nonzero(mirror):
        return current
    current.traffic, current.mirror_traffic = dict(shares), dict(mirror)
    return wait(client.online_endpoints.begin_create_or_update(current), say, f"traffic of {endpoint}")


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

    translated = translate(error)
    if isinstance(translated, ContainerNotReady) and (log := log_tail(client, endpoint, slot)):
        from local_runner.process.launch import tail

        translated.message = f"{translated.message} The container's last words: {tail(log)}"
        translated.args = (translated.message,)
    return translated
