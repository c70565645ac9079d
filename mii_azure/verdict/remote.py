"""Targets behind a URL, ours or not: the body as it is, OpenAI's interface, or the Open Inference Protocol."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from local_runner.targets.load import TargetReply
from local_runner.targets.targets import Target
from mii_azure.azure.live import model_status
from mii_azure.azure.sending import Bearer, post, scoring_address
from mii_azure.errors import AzureUnavailable, SpecError
from mii_azure.platform.target_names import URL
from mii_azure.verdict.openai_form import OpenAIForm, Untranslatable

_TIMEOUT_S = 200.0
_LIST_S = 30.0  # for the list of models
_NOT_OF_THE_FORM = 502
_REQUEST = "request"  # the tensor that carries a whole body, of this project's servers


class RemoteTarget(Target):
    """`url:URL`: a server that runs already.

    A URL that ends with `/v1` is asked as OpenAI's is, one with `/v2/models/NAME` over the Open Inference Protocol with
    the body in one tensor, and any other is posted the body as it is. Raises SpecError for an odd URL.
    """

    name: ClassVar[str] = "url"

    def __init__(self, bundle: Path, address: str, task: str, key: str = "") -> None:
        super().__init__(bundle)
        self.url, self._key = address.removeprefix(URL).rstrip("/"), key
        path = scoring_address(self.url).path.rstrip("/")
        self.tells = path.endswith("/score")  # metadata of itself, if it is ours
        self.own_form = "/v2/models/" not in path
        self._ask: Callable[[str], TargetReply] = self._raw if self.own_form else self._as_oip
        self._openai = OpenAIForm(task) if path.endswith("/v1") else None
        if self._openai:
            self.own_form, self._ask = False, self._as_openai

    def send(self, raw: str) -> TargetReply:
        return self._ask(raw)

    def takes(self, raw: str) -> bool:
        if self._openai is None:
            return True
        try:
            self._openai.request(raw)
        except Untranslatable:
            return False
        return True

    def metadata(self) -> dict[str, Any]:
        """Metadata of a server of ours; of any other, none."""
        try:
            facts = super().metadata() if self.tells else {}
        except Exception:  # whatever another server says to a body that it does not know
            return {}
        return facts if isinstance(facts, dict) and "versions" in facts else {}

    def _start(self) -> None:
        import requests

        self._session = self._open.enter_context(requests.Session())
        if self._openai:
            self._model = self._first_model()

    def _first_model(self) -> str:
        auth = Bearer(scoring_address(self.url), self._key) if self._key else None
        response = self._called(
            lambda: self._session.get(f"{self.url}/models", auth=auth, allow_redirects=False, timeout=_LIST_S)
        )
        try:
            return str(response.json()["data"][0]["id"])
        except (ValueError, LookupError, TypeError):
            raise SpecError(
                f"{self.url}/models names no model; it was answered {response.status_code}.",
                "Give the URL of OpenAI's interface, which ends with /v1, and its key.",
            ) from None

    def _raw(self, raw: str) -> TargetReply:
        return self._posted(self.url, raw.encode())

    def _as_oip(self, raw: str) -> TargetReply:
        tensor = {"name": _REQUEST, "datatype": "BYTES", "shape": [1], "data": [raw]}
        url = self.url if self.url.endswith("/infer") else f"{self.url}/infer"
        reply = self._posted(url, json.dumps({"inputs": [tensor]}).encode())
        return _read(reply, lambda told: told["outputs"][0]["data"][0].encode())

    def _as_openai(self, raw: str) -> TargetReply:
        assert self._openai is not None
        form = self._openai
        path, body = form.request(raw)
        reply = self._posted(f"{self.url}/{path}", json.dumps({"model": self._model, **body}).encode())
        return _read(reply, lambda told: form.answer(raw, told))

    def _posted(self, url: str, body: bytes) -> TargetReply:
        began = time.perf_counter()
        response = self._called(lambda: post(self._session, url, body, self._key, {}, timeout=_TIMEOUT_S))
        return TargetReply(model_status(response), response.content, time.perf_counter() - began)

    def _called(self, call: Callable[[], Any]) -> Any:
        import requests

        try:
            return call()
        except requests.RequestException as error:
            raise AzureUnavailable(f"{self.url} was not reached: {error}.", "Check the URL and the network.") from error


def _read(reply: TargetReply, answer: Callable[[Any], bytes]) -> TargetReply:
    """Read an answer out of a reply; one that is not of the protocol's form becomes a 502 with its body."""
    if reply.status != 200:
        return reply
    try:
        return TargetReply(200, answer(json.loads(reply.body)), reply.seconds)
    except (ValueError, LookupError, TypeError, AttributeError):
        return TargetReply(_NOT_OF_THE_FORM, reply.body, reply.seconds)
