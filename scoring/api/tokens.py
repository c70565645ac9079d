"""Tokens of a text or a conversation, and the text of tokens, as the model's own tokenizer has them."""

from typing import Any

from scoring.errors import InvalidInput, PromptTooLong
from scoring.schema.requests import MOST_TOKENS
from scoring.schema.token_requests import ConversationTokens, TextTokens, TokenRequest
from scoring.tasks.base import Task


def answer(task: Task, request: TokenRequest) -> dict[str, Any]:
    """Answer a request for tokens; raises RequestError and its kinds."""
    if isinstance(request, TextTokens):
        return _told(task, _text(task, request), request.return_token_strs)
    if isinstance(request, ConversationTokens):
        return _told(task, _conversation(task, request), request.return_token_strs)
    known = len(task.tokenizer)
    for place, token in enumerate(request.tokens):
        if token >= known:
            raise InvalidInput(
                f"The tokenizer has no token {token}; its vocabulary ends at {known - 1}.",
                "Send the ids of the model's own tokenizer.",
                f"tokens[{place}]",
            )
    with task.call_tokenizer.turn():
        return {"prompt": task.tokenizer.decode(request.tokens)}


def _text(task: Task, request: TextTokens) -> list[int]:
    """Tokens of a text: as many as an input in token ids may have, or the model takes; raises PromptTooLong."""
    most = max(MOST_TOKENS, task.loaded.context_length)
    special: dict[str, Any] = {"add_special_tokens": request.add_special_tokens}
    refusal = PromptTooLong(f"The text has more than {most:,} tokens.", "Shorten it.", "prompt")
    try:
        ids = list(task.call_tokenizer(request.prompt, most=most, verbose=False, **special)["input_ids"])
    except PromptTooLong:
        raise refusal from None
    if len(ids) > most:  # the count before it is a lower bound
        raise refusal
    return ids


def _conversation(task: Task, request: ConversationTokens) -> list[int]:
    """Tokens of the prompt that the task makes of a conversation."""
    if task.schema.name != "conversational":
        raise InvalidInput(f"{task.schema.name} takes no messages.", 'Send the text as "prompt".', "messages")
    parameters = task.schema.parse_parameters(request.parameters)
    row, *_ = task.encode(request.messages, parameters, 0)
    return row.features["input_ids"]


def _told(task: Task, ids: list[int], strings: bool) -> dict[str, Any]:
    named = task.tokenizer.convert_ids_to_tokens(ids) if strings else None
    return {"count": len(ids), "max_model_len": task.loaded.context_length, "tokens": ids, "token_strs": named}
