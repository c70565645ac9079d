"""Values between tags become JSON of the types that the schema of their function names."""

from __future__ import annotations

import json
from typing import Any

import pytest

from scoring.generation.tagged_calls import QWEN, TaggedCall, typed
from scoring.schema.tools import Function, Tool

LOOP = {"anyOf": [{"$ref": "#/$defs/Loop"}] * 100}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "$defs": {"Day": {"enum": ["mon", "sun"]}, "Count": {"type": "integer"}, "Loop": LOOP, "of/a": {"type": "array"}},
    "properties": {
        "plain": {"type": "string"},
        "unknown": {"description": "no type"},
        "day": {"$ref": "#/$defs/Day"},
        "count": {"$ref": "#/$defs/Count"},
        "loop": {"$ref": "#/$defs/Loop"},
        "share": {"type": "number"},
        "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "either": {"type": ["string", "integer"]},
        "on": {"type": "boolean"},
        "list": {"type": "array", "items": {"type": "string"}},
        "one": {"const": 1},
        "all": {"$ref": "#"},
        "as_share": {"$ref": "#/properties/share"},
        "slashed": {"$ref": "#/$defs/of~1a"},
        "wrong": {"type": None, "anyOf": 5, "enum": 5},
    },
}


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("plain", "12", "12"),
        ("unknown", "12", "12"),
        ("absent", "true", "true"),
        ("day", "sun", "sun"),
        ("count", "12", 12),
        ("count", "many", "many"),
        ("loop", "1", "1"),
        ("share", "0.5", 0.5),
        ("share", "2", 2),
        ("maybe", "null", None),
        ("maybe", "None", None),
        ("maybe", "7", "7"),
        ("either", "7", 7),
        ("either", "true", "true"),
        ("either", '"7"', '"7"'),
        ("on", "False", False),
        ("list", '["a"]', ["a"]),
        ("list", "[" * 100_000, "[" * 100_000),
        ("one", "1", 1),
        ("all", '{"plain": "a"}', {"plain": "a"}),
        ("as_share", "0.5", 0.5),
        ("slashed", "[1]", [1]),
        ("wrong", "1", "1"),
        ("share", "NaN", "NaN"),
        ("share", "1e999", "1e999"),
        ("list", '["\\ud800"]', '["\\ud800"]'),
        ("plain", "a\n<b>\n", "a\n<b>\n"),
        ("plain", "", ""),
    ],
)
def test_a_value_has_the_type_of_its_parameter(key: str, text: str, value: Any) -> None:
    tool = Tool(type="function", function=Function(name="f", parameters=SCHEMA))
    call = TaggedCall(QWEN, typed([tool]))
    for character in f"<function=f>\n<parameter={key}>\n{text}\n</parameter>\n</function>":
        assert not call.ended
        call.take(character)
    assert call.ended
    assert json.loads(call.told, parse_constant=pytest.fail) == {key: value}
