"""Calls of tools as Python writes them: name(key=value, ...), with Python's literals or JSON's."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from scoring.generation.call_style import NAME, Typed, object_of
from scoring.generation.tagged_calls import alone, kinds_of, properties_of
from scoring.schema.tools import Tool

_BEGUN = re.compile(r"[ \n\[]*[a-zA-Z0-9_.-]{0,64}")
_PART = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[A-Za-z_]\w*|.""", re.DOTALL)
_LITERALS = {"True": "true", "False": "false", "None": "null"}
_BRACKETS = {"(": "[", ")": "]"}
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|.)", re.DOTALL)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "\n": ""}
_TYPES = {"boolean": '"True" | "False"', "null": '"None"'}  # whose values Python writes otherwise than JSON


@dataclass(frozen=True)
class Pythonic:
    """A style: calls in a list between brackets, or each on a line."""

    listed: bool = True

    closing = follow = ""
    whole = True

    @property
    def opening(self) -> str:
        """Text at which a call begins; empty where its name is at once behind the mark."""
        return "[" if self.listed else ""

    def marks(self) -> set[str]:
        """No marks within a call."""
        return set()

    def new_call(self, typed: Typed) -> "PythonicCall":
        """A call before its first character."""
        return PythonicCall()

    def rules(self, at: int, tool: Tool, options: Mapping[str, Any]) -> list[str]:
        """Lark's rules of a call of this tool as `call<at>`, with its arguments in the order of the schema."""
        root = tool.function.parameters or {}
        own, required = properties_of(root), root.get("required") or []
        head = _quoted(f"{tool.function.name}(")
        if not own and root.get("additionalProperties", bool(root)) is not False:
            pair = f'/[a-zA-Z_][a-zA-Z0-9_]*/ "=" free{at}'
            guided = {"x-guidance": dict(options)}
            return [f'call{at}: {head} ({pair} (", " {pair})*)? ")"', f"free{at}: %json {json.dumps(guided)}"]
        pairs, found = [], []
        for number, (key, schema) in enumerate(own.items()):
            name = f"given{at}_{number}"
            found.append(f"{name}: {_value_rule(schema, root, options)}")
            pairs.append((f"{_quoted(f'{key}=')} {name}", key in required))
        inner = " | ".join(orders(pairs, '", "'))
        optional = "" if any(must for _, must in pairs) else "?"
        given = f"({inner}){optional}" if inner else ""
        return [f'call{at}: {head} {given} ")"', *found]


class PythonicCall:
    """One call while it comes: its name, and its arguments as JSON, told value by value."""

    id = ""

    def __init__(self) -> None:
        self.name = self.raw = ""
        self.ended = False
        self.wrong = False  # no call after all
        self._pairs: list[str] = []
        self._read = ""  # of the name, or of a pair
        self._quote = ""  # around the text that comes
        self._escaped = False
        self._depth = 0

    def take(self, character: str) -> None:
        """Take the next character."""
        self.raw += character
        self._read += character
        if not self.name:
            self._take_name(character)
        elif self._quote:
            if not self._escaped and character == self._quote:
                self._quote = ""
            self._escaped = character == "\\" and not self._escaped
        else:
            self._outside(character)

    @property
    def told(self) -> str:
        """The part of the arguments that further characters cannot change."""
        return object_of(self._pairs, self.ended)

    def _take_name(self, character: str) -> None:
        begun = self._read.removesuffix("(")
        self.wrong = not _BEGUN.fullmatch(begun)
        if character == "(" and not self.wrong:
            self.name, self._read = begun.strip(" \n["), ""
            self.wrong = not re.fullmatch(NAME, self.name)

    def _outside(self, character: str) -> None:
        """Read a character between texts: of nested values, or the end of a pair."""
        if character in "'\"":
            self._quote = character
        elif character in "([{":
            self._depth += 1
        elif character in ")]}" and self._depth:
            self._depth -= 1
        elif character in ",)" and not self._depth:
            self._end_pair()
            self.ended = character == ")"

    def _end_pair(self) -> None:
        pair, self._read = self._read[:-1], ""
        key, equals, value = pair.partition("=")
        if equals:
            self._pairs.append(f"{_quoted(key.strip())}: {json_of(value)}")


def json_of(text: str) -> str:
    """JSON of a literal of Python's or JSON's; of the text itself where it is none."""
    try:
        value = json.loads("".join(_translated(text)), parse_constant=_refuse)
        written = json.dumps(value, ensure_ascii=False, allow_nan=False)
        written.encode()  # half a surrogate pair has no UTF-8
    except (ValueError, RecursionError):
        return _quoted(text.strip())
    return written


def _translated(text: str) -> Iterator[str]:
    """Parts of a literal as JSON writes them, without a comma before a closing bracket."""
    comma = False
    for part in _PART.findall(text):
        if part == ",":
            if comma:
                raise ValueError(text)
            comma = True
            continue
        if comma and not part.isspace():
            yield "" if part in ")]}" else ","
            comma = False
        if part[0] in "'\"" and len(part) > 1:
            yield json.dumps(_text(part))
        else:
            yield _LITERALS.get(part, _BRACKETS.get(part, part))
    if comma:
        raise ValueError(text)


def _text(quoted: str) -> str:
    """Text of a literal between its quotes."""
    if quoted[0] == '"':
        try:
            return str(json.loads(quoted, strict=False))
        except ValueError:
            pass  # escapes of Python's own
    return _ESCAPE.sub(_unescaped, quoted[1:-1])


def _unescaped(found: re.Match[str]) -> str:
    told = found[1]
    if len(told) > 1:
        return chr(int(told[1:], 16))
    return _ESCAPED.get(told, told if told in "\\'\"" else f"\\{told}")


def _refuse(name: str) -> None:
    raise ValueError(name)  # JSON has no infinity


def orders(pairs: list[tuple[str, bool]], comma: str) -> list[str]:
    """Alternatives of a list of terms in their order, of which some may be left out, by the term that comes first."""
    tails = [f"{comma} {pair}" if must else f"({comma} {pair})?" for pair, must in pairs]
    last = next((number for number, (_, must) in enumerate(pairs) if must), len(pairs) - 1)
    return [" ".join([pairs[number][0], *tails[number + 1 :]]) for number in range(last + 1)]


def _value_rule(schema: Any, root: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    kinds = kinds_of(schema, root)
    bare = isinstance(schema, dict) and not {"enum", "const", "$ref"} & schema.keys()
    if bare and kinds and kinds <= _TYPES.keys():
        return " | ".join(_TYPES[kind] for kind in sorted(kinds))
    own = alone(schema, root) if isinstance(schema, dict) else {}
    return f"%json {json.dumps({**own, 'x-guidance': dict(options)})}"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
