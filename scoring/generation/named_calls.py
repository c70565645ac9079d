"""Calls of tools whose name stands before their arguments, which are one JSON object."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scoring.generation.call_style import MOST_NAME, NAME, Begun, Typed, arguments_schema
from scoring.schema.tools import Tool

_FUNCTIONS = "functions."  # before the name within an id
_ID = r"[a-zA-Z0-9]{1,40}"
_MOST_HEAD = 128  # characters of a name with an id, beside the marks


@dataclass(frozen=True)
class NamedStyle(Begun):
    """Marks of a style: before the name, between name and arguments, and behind those."""

    named: str
    closing: str = ""
    identified: str = ""  # before an id that stands behind the name
    counted: bool = False  # the name stands within an id, functions.NAME:NUMBER

    whole = False

    def marks(self) -> set[str]:
        """Marks that may be special, without the text between them."""
        texts = (self.begin, self.named, self.closing, self.identified)
        return {mark for text in texts for mark in re.findall(r"<[^<>\s]+>|\[[A-Z_]+\]", text)}

    def new_call(self, typed: Typed) -> "NamedCall":
        """A call before its first character."""
        return NamedCall(self)

    def head(self, text: str) -> tuple[str, str] | None:
        """Name and the model's own id of a call, of the text before its arguments; None if it is no head."""
        told = text.removeprefix(self.begin).rstrip().removesuffix(self.named.strip()).strip()
        name, _, own = told.partition(self.identified) if self.identified else (told, "", "")
        if self.counted:
            before, colon, number = told.removeprefix(_FUNCTIONS).rpartition(":")
            name, own = (before, told) if colon and number.isdecimal() else (told, "")
        valid = re.fullmatch(NAME, name) and (self.counted or re.fullmatch(_ID, own) or not own)
        return (name, own) if valid else None

    def rules(self, at: int, tool: Tool, options: Mapping[str, Any]) -> list[str]:
        """Lark's rules of a call of this tool as `call<at>`."""
        name = tool.function.name
        parts = [_quoted(self.begin + (f"{_FUNCTIONS}{name}:" if self.counted else name))]
        if self.counted:
            parts.append("/[0-9]{1,2}/")
        if self.identified:
            parts += [_quoted(self.identified), "/[a-zA-Z0-9]{9}/"]
        guided = {**arguments_schema(tool), "x-guidance": dict(options)}
        parts += [_quoted(self.named), f"given{at}", *([_quoted(self.closing)] if self.closing else ())]
        return [f"call{at}: {' '.join(parts)}", f"given{at}: %json {json.dumps(guided)}"]


class NamedCall:
    """One call while it comes: its name, and its arguments as they are written."""

    def __init__(self, style: NamedStyle) -> None:
        self.name = self.id = self.raw = ""
        self.ended = False
        self.wrong = False  # no call after all
        self.told = ""  # of the arguments
        self._style = style
        self._depth = 0
        self._quoted = self._escaped = False

    def take(self, character: str) -> None:
        """Take the next character."""
        self.raw += character
        if not self.told and (character != "{" or self._within_begin()):
            self.wrong = len(self.raw) > MOST_NAME + _MOST_HEAD + len(self._style.begin + self._style.named)
            return
        if not self.told:
            head = self._style.head(self.raw[:-1])
            self.wrong = head is None
            self.name, self.id = head or ("", "")
        self.told += character
        self._scan(character)

    def _within_begin(self) -> bool:
        return len(self.raw) <= len(self._style.begin)

    def _scan(self, character: str) -> None:
        """Find the end of the arguments' object."""
        if self._quoted:
            self._quoted = self._escaped or character != '"'
            self._escaped = character == "\\" and not self._escaped
        elif character == '"':
            self._quoted = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
            self.ended = self._depth == 0


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
