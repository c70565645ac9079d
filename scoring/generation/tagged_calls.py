"""Calls of tools whose arguments stand between tags, one after the other, instead of in one JSON object."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass
from typing import Any

from scoring.errors import InvalidParameter
from scoring.generation.call_style import MOST_NAME, Begun, Typed, object_of
from scoring.schema.tools import Tool

#: Names of JSON's types, by Python's.
_KINDS = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}
_NUMBERS = {"integer", "number"}
_SHARED = ("$defs", "definitions")  # parts of a schema that others refer to
#: Limits of a text that a grammar of tags does not hold it to.
TEXT_LIMITS = ("pattern", "format", "minLength", "maxLength")
_LITERALS = {"True": "true", "False": "false", "None": "null"}  # Python's, which models write too
_MARK = re.compile(r"<[^<>\s]+>|｜\w+｜")  # a token of its own, perhaps
_DEPTH = 8  # references followed, of a chain


@dataclass(frozen=True)
class Tags(Begun):
    """Marks of a form: around the name, each argument's key and value, and at the end of a call."""

    named: tuple[str, ...]  # any of these ends the name
    key: str
    keyed: str  # after a key
    value: str  # before a value, beside blanks
    valued: str  # after a value
    end: str
    lines: bool = False  # a value stands on lines of its own
    told: bool = False  # whether a value is text stands behind its key

    closing = ""
    whole = True

    def marks(self) -> set[str]:
        """Marks that may be special, without the text between them."""
        texts = [text for text in astuple(self) if isinstance(text, str)]
        return {mark for text in texts for mark in (text, *_MARK.findall(text))} - {""}

    def new_call(self, typed: Typed) -> "TaggedCall":
        """A call before its first character."""
        return TaggedCall(self, typed)

    def rules(self, at: int, tool: Tool, options: Mapping[str, Any]) -> list[str]:
        """Lark's rules of a call of this tool as `call<at>`; raises InvalidParameter for a text that cannot be bound.

        Arguments come in the order of the schema. A schema without properties leaves them free.
        """
        root = tool.function.parameters or {}
        own, required = properties_of(root), root.get("required") or []
        parts, found = [], []
        for number, (key, schema) in enumerate(own.items()):
            name = f"given{at}_{number}"
            exact = tool.function.strict is True
            found += _value_rules(self, name, schema, root, options, f"{_where(at)}.{key}" if exact else "")
            pair = f"{_quoted(self.key + key)} {_keyed(self, kinds_of(schema, root))} {name} BLANKS"
            parts.append(pair if key in required else f"({pair})?")
        if not own and root.get("additionalProperties", bool(root)) is not False:
            found.append(f"free{at}[suffix={_quoted(self.valued)}]: /(.|\\n)*/")
            middle = f" BLANKS {_quoted(self.value)}" if self.value else ""
            parts.append(f"({_quoted(self.key)} /[a-zA-Z0-9_.-]+/ {_keyed(self, set())}{middle} free{at} BLANKS)*")
        head = self.begin + tool.function.name + (self.named[0] if self.begin else "")
        last = f" {_quoted(self.end)}" if self.begin else ""
        return [f"call{at}: {_quoted(head)} BLANKS {' '.join(parts)}{last}", *found]


QWEN = Tags("<function=", (">",), "<parameter=", ">", "", "</parameter>", "</function>", lines=True)
GLM = Tags("", ("\n", "<"), "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "</tool_call>")


class TaggedCall:
    """One call while its tags come: its name, and its arguments as JSON, told value by value."""

    id = ""

    def __init__(self, tags: Tags, typed: Typed) -> None:
        self.name = ""
        self.raw = ""
        self.ended = False
        self.wrong = False  # no call after all
        self._tags, self._typed = tags, typed
        self._pairs: list[str] = []
        self._stage = "name"
        self._key = ""
        self._attribute = ""  # behind the key: whether its value is text
        self._read = ""  # of the stage

    def take(self, character: str) -> None:
        """Take the next character."""
        self.raw += character
        self._read += character
        getattr(self, f"_{self._stage}")()

    @property
    def told(self) -> str:
        """The part of the arguments that further characters cannot change."""
        return object_of(self._pairs, self.ended)

    def _name(self) -> None:
        begun = self._read.removeprefix(self._tags.begin)
        if mark := next((mark for mark in self._tags.named if begun.endswith(mark)), ""):
            self.name = begun.removesuffix(mark).strip()
            self._go("outside", mark if mark == "<" else "")
        self.wrong = not self.name and (bool(mark) or len(begun) > MOST_NAME)

    def _outside(self) -> None:
        """Read what stands between arguments."""
        if self._read.endswith(self._tags.key):
            self._go("argument")
        elif self._read.endswith(self._tags.end):
            self.ended = True

    def _argument(self) -> None:
        if self._read.endswith(self._tags.keyed):
            self._key = self._read.removesuffix(self._tags.keyed).strip()
            if self._tags.told:
                self._key, _, self._attribute = self._key.partition('"')
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
        if self._tags.told:
            kinds = {"string"} if '"true"' in self._attribute else kinds - {"string"} or {"null"}
        self._pairs.append(f"{_quoted(self._key)}: {_written(text, kinds)}")
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


def _keyed(tags: Tags, kinds: set[str]) -> str:
    """Terms behind a key; where they tell whether its value is text, as its type says."""
    if not tags.told:
        return _quoted(tags.keyed)
    text, other = _quoted('" string="true' + tags.keyed), _quoted('" string="false' + tags.keyed)
    return text if not kinds or kinds == {"string"} else f"({text} | {other})" if "string" in kinds else other


def _where(at: int) -> str:
    return f"parameters.tools[{at}].function.parameters.properties"


def _value_rules(
    tags: Tags, name: str, schema: Any, root: Mapping[str, Any], options: Mapping[str, Any], exact: str
) -> list[str]:
    """Rules of a value with its tags: one of several texts, any text, or JSON by its schema."""
    line = "\n" if tags.lines else ""
    first, end = ("\n" + tags.value if tags.value else line), line + tags.valued
    begin = f"{_quoted(first)} " if first else ""
    kinds = kinds_of(schema, root)
    values = schema.get("enum", [schema["const"]] if "const" in schema else []) if isinstance(schema, dict) else []
    texts = [value for value in values if isinstance(value, str)]
    if texts and kinds == {"string"}:
        return [f"{name}: {begin}({' | '.join(_quoted(text) for text in texts)}) {_quoted(end)}"]
    if not kinds or "string" in kinds:
        if exact and isinstance(schema, dict) and any(limit in schema for limit in TEXT_LIMITS):
            raise InvalidParameter(
                "A text between tags cannot be held to that.", 'Leave out "strict", or the limit.', where=exact
            )
        return [f"{name}: {begin}{name}_text", f"{name}_text[suffix={_quoted(end)}]: /(.|\\n)*/"]
    guided = {**alone(schema, root), "x-guidance": dict(options)}
    return [f"{name}: {begin}{name}_json {_quoted(end)}", f"{name}_json: %json {json.dumps(guided)}"]


def alone(schema: Mapping[str, Any], root: Mapping[str, Any]) -> dict[str, Any]:
    """A property's schema as one by itself, with what it refers to of the root."""
    shared = {part: root[part] for part in _SHARED if part in root}
    references = {each for part in (schema, shared) for each in _references(part)}
    if all(each.startswith(tuple(f"#/{part}/" for part in _SHARED)) for each in references):
        return {**schema, **shared}
    return {**_moved(schema), "$defs": {"root": _moved(root)}}


def _references(schema: Any) -> Iterator[str]:
    """References within a document, wherever they stand in it."""
    for name, value in schema.items() if isinstance(schema, dict) else enumerate(_listed(schema)):
        if name == "$ref" and isinstance(value, str):
            yield value
        yield from _references(value)


def _moved(schema: Any) -> Any:
    """The same with references to the document's root as ones to `root` of its definitions."""
    if isinstance(schema, list):
        return [_moved(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {name: _moved(value) for name, value in schema.items()}
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        moved["$ref"] = "#/$defs/root" + reference[1:]
    return moved


def properties_of(root: Mapping[str, Any]) -> dict[str, Any]:
    """Properties of a schema, with their schemas."""
    found = root.get("properties")
    return found if isinstance(found, dict) else {}


def kinds_of(schema: Any, root: Mapping[str, Any]) -> set[str]:
    """Types that a schema names, in any of its alternatives; none where it names none."""
    found: set[str] = set()
    followed: set[str] = set()
    left = [schema]
    while left:
        each = left.pop()
        if not isinstance(each, dict):
            continue
        found |= _named(each)
        left += [other for name in ("anyOf", "oneOf", "allOf") for other in _listed(each.get(name))]
        reference = each.get("$ref")
        if isinstance(reference, str) and reference not in followed:
            followed.add(reference)
            left.append(target_of(reference, root))
    return found


def _named(schema: Mapping[str, Any]) -> set[str]:
    """Types that a schema names itself, by its values if by no type."""
    named = schema.get("type")
    found = {kind for kind in _listed([named] if isinstance(named, str) else named) if isinstance(kind, str)}
    values = _listed(schema.get("enum", [schema["const"]] if "const" in schema else []))
    return found or {_KINDS.get(type(value), "null") for value in values}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def resolved(schema: Any, root: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema itself, past references; empty for what is none."""
    for _ in range(_DEPTH):
        if not isinstance(schema, dict) or not isinstance(target := schema.get("$ref"), str):
            break
        schema = target_of(target, root)
    return schema if isinstance(schema, dict) else {}


def target_of(reference: str, root: Mapping[str, Any]) -> Any:
    """Schema at a reference's place in the root, the root itself for `#`; None if there is none."""
    found: Any = root
    for part in reference.removeprefix("#").split("/")[1:]:
        found = found.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
    return found


def _written(text: str, kinds: set[str]) -> str:
    """JSON of a value: of its own type where the schema wants one beside text and it is of one, else of the text."""
    as_text = _quoted(text)
    if not kinds - {"string"}:
        return as_text
    try:
        value = json.loads(_LITERALS.get(text.strip(), text))
        written = json.dumps(value, ensure_ascii=False, allow_nan=False)
        written.encode()  # half a surrogate pair has no UTF-8
    except (ValueError, RecursionError):
        return as_text
    kind = _KINDS.get(type(value), "null")
    fits = kind in kinds or (kind in _NUMBERS and bool(kinds & _NUMBERS))
    return written if (fits or "string" not in kinds) and not isinstance(value, str) else as_text


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
