"""Requests for a model's own tokens: of a text or a conversation, and back; answered for every task."""

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from scoring.errors import InvalidInput
from scoring.schema.faults import first_fault
from scoring.schema.requests import MOST, MOST_TOKENS, Conversation, Strict

#: Key of requests that are of no task, and its value for each.
KEY, TOKENIZE, DETOKENIZE = "mii_azure", "tokenize", "detokenize"


class TextTokens(Strict):
    mii_azure: Literal["tokenize"]
    prompt: str
    add_special_tokens: bool = True
    return_token_strs: bool = False


class ConversationTokens(Strict):
    mii_azure: Literal["tokenize"]
    messages: Conversation
    return_token_strs: bool = False
    parameters: dict[str, Any] = Field(default_factory=dict)


class TokenText(Strict):
    mii_azure: Literal["detokenize"]
    tokens: Annotated[list[Annotated[int, Field(ge=0, le=MOST)]], Field(max_length=MOST_TOKENS)]


TokenRequest = TextTokens | ConversationTokens | TokenText


def read(payload: dict[str, Any]) -> TokenRequest | None:
    """The request that a payload is, or None for one of a task; raises InvalidInput for one that cannot be read."""
    kind = payload.get(KEY)
    if kind not in (TOKENIZE, DETOKENIZE):
        return None
    form: Any = TokenText if kind == DETOKENIZE else ConversationTokens if "messages" in payload else TextTokens
    try:
        found: TokenRequest = TypeAdapter(form).validate_python(payload)
    except ValidationError as error:
        place, reason = first_fault(error)
        raise InvalidInput(
            f"{reason}.", 'Send "prompt" or "messages" to tokenize, "tokens" to detokenize.', place
        ) from None
    return found
