"""Constraints as llguidance's grammars, and where in a schema the part lies that cannot be kept."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from scoring.errors import InvalidParameter
from scoring.schema.structured import Constraint

_BLANKS = r"[\x20\x0A\x0D\x09]{1,32}"  # between the parts of JSON: without an end, a model may write nothing else
_TRIED = 64  # parts of a schema that are compiled to find the faulty one
_MANY = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_ONE = ("items", "additionalProperties", "not", "contains", "propertyNames", "if", "then", "else")


def grammar_text(constraint: Constraint) -> str:
    """llguidance's grammars, as JSON; raises InvalidParameter for EBNF that cannot be read."""
    named = {**_answer(constraint), "name": "answer"}
    frame = [{"name": "start", "lark_grammar": constraint.frame}] if constraint.frame else []
    return json.dumps({"grammars": [*frame, named]})


def _answer(constraint: Constraint) -> dict[str, Any]:
    kind, text = constraint.kind, constraint.text
    if kind == "json":
        return {"json_schema": {**json.loads(text), "x-guidance": _options(constraint)}}
    if kind == "choice":
        return {"lark_grammar": "start: " + " | ".join(map(json.dumps, json.loads(text)))}
    if kind == "regex":
        return _regex(text)
    return {"lark_grammar": text if "::=" not in text else _lark(constraint)}


def _options(constraint: Constraint) -> dict[str, Any]:
    blanks = _BLANKS if constraint.blanks is None else constraint.blanks
    spaced: dict[str, Any] = {"whitespace_pattern": blanks} if blanks else {"whitespace_flexible": False}
    return {**spaced, "lenient": not constraint.exact, "coerce_one_of": not constraint.exact}


def _regex(text: str) -> dict[str, Any]:
    from llguidance import LLMatcher

    made: dict[str, Any] = json.loads(LLMatcher.grammar_from_regex(text))["grammars"][0]
    return made


def _lark(constraint: Constraint) -> str:
    from llguidance.gbnf_to_lark import gbnf_to_lark

    try:
        return str(gbnf_to_lark(constraint.text))
    except Exception as error:  # its own errors, and whatever a malformed text makes it raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300].rstrip(".")
        raise InvalidParameter(f"The grammar cannot be read: {reason}.", where=constraint.where) from None


def place_of_fault(constraint: Constraint, fails: Callable[[Constraint], bool]) -> str:
    """Path, below the constraint's own place, of the smallest part of a schema that `fails` by itself; else empty."""
    if constraint.kind != "json":
        return ""
    schema = json.loads(constraint.text)
    shared = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
    found, left = "", _TRIED
    part: Any = schema
    while True:
        for path, child in _children(part):
            if left == 0:
                return found
            left -= 1
            alone = json.dumps({**({} if path.startswith((".$defs", ".definitions")) else shared), **child})
            if fails(replace(constraint, text=alone)):
                found, part = found + path, child
                break
        else:
            return found


def _children(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name in (*_MANY, *_LISTS, *_ONE):
        below = schema.get(name)
        if name in _ONE:
            pairs = [("", below)]
        elif isinstance(below, dict):
            pairs = [(f".{key[:80]}", value) for key, value in below.items()]
        else:
            pairs = [(f"[{at}]", value) for at, value in enumerate(below)] if isinstance(below, list) else []
        yield from ((f".{name}{place}", value) for place, value in pairs if isinstance(value, dict))
