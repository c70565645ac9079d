"""Answers of models that speak in channels (gpt-oss): a thought, a text and calls, each behind a head of its own.

A message is `<|channel|>NAME<|message|>...`; the thought's channel is `analysis`, a call's head names its function.
"""

import re
from collections.abc import Sequence
from typing import Any, Protocol

from scoring.generation.mark_texts import held

Part = dict[str, Any]  # "text", "reasoning_content" or "tool_calls", as in a stream's events
START, CHANNEL, MESSAGE, END, CALL = "<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|call|>"
CONSTRAIN = "<|constrain|>"
#: Marks that have to be read in an answer, though tokenizers call them special and would leave them out.
MARKS = (START, CHANNEL, MESSAGE, END, CALL, CONSTRAIN)
_HEADS = (START, CHANNEL)
_ENDS = (END, CALL, START, CHANNEL)
_CHANNEL = re.compile(re.escape(CHANNEL) + r"\s*(\w+)")
_FUNCTION = re.compile(r"\bto=functions\.([a-zA-Z0-9_.-]+)")
_THOUGHT = "analysis"
#: What stands around a thought.
THOUGHT = (f"{CHANNEL}{_THOUGHT}{MESSAGE}", END)


def speaks_in_channels(template: str) -> bool:
    """Return True for a chat template whose answers come in channels."""
    return CHANNEL in template and MESSAGE in template


class _Plain(Protocol):
    """A parser of answers without channels, which also names calls."""

    def push(self, text: str) -> list[Part]: ...

    def finish(self) -> list[Part]: ...

    def id_of(self, call: int) -> str: ...


class ChannelParser:
    """Takes an answer's text in pieces; returns its parts. One that begins without a mark is left to another parser."""

    def __init__(self, tools: Sequence[str], plain: _Plain) -> None:
        self._tools = tools
        self._other = plain
        self._plain = False
        self._text = ""  # not yet told
        self._inside = False  # a message, else its head
        self._kind = ""  # of the message: a part's name, or a function's
        self._calls = 0

    def push(self, text: str) -> list[Part]:
        """Take the next piece."""
        self._text += text
        return self._other.push(text) if self._plain else self._parts(False)

    def finish(self) -> list[Part]:
        """The parts that were held back until the end."""
        return [*self._parts(True), *(self._other.finish() if self._plain else ())]

    def _parts(self, last: bool) -> list[Part]:
        found: list[Part] = []
        while not self._plain:
            before = (self._inside, len(self._text))
            found += self._message(last) if self._inside else self._head(last)
            if (self._inside, len(self._text)) == before:
                break
        return found

    def _head(self, last: bool) -> list[Part]:
        """Parse what stands before a message; text without any mark is the answer itself."""
        head, mark, rest = self._text.partition(MESSAGE)
        if mark:
            self._text, self._inside = rest, True
            return self._begin(head)
        begun = self._text.lstrip()
        if begun and not any(each.startswith(begun[: len(each)]) for each in (*_HEADS, "to=")):
            return self._leave()
        if last and begun.startswith(_HEADS):
            self._text = ""
        elif last and begun:
            return self._leave()
        return []

    def _leave(self) -> list[Part]:
        """Leave the rest to the other parser; behind a message it is text."""
        self._plain, text, self._text = True, self._text, ""
        return self._other.push(text)

    def _begin(self, head: str) -> list[Part]:
        """Begin a message after its head."""
        function, channel = _FUNCTION.search(head), _CHANNEL.search(head)
        if function and function[1] in self._tools:
            self._kind = "call"
            own = {"index": self._calls, "id": self._other.id_of(self._calls), "type": "function"}
            return [{"tool_calls": [{**own, "function": {"name": function[1], "arguments": ""}}]}]
        self._kind = "reasoning_content" if channel and channel[1] == _THOUGHT else "text"
        return []

    def _message(self, last: bool) -> list[Part]:
        at = min((found for end in _ENDS if (found := self._text.find(end)) >= 0), default=-1)
        if at < 0:
            kept = 0 if last else max(held(self._text, end) for end in _ENDS)
            cut = len(self._text) - kept
            told, self._text = self._text[:cut], self._text[cut:]
            return self._told(told)
        told, rest = self._text[:at], self._text[at:]
        parts, self._inside = self._told(told), False
        self._calls += self._kind == "call"
        self._text = next((rest.removeprefix(end) for end in (END, CALL) if rest.startswith(end)), rest)
        return parts

    def _told(self, text: str) -> list[Part]:
        if not text:
            return []
        if self._kind == "call":
            return [{"tool_calls": [{"index": self._calls, "function": {"arguments": text}}]}]
        return [{self._kind: text}]
