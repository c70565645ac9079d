"""The OpenAPI documents: valid in each version, true about the sample, and never stricter than the task's schema."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from openapi_schema_validator import OAS30Validator
from openapi_spec_validator import validate

from mii_azure.bundle.openapi import documents, to_openapi30
from scoring.schema.registry import TASKS, schema


def described(task: str) -> dict[str, dict[str, Any]]:
    return documents(schema(task), title="my-name", model="a-model")


@pytest.mark.parametrize("task", TASKS)
def test_each_document_is_valid_and_has_both_paths(task):
    for document in described(task).values():
        validate(document)
        assert document["paths"].keys() == {"/", "/score"}
        assert json.loads(json.dumps(document)) == document


def resolved(document: dict[str, Any], node: Any) -> Any:
    """The node with every reference replaced by what it names."""
    if isinstance(node, list):
        return [resolved(document, item) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        return resolved(document, document["components"]["schemas"][node["$ref"].rsplit("/", 1)[1]])
    return {key: resolved(document, value) for key, value in node.items()}


BAD = [{}, {"inputs": None}, {"inputs": 5}, {"parameters": {}}, {"inputs": "x", "parameters": []}, "text", []]


@pytest.mark.parametrize("task", TASKS)
def test_both_dialects_accept_the_sample_and_refuse_what_is_wrong(task):
    files = described(task)
    for file, validator in (("swagger3.json", OAS30Validator), ("swagger3.1.json", Draft202012Validator)):
        judge = validator(resolved(files[file], files[file]["components"]["schemas"]["ServiceInput"]))
        assert judge.is_valid(TASKS[task].sample), file
        assert not any(judge.is_valid(bad) for bad in BAD), file


NULL = {"type": "null"}
#: A schema of 2020-12, a value that it takes, and one that it does not.
CONVERSIONS = [
    ({"anyOf": [{"type": "integer", "minimum": 1}, NULL]}, [1, None], [0, "a"]),
    ({"anyOf": [{"type": "integer"}, {"type": "string"}, NULL]}, [1, "a", None], [[], 1.5]),
    ({"oneOf": [{"enum": ["a", "b"], "type": "string"}, NULL], "default": None}, ["a", None], ["c"]),
    ({"type": ["string", "null"]}, ["a", None], [1]),
    ({"type": ["string", "integer", "null"]}, ["a", 1, None], [[]]),
    ({"const": "on"}, ["on"], ["off"]),
    ({"type": "number", "exclusiveMinimum": 0, "maximum": 1}, [0.5, 1], [0, 2]),
    ({"type": "integer", "exclusiveMinimum": 3, "minimum": 7}, [7], [6]),
    ({"type": "integer", "exclusiveMaximum": 3, "maximum": 3}, [2], [3]),
    ({"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "items": False}, [[1, "a"]], [[1.5]]),
    ({"type": "object", "properties": {"a": True}, "additionalProperties": False}, [{"a": 1}], [{"b": 1}]),
    ({"type": "object", "additionalProperties": {"anyOf": [{"type": "integer"}, NULL]}}, [{"a": None}], [{"a": "x"}]),
    (NULL, [None], [0]),
    (True, [1, None, "a"], []),
    (False, [], [1, None]),
]


@pytest.mark.parametrize(("body", "good", "bad"), CONVERSIONS)
def test_the_older_dialect_says_the_same(body, good, bad):
    before = json.dumps(body)
    judge = OAS30Validator(to_openapi30(body))
    assert all(judge.is_valid(value) for value in good)
    assert not any(judge.is_valid(value) for value in bad)
    assert json.dumps(body) == before


def test_a_reference_keeps_its_description():
    converted = to_openapi30({"$ref": "#/components/schemas/X", "description": "one"})
    assert converted == {"allOf": [{"$ref": "#/components/schemas/X"}], "description": "one"}


_SCALARS = st.sampled_from([
    {"type": "integer", "minimum": 2}, {"type": "string", "minLength": 1}, {"type": "boolean"}, NULL,
    {"const": 3}, {"type": "number", "exclusiveMinimum": 0}, {"enum": ["a", 1, None]}, {"type": ["integer", "null"]},
])  # fmt: skip
_SCHEMAS = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(
        st.builds(lambda items: {"type": "array", "items": items}, inner),
        st.builds(lambda choices: {"anyOf": choices}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda a, b: {"type": "object", "properties": {"a": a, "b": b}, "required": ["a"]}, inner, inner),
    ),
    max_leaves=6,
)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 4) | st.sampled_from(["", "a"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["a", "b"]), inner, max_size=2),
    max_leaves=4,
)


@given(_SCHEMAS, _VALUES)
def test_conversion_is_never_stricter(body, value):
    if Draft202012Validator(body).is_valid(value):
        assert OAS30Validator(to_openapi30(body)).is_valid(value)
