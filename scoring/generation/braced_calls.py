"""Calls of tools as Gemma writes them: name{key:value,...}, whose texts stand between quotes of its own."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from scoring.errors import InvalidParameter
from scoring.generation.call_style import MOST_NAME, Typed, object_of
from scoring.generation.pythonic_calls import orders
from scoring.generation.tagged_calls import TEXT_LIMITS, kinds_of, properties_of, resolved
from scoring.schema.tools import Tool

OPENING = "call:"  # before the name
_BARE = re.compile(r"[^,\]}]*")
_JSON = {"integer", "number", "boolean", "null"}  # types whose values are those of JSON
_DEPTH = 8  # of schemas within schemas that a grammar keeps; deeper values are free
_MOST_RULES = 2000  # of a tool, after which values are free: schemas that refer to themselves branch at each level


@dataclass(frozen=True)
class Braces:
    """A style by the quote that stands around its texts."""

    quote: str

    opening = follow = OPENING
    closing = ""
    whole = True

    def marks(self) -> set[str]:
        """The quote, which tokenizers may hold for special."""
        return {self.quote}

    def new_call(self, typed: Typed) -> "BracedCall":
        """A call before its first character."""
        return BracedCall(self.quote)

    def rules(self, at: int, tool: Tool, options: Mapping[str, Any]) -> list[str]:
        """Lark's rules of a call of this tool as `call<at>`; raises InvalidParameter for a text that cannot be bound.

        Arguments come in the order of their names, as templates write them. A schema without properties leaves them
        free.
        """
        writer = _Rules(self.quote, f"given{at}", tool, options)
        root = tool.function.parameters or {}
        free = not properties_of(root) and root.get("additionalProperties", bool(root)) is not False
        where = f"parameters.tools[{at}].function.parameters"
        inner = writer.free("object") if free else writer.members(root, where, 0)
        head = _json(f"{OPENING}{tool.function.name}" + ("" if free else "{"))
        return [f"call{at}: {head} {inner}" + ("" if free else ' "}"'), *writer.made]


class BracedCall:
    """One call while it comes: its name, and its arguments as JSON, told value by value."""

    id = ""

    def __init__(self, quote: str) -> None:
        self.name = ""
        self.raw = ""
        self.ended = False
        self.wrong = False  # no call after all
        self._quote = quote
        self._pairs: list[str] = []
        self._read = ""  # of the name, or of a pair
        self._quoted = False  # within a text
        self._depth = 0
        self._named = False

    def take(self, character: str) -> None:
        """Take the next character."""
        self.raw += character
        self._read += character
        if not self._named:
            self._name()
        elif self._read.endswith(self._quote):
            self._quoted = not self._quoted
        elif not self._quoted:
            self._outside(character)

    @property
    def told(self) -> str:
        """The part of the arguments that further characters cannot change."""
        return object_of(self._pairs, self.ended)

    def _name(self) -> None:
        begun = self._read.removeprefix(OPENING)
        if begun.endswith("{"):
            self.name, self._named, self._read = begun[:-1].strip(), True, ""
            self.wrong = not self.name
        else:
            self.wrong = len(begun) > MOST_NAME

    def _outside(self, character: str) -> None:
        """Read a character between texts: of nested values, or the end of a pair."""
        if character in "{[":
            self._depth += 1
        elif character in "}]" and self._depth:
            self._depth -= 1
        elif character in ",}" and not self._depth:
            self._end_pair()
            self.ended = character == "}"

    def _end_pair(self) -> None:
        pair, self._read = self._read[:-1], ""
        key, colon, value = pair.partition(":")
        if colon:
            self._pairs.append(f"{_json(_key(key, self._quote))}: {_json(value_of(value, self._quote))}")


def value_of(text: str, quote: str) -> Any:
    """Value that a text of this notation stands for; the text itself where it is none."""
    reader = _Reader(text, quote)
    try:
        found = reader.value()
    except (ValueError, RecursionError):
        return text.replace(quote, "").strip()
    return text.replace(quote, "").strip() if reader.rest.strip() else found


class _Reader:
    def __init__(self, text: str, quote: str) -> None:
        self.rest, self._quote = text, quote

    def value(self) -> Any:
        """Read one value; raises ValueError where there is none."""
        self.rest = self.rest.lstrip()
        if self.rest.startswith(self._quote):
            text, mark, self.rest = self.rest.removeprefix(self._quote).partition(self._quote)
            if not mark:
                raise ValueError(text)
            return text
        if self.rest.startswith('"'):
            found, end = json.JSONDecoder(strict=False).raw_decode(self.rest)
            self.rest = self.rest[end:]
            return found
        if self.rest.startswith("{"):
            return dict(self._members("}"))
        if self.rest.startswith("["):
            return [value for _, value in self._members("]")]
        bare = _BARE.match(self.rest)
        self.rest = self.rest[bare.end() :] if bare else self.rest
        return _bare(bare[0].strip() if bare else "")

    def _members(self, end: str) -> Iterator[tuple[str, Any]]:
        """Members of an object, or of a list, whose keys are empty."""
        self.rest = self.rest[1:].lstrip()
        while not self.rest.startswith(end):
            key = ""
            if end == "}":
                key, colon, self.rest = self.rest.partition(":")
                if not colon:
                    raise ValueError(key)
            yield _key(key, self._quote), self.value()
            self.rest = self.rest.lstrip()
            if self.rest.startswith(","):
                self.rest = self.rest[1:].lstrip()
            elif not self.rest.startswith(end):
                raise ValueError(self.rest)
        self.rest = self.rest[1:]


def _bare(text: str) -> Any:
    """JSON where it is a number, true, false or null; else the text."""
    try:
        found = json.loads({"True": "true", "False": "false", "None": "null"}.get(text, text), parse_constant=str)
        json.dumps(found, allow_nan=False)  # JSON has no infinity
    except ValueError:
        return text
    return found


def _key(text: str, quote: str) -> str:
    return text.strip().removeprefix(quote).removesuffix(quote).strip('"')


class _Rules:
    """Lark's rules of the values of one tool."""

    def __init__(self, quote: str, name: str, tool: Tool, options: Mapping[str, Any]) -> None:
        self.made: list[str] = []
        self._quote, self._name, self._options = _json(quote), name, dict(options)
        self._root, self._strict = tool.function.parameters or {}, tool.function.strict is True

    def members(self, schema: Mapping[str, Any], where: str, depth: int) -> str:
        """Rules of an object's members, without its braces: required ones, and others in their places."""
        required = schema.get("required") or []
        pairs = [
            (f"{_json(f'{key}:')} {self.value(own, f'{where}.properties.{key}', depth + 1)}", key in required)
            for key, own in sorted(properties_of(schema).items())
        ]
        if not pairs:
            return ""
        own = self._rule(" | ".join(orders(pairs, '","')))
        return own if any(must for _, must in pairs) else f"{own}?"

    def value(self, schema: Any, where: str, depth: int) -> str:
        """Name of the rule of a value."""
        schema = resolved(schema, self._root)
        several = next((schema[key] for key in ("anyOf", "oneOf") if isinstance(schema.get(key), list)), None)
        if depth > _DEPTH or len(self.made) > _MOST_RULES:
            return self.free("any")
        if several:
            return self._rule(" | ".join(self.value(each, where, depth + 1) for each in several))
        found, texts = kinds_of(schema, self._root), schema.get("enum", [schema["const"]] if "const" in schema else [])
        if texts and found == {"string"}:
            return self._rule(f"{self._quote} ({' | '.join(map(_json, texts))}) {self._quote}")
        forms = [self._json_rule(schema)] if found & _JSON else []
        if "string" in found:
            self._check_text(schema, where)
            forms.append(self._text())
        if "array" in found:
            item = self.value(schema.get("items", {}), f"{where}.items", depth + 1)
            forms.append(f'"[" ({item} ("," {item})*)? "]"')
        if "object" in found:
            inner = self.members(schema, where, depth) if properties_of(schema) else ""
            forms.append(f'"{{" {inner} "}}"' if inner else self.free("object"))
        return self._rule(" | ".join(forms)) if forms else self.free("any")

    def free(self, kind: str) -> str:
        """Name of the rule of a value of any form, or of any object."""
        names = {each: f"{self._name}_{each}" for each in ("any", "object")}
        if not any(rule.startswith(f"{names['any']}:") for rule in self.made):
            plain = self._json_rule({"type": sorted(_JSON)})
            pair = f'/[a-zA-Z0-9_.-]+/ ":" {names["any"]}'
            listed = f'"[" ({names["any"]} ("," {names["any"]})*)? "]"'
            self.made.append(f"{names['any']}: {plain} | {self._text()} | {names['object']} | {listed}")
            self.made.append(f'{names["object"]}: "{{" ({pair} ("," {pair})*)? "}}"')
        return names[kind]

    def _text(self) -> str:
        name = f"{self._name}_text"
        if not any(rule.startswith(f"{name}[") for rule in self.made):
            self.made.append(f"{name}[suffix={self._quote}]: /(.|\\n)*/")
        return f"{self._quote} {name}"

    def _json_rule(self, schema: Mapping[str, Any]) -> str:
        told = schema.get("type")
        kinds = [kind for kind in ([told] if isinstance(told, str) else told or []) if kind in _JSON]
        guided = {**schema, **({"type": kinds} if kinds else {}), "x-guidance": self._options}
        return self._rule(f"%json {json.dumps(guided)}")

    def _check_text(self, schema: Mapping[str, Any], where: str) -> None:
        if self._strict and any(limit in schema for limit in TEXT_LIMITS):
            raise InvalidParameter(
                "A text between quotes cannot be held to that.", 'Leave out "strict", or the limit.', where=where
            )

    def _rule(self, text: str) -> str:
        """Name of a new rule."""
        name = f"{self._name}_{len(self.made)}"
        self.made.append(f"{name}: {text}")
        return name


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
