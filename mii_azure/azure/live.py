"""Requests to a live endpoint: any slot, any auth mode, and the model's own status extracted from Azure's 424."""

import re
import time
from pathlib import Path
from typing import Any, ClassVar

from local_runner.protocol.errors import read_answer
from local_runner.targets.load import TargetReply
from local_runner.targets.targets import Target
from mii_azure.azure.errors import translated
from mii_azure.azure.sending import post
from mii_azure.errors import AzureUnavailable, SpecError
from mii_azure.platform.target_names import ENDPOINT
from mii_azure.spec import azure_name

SLOT_HEADER = "azureml-model-deployment"
ENTRA_SCOPE = "https://ml.azure.com/.default"  # that azure-ai-ml asks for where an endpoint's auth mode is aad_token
STATUS_HEADER = "ms-azureml-model-error-statuscode"
PAUSE_S = 5.0  # between attempts of the sample request: a new slot's routes take a moment to work
_TIMEOUT_S = 200.0  # above Azure's cap of 180 s


class Live:
    """Live endpoint, or one slot of it.

    `MLClient.online_endpoints.invoke` is not used: it accepts only JSON files, hides the status, and reuses the slot of
    one call for the next (its headers are one dictionary of the class).
    """

    def __init__(self, client: Any, endpoint: str, slot: str | None = None) -> None:
        import requests

        self._client, self.endpoint, self.slot = client, azure_name(endpoint), slot
        with translated():
            self.uri = str(client.online_endpoints.get(self.endpoint).scoring_uri)
        self._key = fresh_key(client, self.endpoint)
        self._session = requests.Session()  # honours REQUESTS_CA_BUNDLE and proxies, as the client does

    def send(self, raw: str) -> TargetReply:
        """Post a body unchanged; an expired token is renewed once. Raises AzureUnavailable if nothing answers."""
        import requests

        began = time.perf_counter()
        try:
            response = self._post(raw)
            if response.status_code == 401:
                self._key = fresh_key(self._client, self.endpoint)
                response = self._post(raw)
        except requests.RequestException as error:
            raise AzureUnavailable(
                f"The endpoint {self.endpoint} was not reached: {error}.", "Check network and proxy."
            ) from error
        return TargetReply(model_status(response), response.content, time.perf_counter() - began)

    def billed(self) -> tuple[str, int]:
        """Instance type and number of instances of the slot, or of the one with most of the traffic."""
        with translated():
            slot = self.slot
            if slot is None:
                traffic = self._client.online_endpoints.get(self.endpoint).traffic or {}
                slot = max(traffic, key=lambda name: int(traffic[name]), default=None)
            if slot is None:
                return "", 0
            found = self._client.online_deployments.get(slot, self.endpoint)
        return str(found.instance_type or ""), int(found.instance_count or 0)

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def _post(self, raw: str) -> Any:
        headers = {SLOT_HEADER: self.slot} if self.slot else {}
        return post(self._session, self.uri, raw.encode(), self._key, headers, timeout=_TIMEOUT_S)


def model_status(response: Any) -> int:
    """Status of the model itself, which Azure hides behind 424; the response's status if none is given."""
    told = str(response.headers.get(STATUS_HEADER, ""))
    return int(told) if re.fullmatch("[1-5][0-9][0-9]", told) else int(response.status_code)


def fresh_key(client: Any, endpoint: str) -> str:
    """Fetch the endpoint's credential by its auth mode: its key, its aml_token or a Microsoft Entra token."""
    with translated():
        keys = client.online_endpoints.get_keys(endpoint)
    return str(getattr(keys, "primary_key", None) or keys.access_token)


class EndpointTarget(Target):
    """`endpoint:NAME` or `endpoint:NAME/SLOT` for parity, beside the local hosts."""

    name: ClassVar[str] = "endpoint"

    def __init__(self, bundle: Path, address: str, client: Any) -> None:
        super().__init__(bundle)
        self._address, self._client = address, client

    def _start(self) -> None:
        endpoint, slot = split_address(self._address)
        self._live = Live(self._client, endpoint, slot)
        self._open.callback(self._live.close)

    def send(self, raw: str) -> TargetReply:
        return self._live.send(raw)

    def billed(self) -> tuple[str, int]:
        return self._live.billed()


def split_address(address: str) -> tuple[str, str | None]:
    """Split `endpoint:NAME[/SLOT]` into endpoint and slot; raises SpecError if one is empty."""
    endpoint, _, slot = address.removeprefix(ENDPOINT).partition("/")
    if not endpoint:
        raise SpecError(f"{address!r} names no endpoint.", f"Write {ENDPOINT}NAME, or {ENDPOINT}NAME/SLOT.")
    return endpoint, slot or None


def smoke(live: Live, bundle: Path, attempts: int = 3) -> Any:
    """Send the bundle's sample request and return the answer; raises AzureUnavailable if no attempt gets a 200."""
    raw = (bundle / "requests" / "sample.json").read_text(encoding="utf-8")
    for attempt in range(attempts):
        reply = live.send(raw)
        if reply.status == 200:
            return read_answer(reply.body, live.uri)
        if reply.status < 500 and reply.status not in (404, 424, 429):
            break
        if attempt + 1 < attempts:
            time.sleep(PAUSE_S)
    text = reply.body.decode(errors="replace")[:500]
    raise AzureUnavailable(
        f"The sample request to {live.endpoint}, slot {live.slot or 'by traffic'}, was answered {reply.status}: {text}",
        "Read `mii-azure logs`.",
    )
