"""Server-sent events of OpenAI's two generating interfaces, made from the scoring package's events."""

import json
from collections.abc import Iterator
from typing import Any

import pydantic_core

from local_runner.protocol import openai_logprobs
from scoring.host_api import Event

DONE = b"data: [DONE]\n\n"


class StreamFormat:
    """Events of one stream; what is the same in all of them is encoded once.

    `begins` is the text that each of its answers begins with: the prompt, if it is to be repeated.
    """

    def __init__(self, head: dict[str, Any], chat: bool, begins: list[str], with_usage: bool) -> None:
        self._chat = chat
        self._begins = begins
        self._with_usage = with_usage
        self._offsets = [0] * len(begins)  # characters of each answer's tokens reported so far
        self._head = {**head, "object": "chat.completion.chunk"} if chat else head
        self._used: list[dict[str, int]] = []  # usage of each answer so far, where each event tells it
        self._extra: dict[str, Any] = {"usage": None} if with_usage else {}
        probe = sse({**self._head, "choices": ["@"], **self._extra})
        self._before, self._after = probe.split(b'"@"', 1)
        said = b'"delta":{"content":%b}' if chat else b'"text":%b'
        self._choice = b'{"index":%d,' + said + b',"logprobs":null,"finish_reason":null}'

    def begin(self) -> bytes:
        """Events before the first text: of a chat, each answer's role; else the prompt if it is repeated."""
        said = {"delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        if self._chat:
            return b"".join(self._event([{"index": index, **said}]) for index in range(len(self._begins)))
        texts = [{"token": {"text": text, "index": index}} for index, text in enumerate(self._begins) if text]
        return b"".join(map(self.text, texts))

    def text(self, event: Event) -> bytes:
        """One event's part of an answer."""
        token, details = event["token"], event.get("details")
        index = token.get("index", 0)
        if "usage" in event:
            self._count(index, event["usage"])
        more = {name: token[name] for name in ("reasoning_content", "tool_calls") if name in token}
        if details is None and not more and not self._used:  # nearly every event
            choice = self._choice % (index, pydantic_core.to_json(token["text"]))
            return self._before + choice + self._after
        delta = {**({"content": token["text"]} if token["text"] or not more else {}), **more}
        said = {"delta": delta} if self._chat else {"text": token["text"]}
        if details is None:
            return self._event([{"index": index, **said, "logprobs": None, "finish_reason": None}], index)
        offset = self._offsets[index]
        logprobs = openai_logprobs.chat(details) if self._chat else openai_logprobs.completion(details, offset)
        self._offsets[index] += openai_logprobs.length(details)
        return self._event([{"index": index, **said, "logprobs": logprobs, "finish_reason": None}], index)

    def end(self, reasons: list[str], usage: dict[str, Any], told: list[dict[str, Any]], more: dict[str, Any]) -> bytes:
        """Events after the last text: each answer's finish reason with what is `told` of it, and the usage asked for.

        The first of them has `more` beside its choices.
        """
        return b"".join(self._end(reasons, usage, told, more)) + DONE

    def _end(
        self, reasons: list[str], usage: dict[str, Any], told: list[dict[str, Any]], more: dict[str, Any]
    ) -> Iterator[bytes]:
        said: dict[str, Any] = {"delta": {}} if self._chat else {"text": ""}
        for index, (reason, own) in enumerate(zip(reasons, told, strict=True)):
            choice = {"index": index, **said, "logprobs": None, "finish_reason": reason, **own}
            yield self._event([choice], index, more if index == 0 else {})
        if self._with_usage:
            yield sse({**self._head, "choices": [], "usage": usage})

    def _count(self, index: int, used: dict[str, int]) -> None:
        """Note an answer's tokens so far."""
        prompt, made = used["prompt_tokens"], used["completion_tokens"]
        none = {"prompt_tokens": prompt, "completion_tokens": 0, "total_tokens": prompt}
        self._used = self._used or [none] * len(self._begins)
        self._used[index] = none | {"completion_tokens": made, "total_tokens": prompt + made}

    def _event(self, choices: list[dict[str, Any]], index: int = 0, more: dict[str, Any] | None = None) -> bytes:
        used = {"usage": self._used[index]} if self._used else {}
        return sse({**self._head, "choices": choices, **self._extra, **used, **(more or {})})


def sse(value: dict[str, Any]) -> bytes:
    """Encode a server-sent event."""
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
