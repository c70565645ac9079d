"""Calls of tools whose arguments stand between tags, one after the other, instead of in one JSON object."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scoring.errors import InvalidParameter
from scoring.schema.tools import Tool

_MOST_NAME = 64
#: Names of JSON's types, by Python's.
_KINDS = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}
_NUMBERS = {"integer", "number"}
#: Limits of a text that a grammar of tags does not hold it to.
TEXT_LIMITS = ("pattern", "format", "minLength", "maxLength")
_DEPTH = 8  # references followed
#: Function, parameter, and a type that its value may have; a parameter without any is text.
Typed = frozenset[tuple[str, str, str]]


@dataclass(frozen=True)
class Tags:
    """Marks of a form: around the name, each argument's key and value, and at the end of a call."""

    begin: str  # before the name; empty where the call's own mark is
    named: tuple[str, ...]  # any of these ends the name
    key: str
    keyed: str  # after a key
    value: str  # before a value, beside blanks
    valued: str  # after a value
    end: str
    lines: bool  # a value stands on lines of its own


QWEN = Tags("<function=", (">",), "<parameter=", ">", "", "</parameter>", "</function>", True)
GLM = Tags("", ("\n", "<"), "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "</tool_call>", False)


class TaggedCall:
    """One call while its tags come: its name, and its arguments as JSON, told value by value."""

    def __init__(self, tags: Tags, typed: Typed) -> None:
        self.name = ""
        self.raw = ""
        self.ended = False
        self.wrong = False  # no call after all
        self._tags, self._typed = tags, typed
        self._pairs: list[str] = []
        self._stage = "name"
        self._key = ""
        self._read = ""  # of the stage

    def take(self, character: str) -> None:
        """Take the next character."""
        self.raw += character
        self._read += character
        getattr(self, f"_{self._stage}")()

    @property
    def told(self) -> str:
        """The part of the arguments that further characters cannot change."""
        if not self._pairs:
            return "{}" if self.ended else ""
        return "{" + ", ".join(self._pairs) + ("}" if self.ended else "")

    def _name(self) -> None:
        begun = self._read.removeprefix(self._tags.begin)
        if mark := next((mark for mark in self._tags.named if begun.endswith(mark)), ""):
            self.name = begun.removesuffix(mark).strip()
            self._go("outside", mark if mark == "<" else "")
        self.wrong = not self.name and (bool(mark) or len(begun) > _MOST_NAME)

    def _outside(self) -> None:
        """Read what stands between arguments."""
        if self._read.endswith(self._tags.key):
            self._go("argument")
        elif self._read.endswith(self._tags.end):
            self.ended = True

    def _argument(self) -> None:
        if self._read.endswith(self._tags.keyed):
            self._key = self._read.removesuffix(self._tags.keyed).strip()
            self._go("gap" if self._tags.value else "value")

    def _gap(self) -> None:
        if self._read.endswith(self._tags.value):
            self._go("value")

    def _value(self) -> None:
        if not self._read.endswith(self._tags.valued):
            return
        text = self._read.removesuffix(self._tags.valued)
        if self._tags.lines:
            text = text.removeprefix("\n").removesuffix("\n")
        kinds = {kind for name, key, kind in self._typed if (name, key) == (self.name, self._key)}
        self._pairs.append(f"{_json(self._key)}: {_json(_of_kind(text, kinds))}")
        self._go("outside")

    def _go(self, stage: str, read: str = "") -> None:
        self._stage, self._read = stage, read


def typed(tools: list[Tool]) -> Typed:
    """Types of the tools' parameters, where their schemas name any."""
    found = set()
    for tool in tools:
        root = tool.function.parameters or {}
        for key, schema in properties_of(root).items():
            found |= {(tool.function.name, key, kind) for kind in kinds_of(schema, root)}
    return frozenset(found)


def rules(tags: Tags, at: int, tool: Tool, options: Mapping[str, Any]) -> list[str]:
    """Lark's rules of a call of this tool as `call<at>`; raises InvalidParameter for a text that cannot be bound.

    Arguments come in the order of the schema. A schema without properties leaves them free.
    """
    root = tool.function.parameters or {}
    own, required = properties_of(root), root.get("required") or []
    parts, found = [], []
    for number, (key, schema) in enumerate(own.items()):
        name = f"given{at}_{number}"
        exact = tool.function.strict is True
        found += _value_rules(tags, name, schema, root, options, f"{_where(at)}.{key}" if exact else "")
        pair = f"{_quoted(tags.key + key + tags.keyed)} {name} BLANKS"
        parts.append(pair if key in required else f"({pair})?")
    if not own and root.get("additionalProperties", bool(root)) is not False:
        found.append(f"free{at}[suffix={_quoted(tags.valued)}]: /(.|\\n)*/")
        middle = f" BLANKS {_quoted(tags.value)}" if tags.value else ""
        parts.append(f"({_quoted(tags.key)} /[a-zA-Z0-9_.-]+/ {_quoted(tags.keyed)}{middle} free{at} BLANKS)*")
    head = tags.begin + tool.function.name + (">" if ">" in tags.named else "")
    last = f" {_quoted(tags.end)}" if tags.begin else ""
    return [f"call{at}: {_quoted(head)} BLANKS {' '.join(parts)}{last}", *found]


def _where(at: int) -> str:
    return f"parameters.tools[{at}].function.parameters.properties"


def _value_rules(
    tags: Tags, name: str, schema: Any, root: Mapping[str, Any], options: Mapping[str, Any], exact: str
) -> list[str]:
    """Rules of a value with its tags: one of several texts, any text, or JSON by its schema."""
    line = "\n" if tags.lines else ""
    begin, end = (line if tags.lines else "\n" + tags.value), line + tags.valued
    kinds = kinds_of(schema, root)
    texts = schema.get("enum", [schema["const"]] if "const" in schema else None) if isinstance(schema, dict) else None
    if texts and kinds == {"string"}:
        return [f"{name}: {_quoted(begin)} ({' | '.join(_quoted(text) for text in texts)}) {_quoted(end)}"]
    if not kinds or "string" in kinds:
        if exact and isinstance(schema, dict) and any(limit in schema for limit in TEXT_LIMITS):
            raise InvalidParameter(
                "A text between tags cannot be held to that.", 'Leave out "strict", or the limit.', where=exact
            )
        return [f"{name}: {_quoted(begin)} {name}_text", f"{name}_text[suffix={_quoted(end)}]: /(.|\\n)*/"]
    shared = {part: root[part] for part in ("$defs", "definitions") if part in root}
    guided = {**schema, **shared, "x-guidance": dict(options)}
    return [f"{name}: {_quoted(begin)} {name}_json {_quoted(end)}", f"{name}_json: %json {json.dumps(guided)}"]


def properties_of(root: Mapping[str, Any]) -> dict[str, Any]:
    """Properties of a schema, with their schemas."""
    found = root.get("properties")
    return found if isinstance(found, dict) else {}


def kinds_of(schema: Any, root: Mapping[str, Any], depth: int = 0) -> set[str]:
    """Types that a schema names, in any of its alternatives; none where it names none."""
    if not isinstance(schema, dict) or depth > _DEPTH:
        return set()
    named = schema.get("type", [])
    found = {named} if isinstance(named, str) else {kind for kind in named if isinstance(kind, str)}
    if not found:
        values = schema.get("enum", [schema["const"]] if "const" in schema else [])
        found |= {_KINDS.get(type(value), "null") for value in values} if isinstance(values, list) else set()
    for several in ("anyOf", "oneOf", "allOf"):
        for each in schema.get(several) or []:
            found |= kinds_of(each, root, depth + 1)
    if isinstance(target := schema.get("$ref"), str):
        found |= kinds_of(target_of(target, root), root, depth + 1)
    return found


def resolved(schema: Any, root: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema itself, past references; empty for what is none."""
    for _ in range(_DEPTH):
        if not isinstance(schema, dict) or not isinstance(target := schema.get("$ref"), str):
            break
        schema = target_of(target, root)
    return schema if isinstance(schema, dict) else {}


def target_of(reference: str, root: Mapping[str, Any]) -> Any:
    found: Any = root
    for name in reference.removeprefix("#/").split("/"):
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _of_kind(text: str, kinds: set[str]) -> Any:
    """Value of a text: JSON where a type other than text is wanted and it is of one, else the text."""
    if not kinds - {"string"}:
        return text
    try:
        value = json.loads({"True": "true", "False": "false", "None": "null"}.get(text.strip(), text))
    except (ValueError, RecursionError):
        return text
    kind = _KINDS.get(type(value), "null")
    fits = kind in kinds or (kind in _NUMBERS and bool(kinds & _NUMBERS))
    return value if (fits or "string" not in kinds) and not isinstance(value, str) else text


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
