"""Splits a model's answer, as it comes, into its thought, its text and its calls of tools.

Whatever is no call of a tool that was offered stays text. Pieces of any sizes give the same parts.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from scoring.generation.call_forms import THINK, Marks, ToolFormat
from scoring.generation.call_style import RunningCall, Typed
from scoring.generation.channels import ChannelParser
from scoring.generation.mark_texts import MarksDropped, held

Part = dict[str, Any]  # "text", "reasoning_content" or "tool_calls", as in a stream's events


@dataclass(frozen=True)
class ReplyForm:
    """Form of an answer: the kinds of content that it may hold beside text."""

    thinks: bool = False
    opened: bool = False  # the prompt ends within a thought
    tools: tuple[str, ...] = ()  # names that may be called
    format: ToolFormat | None = None
    typed: Typed = frozenset()  # of arguments that stand between tags
    marks: Marks = THINK  # of a thought
    dropped: tuple[str, ...] = ()  # marks that are no text where they belong to no thought and no call
    channels: bool = False  # it comes in messages, each of a channel

    @property
    def plain(self) -> bool:
        """True if an answer is text and nothing else."""
        return not (self.thinks or self.tools or self.channels or self.dropped)


class ReplyParser:
    """Takes an answer's text in pieces; returns its parts."""

    def __init__(self, form: ReplyForm, seed: Iterable[int], answer: int) -> None:
        self._form = form
        self._seed, self._answer = seed, answer
        self._text = ""  # not yet told
        self._stage = "thought" if form.opened else "start"
        self._call: RunningCall | None = None
        self._lead = ""  # text between a mark and its call
        self._sent = 0  # characters of the running call's arguments told
        self._calls = 0

    def push(self, text: str) -> list[Part]:
        """Take the next piece."""
        self._text += text
        return _joined(self._parts(False))

    def finish(self) -> list[Part]:
        """The parts that were held back until the end."""
        return _joined(self._parts(True))

    def _parts(self, last: bool) -> list[Part]:
        found: list[Part] = []
        while True:
            before = (self._stage, len(self._text))
            found += getattr(self, f"_{self._stage}")(last)
            if (self._stage, len(self._text)) == before:
                return found

    def _start(self, last: bool) -> list[Part]:
        """Parse an answer before its first character that is not a blank."""
        begun = self._text.lstrip()
        mark = self._form.marks[0]
        if self._form.thinks and begun.startswith(mark):
            self._text, self._stage = begun.removeprefix(mark), "thought"
        elif last or not (self._form.thinks and mark.startswith(begun)):
            self._stage = "first"
        return []

    def _thought(self, last: bool) -> list[Part]:
        inside, mark, rest = self._text.partition(self._form.marks[1])
        if mark:
            self._text, self._stage = rest, "thought_over"
            return [{"reasoning_content": inside}]
        return self._tell("reasoning_content", 0 if last else held(inside, self._form.marks[1]))

    def _thought_over(self, last: bool) -> list[Part]:
        self._text = self._text.lstrip()
        self._stage = "first" if self._text or last else self._stage
        return []

    def _call_over(self, last: bool) -> list[Part]:
        self._text = self._text.lstrip()
        self._stage = "said" if self._text or last else self._stage
        return []

    def _first(self, last: bool) -> list[Part]:
        """Parse the beginning of an answer after its reasoning: a call may stand here without a mark."""
        begun = self._text.lstrip()
        form = self._form.format
        if not self._form.tools or form is None:
            self._stage = "said"
            return []
        mark, at = form.begin, form.start(self._text) if form.style.opening else -1
        if mark and begun.startswith(mark):
            self._stage = "said"
        elif at is not None and at >= 0:
            self._begin(self._text, at)
        elif last or (at == -1 and begun and not mark.startswith(begun)):
            self._stage = "said"
        return []

    def _said(self, last: bool) -> list[Part]:
        form = self._form.format
        mark = form.begin if self._form.tools and form else ""
        if form is None or not mark:
            return self._tell("text", 0)
        before, found, rest = self._text.partition(mark)
        if not found:
            return self._tell("text", 0 if last else held(before, mark))
        at = form.start(rest)
        if at is not None and at >= 0:
            self._begin(mark + rest, len(mark) + at)
        elif at == -1 or last:  # the mark, and no call
            before, self._text = before + mark, rest
        else:
            self._text = mark + rest
        return [{"text": before}] if before else []

    def _begin(self, text: str, at: int) -> None:
        """Begin a call at this character; what stands before it is text again if that is no call."""
        form = self._form.format
        assert form is not None
        self._call = form.style.new_call(self._form.typed)
        self._lead, self._text, self._sent, self._stage = text[:at], text[at:], 0, "calling"

    def _calling(self, last: bool) -> list[Part]:
        call = self._call
        assert call is not None
        taken = 0
        for character in self._text:
            if call.ended or call.wrong or (call.name and call.name not in self._form.tools):
                break
            call.take(character)
            taken += 1
        self._text = self._text[taken:]
        known = call.name in self._form.tools
        if call.wrong or ((call.ended or last) and not known) or (call.name and not known):
            self._stage = "said"
            return [{"text": self._lead + call.raw}]
        parts = [self._told(call)] if known else []
        if call.ended:
            self._calls += 1
            self._stage = "call_over" if self._form.format and self._form.format.alone else "between"
        return [part for part in parts if part]

    def _told(self, call: RunningCall) -> Part:
        """New parts of a call: at first its id and name, then more of its arguments."""
        arguments = call.told
        part: dict[str, Any] = {"index": self._calls}
        if not self._sent:
            own = {
                "id": call.id or self.id_of(self._calls),
                "type": "function",
                "function": {"name": call.name, "arguments": ""},
            }
            part |= own
        new = arguments[max(0, self._sent - 1) :]
        if self._sent and not new:
            return {}
        self._sent = 1 + len(arguments)
        part["function"] = {**part.get("function", {}), "arguments": new}
        return {"tool_calls": [part]}

    def _between(self, last: bool) -> list[Part]:
        """Parse the text after a call: what ends it, and what leads to the next."""
        form = self._form.format
        assert form is not None
        rest = self._text.lstrip(" \n;,]")
        closing = form.style.closing.strip()
        if closing and rest.startswith(closing):
            self._text = rest.removeprefix(closing)
        elif form.end and rest.startswith(form.end):
            self._text, self._stage = rest.removeprefix(form.end), "call_over"
        elif form.follows(rest):
            self._begin(rest, 0)
        elif last or (rest and not any(mark.startswith(rest) for mark in (closing, form.end, form.style.follow))):
            self._text, self._stage = rest, "said"
        return []

    def _tell(self, kind: str, held: int) -> list[Part]:
        cut = len(self._text) - held
        told, self._text = self._text[:cut], self._text[cut:]
        return [{kind: told}] if told else []

    def id_of(self, call: int) -> str:
        """Id of a call that has none of its own, by its number, the same everywhere.

        It has nine letters and digits, as Mistral's templates want it.
        """
        told = f"{self._answer} {call} {list(self._seed)}"
        return hashlib.sha256(told.encode()).hexdigest()[:9]


class SpokenParser:
    """Takes an answer's text in pieces for another parser; returns that one's parts without marks left in them."""

    def __init__(self, parser: ReplyParser | ChannelParser, marks: Sequence[str]) -> None:
        self._parser = parser
        self._without = MarksDropped(marks)
        self._kind = "text"  # of what was told last

    def push(self, text: str) -> list[Part]:
        """Take the next piece."""
        return _joined(self._spoken(self._parser.push(text)))

    def finish(self) -> list[Part]:
        """The parts that were held back until the end."""
        found = [*self._spoken(self._parser.finish())]
        return _joined([*found, {self._kind: self._without.finish()}])

    def _spoken(self, parts: Iterable[Part]) -> Iterator[Part]:
        """Parts without marks; a mark lies within one kind of part."""
        for part in parts:
            [(kind, value)] = part.items()
            if kind != self._kind:
                yield {self._kind: self._without.finish()}
            if kind == "tool_calls":
                yield part
            else:
                yield {kind: self._without.push(value)}
                self._kind = kind


Parser = ReplyParser | ChannelParser | SpokenParser


def parser_of(form: ReplyForm, seed: Iterable[int], answer: int) -> Parser:
    """Parser of an answer of this form."""
    plain = ReplyParser(form, seed, answer)
    parser = ChannelParser(form.tools, plain) if form.channels else plain
    return SpokenParser(parser, form.dropped) if form.dropped else parser


def whole(form: ReplyForm, seed: Sequence[int], answer: int, text: str) -> Part:
    """A complete answer: `text`, and `reasoning_content` and `tool_calls` where it has them."""
    parser = parser_of(form, seed, answer)
    found: Part = {"text": ""}
    calls: list[dict[str, Any]] = []
    for part in [*parser.push(text), *parser.finish()]:
        for name in ("text", "reasoning_content"):
            if name in part:
                found[name] = found.get(name, "") + part[name]
        for delta in part.get("tool_calls", ()):
            if "id" in delta:
                calls.append({"id": delta["id"], "type": "function", "function": dict(delta["function"])})
            else:
                calls[delta["index"]]["function"]["arguments"] += delta["function"]["arguments"]
    return {**found, "tool_calls": calls} if calls else found


def _joined(parts: Iterable[Part]) -> list[Part]:
    """Parts with neighbours of one kind of text put together."""
    found: list[Part] = []
    for part in parts:
        [(kind, value)] = part.items()
        if kind != "tool_calls" and found and kind in found[-1]:
            found[-1] = {kind: found[-1][kind] + value}
        elif value:
            found.append(part)
    return found
