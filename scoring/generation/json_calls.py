"""Calls of tools as JSON objects that hold the name and the arguments."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scoring.generation.call_style import Typed, arguments_schema
from scoring.schema.tools import Tool


@dataclass(frozen=True)
class JsonStyle:
    """Keys of a call's name, of its arguments, and of the number that some models give it before both."""

    key: str = "arguments"
    name: str = "name"
    number: str = ""

    opening = follow = "{"
    closing = ""
    whole = False

    def marks(self) -> set[str]:
        """No marks: a call is JSON alone."""
        return set()

    def new_call(self, typed: Typed) -> "PartialCall":
        """A call before its first character."""
        return PartialCall(self)

    def rules(self, at: int, tool: Tool, options: Mapping[str, Any]) -> list[str]:
        """Lark's rules of a call of this tool as `call<at>`."""
        name = f'{_key(self.name)} {_quoted(json.dumps(tool.function.name))} BLANKS "," BLANKS'
        number = f'{_key(self.number)} /"[0-9]{{1,3}}"/ BLANKS "," BLANKS ' if self.number else ""
        guided = {**arguments_schema(tool), "x-guidance": dict(options)}
        return [
            f'call{at}: "{{" BLANKS {number}{name} {_key(self.key)} given{at} BLANKS "}}"',
            f"given{at}: %json {json.dumps(guided)}",
        ]


class PartialCall:
    """One call while its JSON comes: its name, and its arguments as they are written."""

    id = ""

    def __init__(self, style: JsonStyle) -> None:
        self.name = ""
        self.arguments = ""
        self.raw = ""
        self.ended = False
        self.wrong = False  # no call after all
        self._name_key = style.name
        self._keys = (style.key, "arguments", "parameters")
        self._others = (style.name, "id", "type", style.number)
        self._depth = 0
        self._string: str | None = None  # what a string holds so far, as written
        self._escaped = False
        self._key = ""
        self._valued = False  # past the colon of a pair of the outermost object
        self._taking = False  # the arguments' value

    def take(self, character: str) -> None:
        """Take the next character of the call's JSON."""
        self.raw += character
        if self._taking:
            self.arguments += character
        if self._string is not None:
            self._in_string(character)
        elif character == '"':
            self._string = ""
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._close(character)
        elif character == ":" and self._depth == 1:
            self._valued = True
            self._taking = self._key in self._keys
        elif character == "," and self._depth == 1:
            self._end_value(character)

    def _in_string(self, character: str) -> None:
        assert self._string is not None
        if self._escaped or character != '"':
            self._escaped = character == "\\" and not self._escaped
            self._string += character
            return
        text, self._string = self._string, None
        if self._depth == 1 and not self._valued:
            self._key = text
            self.wrong = text not in (*self._keys, *self._others)
        elif self._depth == 1 and self._key == self._name_key:
            self.name = _unescaped(text)

    def _close(self, character: str) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._end_value(character)
            self.ended = True

    def _end_value(self, character: str) -> None:
        if self._taking:
            self.arguments = self.arguments.removesuffix(character).strip()
            if self.arguments.startswith('"'):  # JSON as text
                self.arguments = _unescaped(self.arguments[1:-1])
        self._taking = self._valued = False

    @property
    def told(self) -> str:
        """The part of the arguments that further characters cannot change."""
        if self.ended:
            return self.arguments or "{}"
        begun = self.arguments.strip()
        return "" if begun.startswith('"') else begun


def _unescaped(text: str) -> str:
    try:
        return str(json.loads(f'"{text}"', strict=False))
    except ValueError:
        return text


def _key(name: str) -> str:
    """Terms of a key and its colon."""
    return f'{_quoted(json.dumps(name))} ":" BLANKS'


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
