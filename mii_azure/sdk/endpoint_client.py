"""Client of a deployed endpoint, or of any of our hosts over HTTP, with the methods of the runner's own client.

A function supplies the token; it is called again once if the last token is refused.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

from local_runner.access.credentials import Credentials
from local_runner.client.client import TIMEOUT_S
from local_runner.protocol import errors
from mii_azure.azure.errors import translated
from mii_azure.azure.live import SLOT_HEADER, fresh_key, model_status, split_address
from mii_azure.azure.sending import in_azure, post, scope_of, scoring_address
from mii_azure.azure.sign_in import credential
from mii_azure.errors import AzureUnavailable, NotSignedIn
from mii_azure.spec import azure_name
from scoring.errors import InvalidInput, MiiAzureError, RequestTimeout

Token = Callable[[], str]


class EndpointClient:
    """Client of one URL; a context manager, safe to share between threads. Raises SpecError for an invalid URL."""

    def __init__(self, url: str, token: Token, slot: str | None = None, credentials: Credentials | None = None) -> None:
        import requests

        scoring_address(url)
        self.url, self._token, self._slot = url, token, slot
        self._key = token()
        self._session = requests.Session()  # honours REQUESTS_CA_BUNDLE and proxies in the environment
        files = credentials or Credentials()
        # Set per request, because the environment would override a session's own.
        self._files: dict[str, Any] = {
            "verify": str(files.ca) if files.ca else None,
            "cert": (str(files.cert), str(files.key)) if files.cert and files.key else None,
        }

    def query(self, payload: Any, timeout: float = TIMEOUT_S) -> Any:
        """Send one request and return its answer; raises the error in the model's own reply, behind Azure's."""
        with self._asked(payload, timeout) as response:
            return errors.read_answer(response.content, self.url)

    def stream(self, payload: dict[str, Any], timeout: float = TIMEOUT_S) -> Iterator[dict[str, Any]]:
        """Yield the events of a streamed answer as they arrive; leaving the iterator early closes the connection."""
        errors.check_streamed(payload)
        parser = errors.EventParser()
        with self._asked({**payload, "stream": True}, timeout) as response:
            for chunk in response.iter_content(None):
                for event in parser.feed(chunk):
                    yield errors.read_answer(event, self.url)

    def metadata(self, timeout: float = TIMEOUT_S) -> dict[str, Any]:
        """Metadata of the deployment: name, task, model, versions, device, limits."""
        facts: dict[str, Any] = self.query(json.loads(errors.METADATA_BODY), timeout)
        return facts

    def ready(self, timeout: float = 5.0) -> bool:
        """Return True if a request sent now would be scored; False also if nothing answers."""
        try:
            return bool(self.metadata(timeout).get("ready"))
        except MiiAzureError:
            return False

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @contextmanager
    def _asked(self, payload: Any, timeout: float) -> Iterator[Any]:
        import requests

        try:
            body = json.dumps(payload, ensure_ascii=False, allow_nan=False).encode()
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"The payload is not JSON: {error}.", "Send plain values, and no NaN.") from error
        try:
            response = self._post(body, timeout)
            if response.status_code == 401:
                response.close()
                self._key = self._token()
                response = self._post(body, timeout)
            with response:
                if response.status_code != 200:
                    status = model_status(response)
                    raise errors.error_from_body(response.content, status, response.headers.get(errors.RETRY_KEY, "1"))
                yield response
        except requests.Timeout as error:
            raise RequestTimeout(f"No answer from {self.url} within {timeout} s.", "Ask with more time.") from error
        except requests.RequestException as error:
            raise AzureUnavailable(f"{self.url} was not reached: {error}.", "Check network and proxy.") from error

    def _post(self, body: bytes, timeout: float) -> Any:
        headers = {SLOT_HEADER: self._slot} if self._slot else {}
        return post(self._session, self.url, body, self._key, headers, timeout=timeout, stream=True, **self._files)


def of_endpoint(address: str, ml_client: Any) -> EndpointClient:
    """Create a client of `endpoint:NAME[/SLOT]`: by key, aml_token or aad_token, as the endpoint's auth mode says."""
    endpoint, slot = split_address(address)
    endpoint = azure_name(endpoint)
    with translated():
        url = str(ml_client.online_endpoints.get(endpoint).scoring_uri)
    return EndpointClient(url, lambda: fresh_key(ml_client, endpoint), slot)


def of_url(url: str, credentials: Credentials | None = None) -> EndpointClient:
    """Create a client of a scoring URL, without asking the workspace.

    A key in `credentials` is sent; without one, an endpoint in Azure gets a token of the identity that azure-identity
    finds signed in, and any other host gets none.
    """
    address = scoring_address(url)
    key = credentials.api_key if credentials else ""
    if key or not (address.scheme == "https" and in_azure(address)):
        return EndpointClient(url, lambda: key, credentials=credentials)
    return EndpointClient(url, _identity(scope_of(address)), credentials=credentials)


def _identity(scope: str) -> Token:
    """Token source for the signed-in identity, in the endpoint's cloud; azure-identity keeps tokens."""
    from azure.core.exceptions import ClientAuthenticationError

    signed_in = credential()

    def token() -> str:
        try:
            return str(signed_in.get_token(scope).token)
        except ClientAuthenticationError as error:
            said = str(error).strip().splitlines()[0]
            raise NotSignedIn(f"Nobody is signed in: {said}", "Run `az login`, or send a key.") from error

    return token
