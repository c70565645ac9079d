"""Answers of /v1/messages: the message with its blocks, whole or as events in Anthropic's order.

Source of the forms and of the order: the types of the official client.
"""

import json
import uuid
from collections.abc import Iterator
from typing import Any

from scoring.errors import MiiAzureError
from scoring.host_api import Event

Block = dict[str, Any]
_REASONS = {"length": "max_tokens", "tool_calls": "tool_use"}
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def error_body(error: MiiAzureError) -> dict[str, Any]:
    """Error in Anthropic's shape, with the field in its message, where its clients show it; ours stand beside it."""
    kind = _TYPES.get(error.http_status, "invalid_request_error" if error.http_status < 500 else "api_error")
    place = f"{error.where}: " if error.where else ""
    message = f"{place}{error.message} {error.hint}".strip()
    return {"type": "error", "error": {"type": kind, "message": message, "code": error.code}}


def begun(model: str) -> dict[str, Any]:
    """A message of which nothing is there yet."""
    head = {"id": f"msg_{uuid.uuid4().hex}", "type": "message", "role": "assistant", "model": model}
    return {**head, "content": [], "stop_reason": None, "stop_sequence": None, "usage": _usage({})}


def ended(message: dict[str, Any], entry: dict[str, Any], used: dict[str, Any]) -> dict[str, Any]:
    """The whole message, with why it ended."""
    return {**message, "content": _content(entry), **_end(used), "usage": _usage(used)}


def _content(entry: dict[str, Any]) -> list[Block]:
    found: list[Block] = []
    if thought := entry.get("reasoning_content"):
        found.append({**_block("thinking"), "thinking": thought})
    if entry["generated_text"]:
        found.append({**_block("text"), "text": entry["generated_text"]})
    calls = entry.get("tool_calls", ())
    found += [{**_of_call(call), "input": _arguments(call["function"]["arguments"])} for call in calls]
    return found or [_block("text")]


def _arguments(text: str) -> Any:
    """Arguments of a call; none of one that was cut."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {"arguments": found}


def _end(used: dict[str, Any]) -> dict[str, Any]:
    [reason], [stop] = used["finish_reasons"], used.get("stop_reasons", [None])
    text = stop if reason == "stop" and isinstance(stop, str) else None
    return {"stop_reason": "stop_sequence" if text else _REASONS.get(reason, "end_turn"), "stop_sequence": text}


def _usage(used: dict[str, Any]) -> dict[str, Any]:
    cached = used.get("cached_tokens", 0)
    given, made = used.get("prompt_tokens", 0) - cached, used.get("completion_tokens", 0)
    told = {"cache_creation_input_tokens": 0, "cache_read_input_tokens": cached}
    return {"input_tokens": given, **told, "output_tokens": made}


def _block(kind: str) -> Block:
    """A block of which nothing is there yet."""
    return {"type": kind, kind: "", **({"signature": ""} if kind == "thinking" else {})}


def _of_call(call: dict[str, Any]) -> Block:
    return {"type": "tool_use", "id": call["id"], "name": call["function"]["name"], "input": {}}


class MessageEvents:
    """Events of one stream."""

    def __init__(self, message: dict[str, Any]) -> None:
        self._message = message
        self._blocks = 0  # that are done
        self._open = ""  # type of the block that comes
        self._call = -1  # its index, of a call

    def begin(self) -> bytes:
        """Event before the first text."""
        return _event("message_start", message=self._message)

    def told(self, event: Event) -> bytes:
        """Events of one piece of the answer, or of its end."""
        return b"".join(self._token(event["token"]) if "token" in event else self._end(event["usage"]))

    def _token(self, token: dict[str, Any]) -> Iterator[bytes]:
        if thought := token.get("reasoning_content"):
            yield from self._piece("thinking", thought)
        if token["text"]:
            yield from self._piece("text", token["text"])
        for call in token.get("tool_calls", ()):
            if call["index"] != self._call:
                yield from self._close()
                yield self._begin(_of_call(call))
                self._call = call["index"]
            if arguments := call["function"]["arguments"]:
                yield self._delta("input_json_delta", "partial_json", arguments)

    def _piece(self, kind: str, text: str) -> Iterator[bytes]:
        """Add to the block that comes, after opening one of this kind."""
        if self._open != kind:
            yield from self._close()
            yield self._begin(_block(kind))
        yield self._delta(f"{kind}_delta", kind, text)

    def _begin(self, block: Block) -> bytes:
        self._open = block["type"]
        return _event("content_block_start", index=self._blocks, content_block=block)

    def _delta(self, kind: str, name: str, text: str) -> bytes:
        return _event("content_block_delta", index=self._blocks, delta={"type": kind, name: text})

    def _close(self) -> Iterator[bytes]:
        """End the block that comes, if there is one."""
        if self._open:
            yield _event("content_block_stop", index=self._blocks)
            self._blocks += 1
            self._open, self._call = "", -1

    def _end(self, used: dict[str, Any]) -> Iterator[bytes]:
        if not self._open and not self._blocks:
            yield self._begin(_block("text"))
        yield from self._close()
        yield _event("message_delta", delta=_end(used), usage=_usage(used))
        yield _event("message_stop")


def failed(error: MiiAzureError) -> bytes:
    """Event of an error that ends a stream."""
    return b"event: error\ndata: " + json.dumps(error_body(error), ensure_ascii=False).encode() + b"\n\n"


def _event(kind: str, **fields: Any) -> bytes:
    data = json.dumps({"type": kind, **fields}, ensure_ascii=False, separators=(",", ":"))
    return f"event: {kind}\ndata: {data}\n\n".encode()
