"""Answers of /v1/responses: the response with its output items, whole or as events in OpenAI's order.

Source of the forms and of the order: the types of the official client.
"""

import json
import time
import uuid
from collections.abc import Iterator
from typing import Any

from local_runner.protocol import openai_logprobs
from scoring.errors import MiiAzureError
from scoring.host_api import Event

Item = dict[str, Any]


def begun(sent: dict[str, Any], model: str) -> dict[str, Any]:
    """A response of which nothing is there yet."""
    wanted = (sent.get("text") or {}).get("format") or {"type": "text"}
    return {
        "id": f"resp_{uuid.uuid4().hex}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": sent.get("instructions"),
        "max_output_tokens": sent.get("max_output_tokens"),
        "metadata": sent.get("metadata") or {},
        "model": model,
        "output": [],
        "parallel_tool_calls": sent.get("parallel_tool_calls") is not False,
        "previous_response_id": None,
        "reasoning": {"effort": (sent.get("reasoning") or {}).get("effort"), "summary": None},
        "store": False,
        "temperature": sent.get("temperature"),
        "text": {"format": wanted},
        "tool_choice": sent.get("tool_choice") or "auto",
        "tools": sent.get("tools") or [],
        "top_logprobs": sent.get("top_logprobs") or 0,
        "top_p": sent.get("top_p"),
        "truncation": "disabled",
        "usage": None,
    }


def ended(response: dict[str, Any], output: list[Item], used: dict[str, Any]) -> dict[str, Any]:
    """The response with its output, its end and its usage."""
    cut = used["finish_reasons"] == ["length"]
    given, made = used["prompt_tokens"], used["completion_tokens"]
    usage = {
        "input_tokens": given,
        "input_tokens_details": {"cached_tokens": used.get("cached_tokens", 0), "cache_write_tokens": 0},
        "output_tokens": made,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": given + made,
    }
    status, why = ("incomplete", {"reason": "max_output_tokens"}) if cut else ("completed", None)
    if cut and output:
        output = [*output[:-1], {**output[-1], "status": status}]
    return {**response, "status": status, "incomplete_details": why, "output": output, "usage": usage}


def output_of(entry: dict[str, Any], with_logprobs: bool) -> list[Item]:
    """Output items of a whole answer: its thought, its text, its calls."""
    found = []
    if thought := entry.get("reasoning_content"):
        found.append(_done(_item("reasoning"), thought, []))
    calls = entry.get("tool_calls", ())
    if entry["generated_text"] or not calls:
        logprobs = _of_message(entry) if with_logprobs else []
        found.append(_done(_item("message"), entry["generated_text"], logprobs))
    for call in calls:
        item = _item("function_call", call_id=call["id"], name=call["function"]["name"])
        found.append(_done(item, call["function"]["arguments"], []))
    return found


class ResponseEvents:
    """Events of one stream; each has its number."""

    def __init__(self, response: dict[str, Any], with_logprobs: bool) -> None:
        self._response = response
        self._scored = with_logprobs
        self._number = 0
        self._output: list[Item] = []  # that are done
        self._item: Item | None = None  # that comes
        self._call = -1  # its index, of a call
        self._text: list[str] = []
        self._logprobs: list[dict[str, Any]] = []
        self._untold: list[dict[str, Any]] = []  # those of tokens whose text no message holds yet, or ever

    def begin(self) -> bytes:
        """Events before the first text."""
        told = [self._event(f"response.{kind}", response=self._response) for kind in ("created", "in_progress")]
        return b"".join(told)

    def told(self, event: Event) -> bytes:
        """Events of one piece of the answer, or of its end."""
        return b"".join(self._token(event) if "token" in event else self._end(event))

    def failed(self, error: MiiAzureError) -> bytes:
        """Event of an error that ends the stream."""
        told = {"code": "server_error", "message": f"{error.message} {error.hint}".strip()}
        response = {**self._response, "status": "failed", "error": told, "output": self._output}
        return self._event("response.failed", response=response)

    def _token(self, event: Event) -> Iterator[bytes]:
        token = event["token"]
        if self._scored and "details" in event:
            self._untold += _logprobs(event["details"])
        if thought := token.get("reasoning_content"):
            yield from self._piece("reasoning", thought)
        if token["text"]:
            yield from self._say(token["text"])
        for call in token.get("tool_calls", ()):
            function = call["function"]
            if call["index"] != self._call:
                yield from self._close()
                self._call = call["index"]
                yield from self._open(_item("function_call", call_id=call["id"], name=function["name"]))
            yield from self._piece("function_call", function["arguments"])

    def _say(self, text: str) -> Iterator[bytes]:
        """Add to the message that comes; a new one leaves out the tokens of the thought or call before it."""
        going_on = self._item is not None and self._item["type"] == "message"
        own, self._untold = self._untold if going_on else _spelling(self._untold, text), []
        yield from self._piece("message", text, own)

    def _piece(self, kind: str, text: str, logprobs: list[dict[str, Any]] | None = None) -> Iterator[bytes]:
        """Add to the item that comes, after opening one of this kind."""
        if self._item is None or self._item["type"] != kind:
            yield from self._close()
            yield from self._open(_item(kind))
        self._text.append(text)
        self._logprobs += logprobs or []
        if text and kind == "function_call":
            yield self._of_item("response.function_call_arguments.delta", delta=text)
        elif text and kind == "reasoning":
            yield self._of_item("response.reasoning_text.delta", content_index=0, delta=text)
        elif kind == "message":
            yield self._of_item("response.output_text.delta", content_index=0, delta=text, logprobs=logprobs or [])

    def _open(self, item: Item) -> Iterator[bytes]:
        self._item, self._text, self._logprobs = item, [], []
        yield self._event("response.output_item.added", output_index=len(self._output), item=item)
        if item["type"] != "function_call":
            part = _part(item["type"], "", [])
            yield self._of_item("response.content_part.added", content_index=0, part=part)

    def _close(self) -> Iterator[bytes]:
        """End the item that comes, if there is one."""
        if self._item is None:
            return
        item, text = self._item, "".join(self._text)
        if item["type"] == "function_call":
            yield self._of_item("response.function_call_arguments.done", name=item["name"], arguments=text)
        else:
            if item["type"] == "reasoning":
                yield self._of_item("response.reasoning_text.done", content_index=0, text=text)
            else:
                yield self._of_item("response.output_text.done", content_index=0, text=text, logprobs=self._logprobs)
            part = _part(item["type"], text, self._logprobs)
            yield self._of_item("response.content_part.done", content_index=0, part=part)
        done = _done(item, text, self._logprobs)
        yield self._event("response.output_item.done", output_index=len(self._output), item=done)
        self._output.append(done)
        self._item, self._call = None, -1

    def _end(self, event: Event) -> Iterator[bytes]:
        if self._item is None and not self._output:
            yield from self._open(_item("message"))
        if self._untold and self._item is not None and self._item["type"] == "message":
            yield from self._say("")
        yield from self._close()
        response = ended(self._response, self._output, event["usage"])
        yield self._event(f"response.{response['status']}", response=response)

    def _of_item(self, kind: str, **fields: Any) -> bytes:
        assert self._item is not None
        return self._event(kind, item_id=self._item["id"], output_index=len(self._output), **fields)

    def _event(self, kind: str, **fields: Any) -> bytes:
        told = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        data = json.dumps(told, ensure_ascii=False, separators=(",", ":"))
        return f"event: {kind}\ndata: {data}\n\n".encode()


_PREFIXES = {"message": "msg", "reasoning": "rs", "function_call": "fc"}


def _item(kind: str, **fields: Any) -> Item:
    """An output item of which nothing is there yet."""
    head = {"id": f"{_PREFIXES[kind]}_{uuid.uuid4().hex}", "type": kind, "status": "in_progress", **fields}
    if kind == "message":
        return {**head, "role": "assistant", "content": []}
    return {**head, "summary": []} if kind == "reasoning" else {**head, "arguments": ""}


def _done(item: Item, text: str, logprobs: list[dict[str, Any]]) -> Item:
    whole = (
        {"arguments": text} if item["type"] == "function_call" else {"content": [_part(item["type"], text, logprobs)]}
    )
    return {**item, **whole, "status": "completed"}


def _part(kind: str, text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
    if kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def _logprobs(details: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = openai_logprobs.chat(details)["content"]
    return found


def _of_message(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """Log-probabilities of a whole answer's text, without those of its thought and of its calls."""
    scored, text = _logprobs(entry["details"]), entry["generated_text"]
    if not entry.get("tool_calls"):
        return _spelling(scored, text)
    raw, thought = "".join(token["token"] for token in scored), entry.get("reasoning_content") or ""
    begin = raw.find(thought) + len(thought)
    return _spelling(scored, text, begin, raw.find(entry["tool_calls"][0]["function"]["name"], begin))


def _spelling(scored: list[dict[str, Any]], text: str, begin: int = 0, end: int | None = None) -> list[dict[str, Any]]:
    """Tokens of an answer that spell a text of it, the last such between two characters; none if none do."""
    raw = "".join(token["token"] for token in scored)
    if raw == text:
        return scored
    first = raw.rfind(text, begin, end)
    found, start = [], 0
    for token in scored:
        after = start + len(token["token"])
        if 0 <= first < max(after, start + 1) and start < first + len(text):
            found.append(token)
        start = after
    return found
