"""Writes docs/parameters.md: every parameter of every task, from the schemas that requests are checked by."""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from scoring.schema.registry import TASKS

HEAD = """# Parameters

What `"parameters"` of a request may hold, task by task, with the values that are taken and what holds where none is
given. The names are those of the Hugging Face pipelines where these have one; [requests.md](requests.md) says what goes
beyond them, and [serving.md](serving.md) under which names `/v1/*` takes them. Anything else is refused by its name. Of
a number without an upper bound the model's own sizes are one: its context, its vocabulary, its labels.
"""
_UNBOUNDED = 2**31 - 1


def page() -> str:
    """One table for each group of tasks that share parameters."""
    lines = [HEAD]
    for tasks, kinds in _groups().items():
        lines += [f"## {', '.join(tasks)}", "", "| parameter | values | default | meaning |", "|---|---|---|---|"]
        lines += [row for kind in kinds for row in _rows(kind)]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _groups() -> dict[tuple[str, ...], list[type[BaseModel]]]:
    """Classes of parameters with fields of their own, by the tasks that take these; what several share comes first."""
    tasks: dict[type[BaseModel], list[str]] = {}
    for name, task in TASKS.items():
        for kind in reversed(task.parameters.__mro__):
            if issubclass(kind, BaseModel) and kind.model_fields.keys() & kind.__annotations__.keys():
                tasks.setdefault(kind, []).append(name)
    groups: dict[tuple[str, ...], list[type[BaseModel]]] = {}
    for kind, names in tasks.items():
        groups.setdefault(tuple(names), []).append(kind)
    return groups


def _rows(kind: type[BaseModel]) -> Iterator[str]:
    whole = kind.model_json_schema()
    for name in (name for name in kind.model_fields if name in kind.__annotations__):
        schema = whole["properties"][name]
        default = "" if name in whole.get("required", ()) else _written(schema.get("default"))
        meaning = schema.get("description", "").replace("|", "\\|")
        yield f"| `{name}` | {_values(schema, whole)} | {default} | {meaning} |"


def _values(schema: dict[str, Any], whole: dict[str, Any]) -> str:
    kinds = [each for each in schema.get("anyOf", [schema]) if each.get("type") != "null"]
    return " or ".join(dict.fromkeys(told for each in kinds for told in _kind(each, whole)))


def _kind(schema: dict[str, Any], whole: dict[str, Any]) -> Iterator[str]:
    if "$ref" in schema:
        schema = whole["$defs"][schema["$ref"].rsplit("/", 1)[1]]
    if "anyOf" in schema:
        yield _values(schema, whole)
    elif words := schema.get("enum", [schema["const"]] if "const" in schema else None):
        yield ", ".join(map(_written, words))
    else:
        yield {"array": "list", "boolean": "true, false", "string": "text"}.get(
            schema.get("type", ""), schema.get("type", "any")
        ) + _bounds(schema)


def _bounds(schema: dict[str, Any]) -> str:
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("maxItems", schema.get("maxLength", schema.get("maxProperties"))))
    above = "above" if "exclusiveMinimum" in schema else "from"
    told = f" {above} {low:g}" if low is not None and abs(low) < _UNBOUNDED else ""
    if high is not None and high < _UNBOUNDED:
        counted = {"array": " entries", "string": " characters", "object": " entries"}.get(schema["type"], "")
        told += f" to {high:,}{counted}" if told or not counted else f" of up to {high:,}{counted}"
    return told


def _written(value: Any) -> str:
    return f"`{str(value).lower()}`" if isinstance(value, bool) else "" if value is None else f"`{value}`"
