"""Sending one POST with a key or token, to the intended host and no other."""

from collections.abc import Mapping
from typing import Any

from local_runner.protocol.addresses import Address, read_url
from mii_azure.errors import AzureUnavailable, SpecError

#: Azure's own hosts of online endpoints, with the scope of each cloud's tokens: a user's or identity's token is sent to
#: no other, and only over TLS.
_AZURE = {
    ".inference.ml.azure.com": "https://ml.azure.com/.default",
    ".inference.ml.azure.us": "https://ml.azure.us/.default",
    ".inference.ml.azure.cn": "https://ml.azure.cn/.default",
}

_NO_PATH = "it has no path"


def scoring_address(url: str) -> Address:
    """Parse a scoring URL; raises SpecError for one that is odd or has no path."""
    try:
        address = read_url(url)
        if not address.path.strip("/"):
            raise ValueError(_NO_PATH)
        return address
    except ValueError as error:
        hint = "It looks like https://NAME.REGION.inference.ml.azure.com/score."
        if str(error) == _NO_PATH:
            hint = f"Did you mean {url.rstrip('/')}/score?"
        raise SpecError(f"{url!r} is no scoring URL: {error}.", hint) from None


def in_azure(address: Address) -> bool:
    """True if the host is that of an online endpoint in Azure."""
    return bool(scope_of(address))


def scope_of(address: Address) -> str:
    """Scope of a Microsoft Entra token for an online endpoint in Azure; empty for any other host."""
    host = address.host.rstrip(".")
    return next((scope for suffix, scope in _AZURE.items() if host.endswith(suffix)), "")


class Bearer:
    """Authentication for `requests` that adds a key or token only if the request goes to the intended address.

    It also keeps `requests` from using credentials for that host from a .netrc file.
    """

    def __init__(self, address: Address, key: str) -> None:
        self._address, self._key = address, key

    def __call__(self, prepared: Any) -> Any:
        try:
            goes = read_url(str(prepared.url))
        except ValueError as error:
            raise SpecError(f"{prepared.url!r} gets no key: {error}.", "Check the URL.") from None
        if goes[:3] != self._address[:3]:
            raise SpecError(
                f"The key is for {self._address.host}, and the request goes to {goes.host}.", "Check the URL."
            )
        if goes.scheme != "https" and in_azure(goes):
            raise SpecError(f"{goes.host} is asked without TLS, so it gets no key.", "Write https:// in its URL.")
        prepared.headers["Authorization"] = f"Bearer {self._key}"
        return prepared


def post(session: Any, url: str, body: bytes, key: str, headers: Mapping[str, str], **options: Any) -> Any:
    """Post a JSON body; raises SpecError for a URL that must not get a key, AzureUnavailable for a redirect."""
    auth = Bearer(scoring_address(url), key) if key else None
    told = {"Content-Type": "application/json", **headers}
    response = session.post(url, body, headers=told, auth=auth, allow_redirects=False, **options)
    if response.is_redirect:
        response.close()
        raise AzureUnavailable(
            f"{url} sends elsewhere, to {response.headers.get('Location')}; neither request nor key went there.",
            "Ask that address itself, if you trust it.",
        )
    return response
