"""Five hundred JSON schemas of many kinds, made from a seed; an answer to any has an end."""

from __future__ import annotations

import random
from functools import lru_cache
from typing import Any

Schema = dict[str, Any]
_FORMATS = ("date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid")
_WORDS = (
    "name",
    "Straße",
    "количество",
    "数量",
    "a b",
    'quote"d',
    "back\\slash",
    "emoji 😀",
    "tab\t",
    "id",
    "x-1",
    "é",
)
_PATTERNS = ("^[a-z]{2,6}$", "^\\d{3}-\\d{2}$", "^(ja|nein|oui)$", "^[A-Z][a-zé]{1,5}( [A-Z])?$", "^[0-9a-f]{8}$")


@lru_cache(maxsize=1)
def schemas(count: int = 500) -> list[Schema]:
    """The schemas, the same each time."""
    rng = random.Random(500)
    return [_KINDS[number % len(_KINDS)](rng) for number in range(count)]


def _string(rng: random.Random) -> Schema:
    return rng.choice(
        [
            {"type": "string", "maxLength": rng.randint(0, 12)},
            {"type": "string", "minLength": 2, "maxLength": rng.randint(2, 9)},
            {"type": "string", "pattern": rng.choice(_PATTERNS)},
            {"type": "string", "format": rng.choice(_FORMATS[:3] + _FORMATS[6:])},
        ]
    )


def _number(rng: random.Random) -> Schema:
    low = rng.randint(-500, 500)
    return rng.choice(
        [
            {"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 1000)},
            {"type": "integer", "exclusiveMinimum": low, "exclusiveMaximum": low + rng.randint(2, 90)},
            {"type": "integer", "minimum": 0, "maximum": 999, "multipleOf": rng.randint(2, 9)},
            {"type": "number", "minimum": low, "maximum": low + 3, "multipleOf": 0.5},
        ]
    )


def _enum(rng: random.Random) -> Schema:
    values: list[Any] = [*rng.sample(_WORDS, 3), rng.randint(-9, 9), None, True, {"a": [1, "é"]}, 1.5]
    return rng.choice([{"enum": rng.sample(values, 4)}, {"const": rng.choice(values)}])


def _leaf(rng: random.Random) -> Schema:
    return rng.choice([_string, _number, _enum, lambda _: {"type": "boolean"}, lambda _: {"type": "null"}])(rng)


def _object(rng: random.Random, depth: int = 0) -> Schema:
    names = rng.sample(_WORDS, rng.randint(1, 5))
    required = rng.sample(names, rng.randint(0, len(names)))
    inner = {name: _any(rng, depth + 1) if depth < 2 else _leaf(rng) for name in names}
    return {"type": "object", "properties": inner, "required": required, "additionalProperties": False}


def _array(rng: random.Random, depth: int = 0) -> Schema:
    if rng.random() < 0.3:
        return {"type": "array", "prefixItems": [_leaf(rng) for _ in range(3)], "items": False, "minItems": 3}
    least = rng.randint(0, 2)
    return {"type": "array", "items": _any(rng, depth + 1), "minItems": least, "maxItems": least + rng.randint(0, 3)}


def _any(rng: random.Random, depth: int = 0) -> Schema:
    if depth > 2:
        return _leaf(rng)
    return rng.choice([_leaf, _leaf, lambda r: _object(r, depth), lambda r: _array(r, depth)])(rng)


def _union(rng: random.Random) -> Schema:
    kind = rng.choice(["anyOf", "nullable", "tagged"])
    if kind == "anyOf":
        return {"anyOf": [_any(rng, 1) for _ in range(3)]}
    if kind == "nullable":
        nullable = {"anyOf": [_object(rng, 2), {"type": "null"}]}
        return {"type": "object", "properties": {"a": nullable}, "required": ["a"], "additionalProperties": False}
    tagged = []
    for tag in rng.sample(_WORDS, 3):
        own = _object(rng, 2)
        own["properties"] = {"kind": {"const": tag}, **own["properties"]}
        own["required"] = ["kind", *own["required"]]
        tagged.append(own)
    return {"oneOf": tagged}


def _recursive(rng: random.Random) -> Schema:
    """A list, a tree or an expression that refers to itself; its ends are likelier than its branches."""
    leaf = _enum(rng)
    if rng.random() < 0.5:
        node = {
            "type": "object",
            "properties": {"value": leaf, "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]}},
            "required": ["value"],
            "additionalProperties": False,
        }
        return {"$ref": "#/$defs/node", "$defs": {"node": node}}
    return {
        "type": "object",
        "properties": {"name": leaf, "children": {"type": "array", "items": {"$ref": "#"}, "maxItems": 1}},
        "required": ["name"],
        "additionalProperties": False,
    }


def _maps(rng: random.Random) -> Schema:
    return {
        "type": "object",
        "patternProperties": {"^x[0-9]{1,2}$": _leaf(rng)},
        "properties": {"y": _leaf(rng)},
        "required": ["y"],
        "additionalProperties": False,
        "maxProperties": 3,
    }


def _merged(rng: random.Random) -> Schema:
    first, second = rng.sample(_WORDS, 2)
    return {
        "type": "object",
        "allOf": [
            {"properties": {first: _leaf(rng)}, "required": [first]},
            {"properties": {second: {"$ref": "#/$defs/own"}}},
        ],
        "$defs": {"own": _string(rng)},
        "unevaluatedProperties": False,
    }


_KINDS = (_string, _number, _enum, _object, _array, _union, _recursive, _maps, _object, _recursive)
