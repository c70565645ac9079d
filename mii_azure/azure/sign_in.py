"""Sign-in that outlasts a rollout: CI's identities by assertions that are fetched anew, tokens kept to their end."""

import logging
import os
import time
from typing import Any

from mii_azure.errors import NotSignedIn

_SPARE_S = 300.0  # azure-identity too asks for a new token this long before the old one ends
_LEAST_S = 10.0  # of life that a kept token must have to be sent

#: Variables by which GitHub lets a job with `id-token: write` ask for assertions, as often as it needs one.
GITHUB = ("ACTIONS_ID_TOKEN_REQUEST_URL", "ACTIONS_ID_TOKEN_REQUEST_TOKEN", "AZURE_CLIENT_ID", "AZURE_TENANT_ID")
#: Variables of Azure DevOps: what the task AzureCLI@2 sets, and $(System.AccessToken), which its step has to hand on.
PIPELINES = {
    "tenant_id": "AZURESUBSCRIPTION_TENANT_ID",
    "client_id": "AZURESUBSCRIPTION_CLIENT_ID",
    "service_connection_id": "AZURESUBSCRIPTION_SERVICE_CONNECTION_ID",
    "system_access_token": "SYSTEM_ACCESSTOKEN",
}
_AUDIENCE = "api://AzureADTokenExchange"
_TIMEOUT_S = 30.0


def credential() -> Any:
    """Identity of this process: the workflow's own in GitHub and Azure DevOps, else whatever azure-identity finds.

    `az login` in a workflow keeps one assertion, which ends within minutes; these ask for another at each renewal.
    """
    from azure import identity

    _log_to_listeners_only()
    given = os.environ
    if all(given.get(name) for name in GITHUB) and not given.get("AZURE_CLIENT_SECRET"):
        who = given["AZURE_TENANT_ID"], given["AZURE_CLIENT_ID"]
        return identity.ClientAssertionCredential(*who, github_assertion)
    if all(given.get(name) for name in (*PIPELINES.values(), "SYSTEM_OIDCREQUESTURI")):
        return identity.AzurePipelinesCredential(**{field: given[name] for field, name in PIPELINES.items()})
    return identity.DefaultAzureCredential()


def _log_to_listeners_only() -> None:
    """Keep azure-identity's account of every credential that it tried from standard error; the error says it once."""
    log = logging.getLogger("azure.identity")
    if not log.handlers:
        log.addHandler(logging.NullHandler())  # without any handler, logging prints warnings


def github_assertion() -> str:
    """Fetch a fresh assertion of the GitHub job; raises azure-core's ClientAuthenticationError if there is none."""
    import requests
    from azure.core.exceptions import ClientAuthenticationError

    url, token = (os.environ[name] for name in GITHUB[:2])
    try:
        response = requests.get(
            url, {"audience": _AUDIENCE}, headers={"Authorization": f"Bearer {token}"}, timeout=_TIMEOUT_S
        )
        response.raise_for_status()
        return str(response.json()["value"])
    except (requests.RequestException, ValueError, KeyError, TypeError) as error:
        raise ClientAuthenticationError(f"GitHub gave no assertion: {type(error).__name__}.") from error


class KeptTokens:
    """Credential that keeps each token until its end, so that a renewal that fails does not take what still works.

    `check` tells of such a failure minutes before the last token ends: time in which traffic can be given back.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._tokens: dict[tuple[str, ...], Any] = {}
        self._failures: dict[tuple[str, ...], Exception] = {}

    def get_token(self, *scopes: str, **options: Any) -> Any:
        """Get a token as azure-identity does; one with `claims` is always new, for the old one was revoked."""
        from azure.core.exceptions import ClientAuthenticationError

        kept = None if options.get("claims") else self._tokens.get(scopes)
        left = kept.expires_on - time.time() if kept else 0.0
        if left > _SPARE_S:
            return kept
        try:
            token = self._inner.get_token(*scopes, **options)
        except ClientAuthenticationError as error:
            self._failures[scopes] = error
            if left > _LEAST_S:
                return kept
            raise
        self._failures.pop(scopes, None)
        self._tokens[scopes] = token
        return token

    def prepare(self, *scopes: str) -> None:
        """Fetch a token for later, while the sign-in is fresh; a refusal is raised once the token is needed."""
        from azure.core.exceptions import ClientAuthenticationError

        try:
            self.get_token(*scopes)
        except ClientAuthenticationError:
            self._failures.pop(scopes, None)

    def check(self) -> None:
        """Raise NotSignedIn if a token that is in use is about to end and could not be renewed."""
        for scopes in list(self._tokens):
            self.get_token(*scopes)
        if self._failures:
            from mii_azure.azure.errors import azure_sentence

            failure = next(iter(self._failures.values()))
            raise NotSignedIn(
                f"The sign-in ends within minutes and could not be renewed. Azure says: {azure_sentence(failure)}",
                "Sign in again, and run the same command; in a workflow mii-azure signs in itself, as `ci` writes it.",
            )


def kept_by(client: Any) -> KeptTokens | None:
    """Tokens of a client that this program made; a caller's own client has its own."""
    found = getattr(client, "_credential", None)
    return found if isinstance(found, KeptTokens) else None
