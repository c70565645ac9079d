"""Azure Resource Manager requests under the client's own sign-in, where azure-ai-ml has no call."""

from collections.abc import Iterable
from typing import Any

from mii_azure.errors import AzureUnavailable

_RETRIES = 2
RETRY_WAIT_S = 0.8  # before the second attempt; doubled for each later one


class Arm:
    """GET, PUT and DELETE at the address and with the credential of an MLClient; raises azure-core's errors.

    `client._base_url` and `client._credential` are private, but there is no public way to get either.
    """

    def __init__(self, client: Any) -> None:
        from azure.core import PipelineClient
        from azure.core.pipeline import policies
        from azure.mgmt.core.policies import ARMChallengeAuthenticationPolicy

        self._base = base = str(client._base_url).rstrip("/")
        self._client: Any = PipelineClient(
            base,
            policies=[
                policies.HeadersPolicy(),
                policies.RetryPolicy(retry_total=_RETRIES, retry_backoff_factor=RETRY_WAIT_S),
                ARMChallengeAuthenticationPolicy(client._credential, f"{base}/.default"),
            ],
        )

    def get(self, path: str, version: str, **query: str) -> dict[str, Any]:
        """GET the resource or answer at a path such as `/subscriptions/...`; pass `$filter` as `filter`."""
        options = {"api-version": version} | {("$filter" if k == "filter" else k): v for k, v in query.items()}
        return self._send("GET", path, options)

    def pages(self, path: str, version: str, **query: str) -> list[dict[str, Any]]:
        """Collect every entry of a list, page by page."""
        page = self.get(path, version, **query)
        found = list(page.get("value", []))
        while link := page.get("nextLink"):
            if not str(link).startswith(f"{self._base}/"):
                raise AzureUnavailable(
                    f"The next page of {path} is elsewhere: {link}; no token goes there.", "Run the same command again."
                )
            page = self._send("GET", link.removeprefix(self._base), {})
            found += page.get("value", [])
        return found

    def put(self, path: str, version: str, body: dict[str, Any]) -> dict[str, Any]:
        """Create or replace the resource at a path."""
        return self._send("PUT", path, {"api-version": version}, body)

    def delete(self, path: str, version: str) -> None:
        """Delete the resource at a path; a missing one counts as deleted."""
        self._send("DELETE", path, {"api-version": version})

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _send(self, method: str, path: str, query: dict[str, str], body: Any = None) -> dict[str, Any]:
        from azure.core.exceptions import HttpResponseError, map_error
        from azure.core.rest import HttpRequest

        request = HttpRequest(method, self._base + path, params=query, json=body)
        response = self._client.send_request(request)
        if response.status_code >= 400:
            map_error(response.status_code, response, _errors())
            raise HttpResponseError(response=response)
        found = response.json() if response.content else {}
        return found if isinstance(found, dict) else {}


def _errors() -> Any:
    from azure.core import exceptions

    return {
        401: exceptions.ClientAuthenticationError,
        404: exceptions.ResourceNotFoundError,
        409: exceptions.ResourceExistsError,
    }


def permits(permissions: Iterable[dict[str, Any]], action: str, data: bool = False) -> bool:
    """True if a role's permissions allow an action such as `Microsoft.ContainerRegistry/registries/pull/read`."""
    allow, deny = ("dataActions", "notDataActions") if data else ("actions", "notActions")

    def named(patterns: Iterable[str] | None) -> bool:
        return any(_matches(pattern, action) for pattern in patterns or ())

    return any(named(entry.get(allow)) and not named(entry.get(deny)) for entry in permissions)


def _matches(pattern: str, action: str) -> bool:
    """Match with Azure's wildcards: `*` stands for any text, slashes included; case is ignored."""
    import re

    return bool(re.fullmatch(".*".join(map(re.escape, pattern.lower().split("*"))), action.lower()))
