"""OpenAPI documents that the inference server serves at /swagger.json, from a task's JSON schema.

The server reads `swagger2.json`, `swagger3.json` and `swagger3.1.json` beside the scoring script. JSON Schema 2020-12
is OpenAPI 3.1's own dialect; for 3.0 it is rewritten; Swagger 2 has no `anyOf`, so there the body is only an object.
"""

from collections.abc import Callable, Mapping
from typing import Any

Schema = dict[str, Any]

_STATUSES = {
    "400": "The request is wrong; the message says where.",
    "413": "The request is too large.",
    "429": "The queue is full; Retry-After says when to come back.",
    "500": "The service failed; the id in the message is in its log.",
    "503": "The model is loading, or the service is stopping.",
    "504": "The request was not answered in time.",
}
_ERROR: Schema = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {key: {"type": "string"} for key in ("code", "message", "hint", "where")},
            "required": ["code", "message"],
        }
    },
    "required": ["error"],
}
# Keywords of JSON Schema that OpenAPI 3.0 lacks; each only narrows, so without it no less is accepted.
_ABSENT_IN_30 = {
    "$schema", "$id", "$anchor", "$comment", "$defs", "patternProperties", "propertyNames", "unevaluatedProperties",
    "unevaluatedItems", "if", "then", "else", "dependentSchemas", "dependentRequired", "contains", "minContains",
    "maxContains", "contentMediaType", "contentEncoding", "contentSchema",
}  # fmt: skip
_SCHEMA_MAPS = ("properties", "$defs", "patternProperties", "dependentSchemas")
_SCHEMA_LISTS = ("anyOf", "allOf", "oneOf", "prefixItems")
_SCHEMA_VALUES = ("items", "additionalProperties", "not", "propertyNames", "contains", "if", "then", "else")


def documents(task: Mapping[str, Any], *, title: str, model: str) -> dict[str, Schema]:
    """Return {file name: document} for a task's `{"request", "response", "sample", "summary"}`."""
    modern = _components(task)
    info = {"title": title, "description": f"{task['summary']} Model: {model}.", "version": "1"}
    return {
        "swagger2.json": _swagger2(info, task["sample"]),
        "swagger3.json": _openapi3("3.0.3", info, {name: to_openapi30(body) for name, body in modern.items()}),
        "swagger3.1.json": _openapi3("3.1.0", info, modern),
    }


def _components(task: Mapping[str, Any]) -> dict[str, Schema]:
    """ServiceInput and ServiceOutput, with their definitions beside them as components of their own."""
    found: dict[str, Schema] = {}
    for name, body in (("ServiceInput", task["request"]), ("ServiceOutput", task["response"])):
        top = {key: value for key, value in body.items() if key not in ("$defs", "$schema")}
        found[name] = _relocate(top, name)
        for inner, definition in body.get("$defs", {}).items():
            found[f"{name}.{inner}"] = _relocate(definition, name)
    found["ServiceInput"]["examples"] = [task["sample"]]
    found["ErrorResponse"] = _ERROR
    return found


def _relocate(schema: Any, owner: str) -> Any:
    """Rewrite `#/$defs/X` to `#/components/schemas/<owner>.X`, in references and in mappings."""
    if isinstance(schema, list):
        return [_relocate(item, owner) for item in schema]
    if isinstance(schema, dict):
        return {key: _relocate(value, owner) for key, value in schema.items()}
    if isinstance(schema, str) and schema.startswith("#/$defs/"):
        return f"#/components/schemas/{owner}.{schema.removeprefix('#/$defs/')}"
    return schema


def to_openapi30(schema: Any) -> Any:
    """Convert a JSON schema (2020-12) to OpenAPI 3.0's dialect; inexpressible parts are loosened, never tightened."""
    if isinstance(schema, bool):
        return {} if schema else {"not": {}}
    result = _children({key: value for key, value in schema.items() if key not in _ABSENT_IN_30}, to_openapi30)
    result = _tuple_to_items(_examples(_bounds(_constants(result))))
    result = _types(result)
    result = _nullable(result)
    if "$ref" in result and len(result) > 1:  # a reference may have no siblings in 3.0
        result = {"allOf": [{"$ref": result.pop("$ref")}], **result}
    return result


def _children(schema: Schema, convert: Callable[[Any], Any]) -> Schema:
    result = dict(schema)
    for key in _SCHEMA_MAPS:
        if key in result:
            result[key] = {name: convert(body) for name, body in result[key].items()}
    for key in _SCHEMA_LISTS:
        if key in result:
            result[key] = [convert(body) for body in result[key]]
    for key in _SCHEMA_VALUES:
        if key in result and not (key == "additionalProperties" and isinstance(result[key], bool)):
            result[key] = convert(result[key])
    return result


def _constants(schema: Schema) -> Schema:
    return {
        ("enum" if key == "const" else key): ([value] if key == "const" else value) for key, value in schema.items()
    }


def _bounds(schema: Schema) -> Schema:
    """Convert `exclusiveMinimum: 0` to 3.0's `minimum: 0, exclusiveMinimum: true`."""
    result = dict(schema)
    for bound in ("Minimum", "Maximum"):
        exclusive, inclusive = f"exclusive{bound}", bound.lower()
        if not isinstance(result.get(exclusive, True), bool):
            value = result.pop(exclusive)
            stricter = max if bound == "Minimum" else min
            if stricter(value, result.get(inclusive, value)) == value:
                result[inclusive], result[exclusive] = value, True
    return result


def _examples(schema: Schema) -> Schema:
    result = dict(schema)
    examples = result.pop("examples", None)
    if examples:
        result["example"] = examples[0]
    return result


def _tuple_to_items(schema: Schema) -> Schema:
    """Convert a fixed-length array to an array of any of its items, of that length."""
    if "prefixItems" not in schema:
        return schema
    result = dict(schema)
    items = result.pop("prefixItems")
    rest = result.pop("items", {})
    result["items"] = {"anyOf": items} if rest == {"not": {}} else {}
    return result


def _types(schema: Schema) -> Schema:
    """Convert a list of types to one type, or `anyOf`; `null` among them becomes `nullable`."""
    if isinstance(schema.get("type"), list):
        names = schema["type"]
        result = {key: value for key, value in schema.items() if key != "type"}
        nullable = {"nullable": True} if "null" in names else {}
        plain = [name for name in names if name != "null"]
        if len(plain) == 1:
            return {"type": plain[0], **result, **nullable}
        return {
            **result,
            "allOf": [*result.get("allOf", []), {"anyOf": [{"type": name, **nullable} for name in plain]}],
        }
    if schema.get("type") == "null":
        return {**{key: value for key, value in schema.items() if key != "type"}, "enum": [None], "nullable": True}
    return schema


_NULL: Schema = {"enum": [None], "nullable": True}


def _nullable(schema: Schema) -> Schema:
    """Convert a choice between one typed schema and null to that schema, nullable."""
    for key in ("anyOf", "oneOf"):
        choices = schema.get(key, [])
        others = [choice for choice in choices if choice != _NULL]
        if len(choices) == 2 and len(others) == 1 and "type" in others[0]:
            rest = {name: value for name, value in schema.items() if name != key}
            enum = {"enum": [*others[0]["enum"], None]} if "enum" in others[0] else {}
            return {**others[0], **enum, **rest, "nullable": True}
    return schema


def _openapi3(version: str, info: Schema, components: Mapping[str, Schema]) -> Schema:
    def content(name: str) -> Schema:
        return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}

    answers: Schema = {"200": {"description": "The answer.", "content": content("ServiceOutput")}}
    for status, meaning in _STATUSES.items():
        answers[status] = {"description": meaning, "content": content("ErrorResponse")}
    health = {"200": {"description": "Ready.", "content": {"text/plain": {"schema": {"type": "string"}}}}}
    return {
        "openapi": version,
        "info": info,
        "security": [{"Bearer": []}],
        "paths": {
            "/": {"get": {"operationId": "ServiceHealthCheck", "summary": "Is it ready?", "responses": health}},
            "/score": {
                "post": {
                    "operationId": "RunMLService",
                    "summary": info["description"],
                    "requestBody": {"required": True, "content": content("ServiceInput")},
                    "responses": answers,
                }
            },
        },
        "components": {
            "schemas": dict(components),
            "securitySchemes": {"Bearer": {"type": "http", "scheme": "bearer"}},
        },
    }


def _swagger2(info: Schema, sample: Any) -> Schema:
    def body(name: str) -> Schema:
        return {"$ref": f"#/definitions/{name}"}

    answers: Schema = {"200": {"description": "The answer.", "schema": body("ServiceOutput")}}
    for status, meaning in _STATUSES.items():
        answers[status] = {"description": meaning, "schema": body("ErrorResponse")}
    return {
        "swagger": "2.0",
        "info": info,
        "schemes": ["https"],
        "consumes": ["application/json"],
        "produces": ["application/json"],
        "securityDefinitions": {"Bearer": {"type": "apiKey", "name": "Authorization", "in": "header"}},
        "security": [{"Bearer": []}],
        "paths": {
            "/": {
                "get": {
                    "operationId": "ServiceHealthCheck",
                    "summary": "Is it ready?",
                    "produces": ["text/plain"],
                    "responses": {"200": {"description": "Ready.", "schema": {"type": "string"}}},
                }
            },
            "/score": {
                "post": {
                    "operationId": "RunMLService",
                    "summary": info["description"],
                    "parameters": [{"name": "body", "in": "body", "required": True, "schema": body("ServiceInput")}],
                    "responses": answers,
                }
            },
        },
        "definitions": {
            "ServiceInput": {"type": "object", "example": sample},
            "ServiceOutput": {},
            "ErrorResponse": _ERROR,
        },
    }
