"""Conversation with a served model: what was said so far, and the next answer as it comes."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mii_azure.errors import NotAvailable
from mii_azure.sdk.query import task_of, texts
from mii_azure.sdk.typed_request import INPUTS, payload_of

if TYPE_CHECKING:
    from local_runner.client.client import Client
    from mii_azure.sdk.endpoint_client import EndpointClient

TASK = "conversational"


class Conversation:
    """Messages of a conversation, and the parameters that each answer is asked with.

    `pairs` are key=value texts of parameters, and `system=...`. Raises NotAvailable where what answers does not
    converse, SpecError for a key that it has not.
    """

    def __init__(self, client: "Client | EndpointClient", pairs: Sequence[str], timeout: float) -> None:
        task = task_of(client, timeout)
        if task != TASK:
            raise NotAvailable(f"A chat is with a {TASK} model, and this one does {task}.", "Use `mii-azure query`.")
        first = payload_of([*pairs, f"{INPUTS}=?"], TASK)
        self._client, self._timeout = client, timeout
        self._parameters: dict[str, Any] = first.get("parameters", {})
        self._begun: list[dict[str, Any]] = first[INPUTS][:-1]
        self.messages = list(self._begun)

    def restart(self) -> None:
        """Forget what was said."""
        self.messages = list(self._begun)

    def answer(self, text: str) -> Iterator[str]:
        """Yield the answer's text as it comes; a message whose answer fails is forgotten."""
        asked = [*self.messages, {"role": "user", "content": text}]
        payload = {INPUTS: asked, "parameters": self._parameters}
        said = []
        for piece in texts(self._client.stream(payload, timeout=self._timeout)):
            said.append(piece)
            yield piece
        self.messages = [*asked, {"role": "assistant", "content": "".join(said)}]
