"""Reads the request forms that users already send, and answers each in kind.

    canonical   {"inputs": one or list, "parameters": {}}                     the pipeline's shape
                of tasks that embed also {"inputs": ..., "normalize": ...}    (huggingface_hub's InferenceClient)
    list        {"input_data": ["..."], "params": {}}                         ["..."]
    frame       {"input_data" | "inputs": {"input_string": [...]}, ...}       [{"0": "..."}]
    chat        {"input_data": {"input_string": [{"role", "content"}]}}       {"output": "..."}
    record      {"input_data": {"question": "...", "context": "..."}}         ["..."]
    split       {"input_data": {"columns": [...], "data": [[...]]}}           ["..."]

Source of the Azure forms: the model descriptions and samples that Microsoft publishes for its catalogue.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from scoring.api.hooks import Hooks
from scoring.errors import InvalidInput
from scoring.schema.requests import Strict, TaskSchema

_TOP_KEYS = {"inputs", "input_data", "parameters", "params", "stream", "options"}
_SPLIT_KEYS = {"columns", "data", "index", "parameters", "params"}
#: usage: answer with {"answer", "usage"}. The others are the hosted inference API's caching hints, and ignored.
_OPTIONS = {"use_cache", "wait_for_model", "use_gpu", "usage"}


@dataclass(frozen=True)
class Call:
    """A request, whatever its form."""

    inputs: list[Any]  # checked by the task's schema
    parameters: Strict
    single: bool
    stream: bool
    style: str  # the form it came in
    usage: bool = False  # the answer reports token usage


@dataclass(frozen=True)
class Found:
    """Contents of a request form, unchecked."""

    values: list[Any]
    style: str
    where: str
    single: bool = False
    parameters: Any = None  # found beside the values


def parse(payload: Any, task: TaskSchema, hooks: Hooks = Hooks()) -> Call:  # noqa: B008
    """Recognise the form of a payload and check it against the task's schema, after what the deployment puts before."""
    if not isinstance(payload, dict):
        raise InvalidInput("The body must be a JSON object.", f"It looks like {json.dumps(task.sample)}.")
    lifted = set(payload) & (set(task.parameters.model_fields) if task.embeds else set())
    unknown = sorted(set(payload) - _TOP_KEYS - lifted)
    if unknown:
        raise InvalidInput(
            f"Unknown field {unknown[0][:80]!r}.",
            f"The request looks like {json.dumps(task.sample)}.",
            where=unknown[0][:80],
        )
    _check_options(payload.get("options"))
    stream = payload.get("stream", False)
    if not isinstance(stream, bool):
        raise InvalidInput('"stream" must be true or false.', where="stream")
    if stream and not (task.generative or task.hears):
        raise InvalidInput(f"{task.name} has nothing to stream.", 'Leave out "stream".', where="stream")
    found = _unwrap(payload, task)
    inner = _mapping(found.parameters, f"{found.where.partition('.')[0]}.parameters")
    named = {**inner, **_mapping(_parameters(payload), "parameters")}
    if twice := sorted(lifted & set(named)):
        raise InvalidInput(f"{twice[0]!r} is given twice.", "Leave out one of them.", where=twice[0])
    given = {**named, **{name: payload[name] for name in lifted}}
    if not found.values:
        raise InvalidInput(
            "There is nothing to score.", f"The request looks like {json.dumps(task.sample)}.", where=found.where
        )
    values, given = hooks.prepare(found.values, given)
    parameters = task.parse_parameters(given)
    places = [found.where if found.single else f"{found.where}[{i}]" for i in range(len(values))]
    inputs = [task.parse_input(value, place) for value, place in zip(values, places, strict=True)]
    if stream and len(inputs) > 1:
        raise InvalidInput("A stream answers one input.", "Send one request per input.", where=found.where)
    usage = (payload.get("options") or {}).get("usage", False) is True
    return Call(inputs, parameters, found.single, stream, found.style, usage)


def _parameters(payload: dict[str, Any]) -> Any:
    found = [payload[name] for name in ("parameters", "params") if payload.get(name) is not None]
    if len(found) > 1:
        raise InvalidInput('There are both "parameters" and "params".', 'Leave out "params".', where="params")
    return found[0] if found else None


def _mapping(values: Any, where: str) -> dict[str, Any]:
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InvalidInput("Parameters must be a JSON object.", where=where)
    return values


def _check_options(options: Any) -> None:
    if options is not None and (not isinstance(options, dict) or set(options) - _OPTIONS):
        raise InvalidInput(f'"options" may hold {", ".join(sorted(_OPTIONS))}.', where="options")
    for name, value in (options or {}).items():
        if not isinstance(value, bool):
            raise InvalidInput(f"{name} is true or false.", where=f"options.{name}")


def _unwrap(payload: dict[str, Any], task: TaskSchema) -> Found:
    named = [name for name in ("inputs", "input_data") if name in payload]
    if len(named) != 1:
        fault = '"inputs" is missing.' if not named else 'There is both "inputs" and "input_data".'
        raise InvalidInput(fault, f"The request looks like {json.dumps(task.sample)}.", where="inputs")
    where = named[0]
    data, azure = payload[where], where == "input_data"
    if isinstance(data, dict) and "input_string" in data:
        return _input_string(data, task, where)
    if isinstance(data, dict) and "columns" in data:
        return _split(data, where)
    if isinstance(data, dict) and _columnar(data):
        rows = [dict(zip(data, row, strict=True)) for row in zip(*data.values(), strict=True)]
        return Found(rows, "list", where)
    if azure and _is_conversation(data, task):
        return Found([data], "chat", where, single=True)
    alone = (_is_conversation, _is_tokens, _is_pair)
    single = not isinstance(data, list) or any(each(data, task) for each in alone)
    return Found([data] if single else data, "list" if azure else "canonical", where, single)


def _is_conversation(data: Any, task: TaskSchema) -> bool:
    """Return True for a conversation, which is itself a list; everywhere else a list means several inputs."""
    return (
        task.name == "conversational"
        and isinstance(data, list)
        and bool(data)
        and all(isinstance(message, dict) for message in data)
    )


def _is_tokens(data: Any, task: TaskSchema) -> bool:
    """Return True for the token ids of one text."""
    return task.tokens and isinstance(data, list) and bool(data) and all(type(each) is int for each in data)


def _is_pair(data: Any, task: TaskSchema) -> bool:
    """Return True for two texts to compare, where one text alone is no input."""
    return task.ranks and isinstance(data, list) and len(data) == 2 and all(isinstance(each, str) for each in data)


def _columnar(data: dict[str, Any]) -> bool:
    """Columns of equal length, as in {"question": [..], "context": [..]}."""
    columns = list(data.values())
    return bool(columns) and all(isinstance(c, list) for c in columns) and len({len(c) for c in columns}) == 1


def _known_keys(data: dict[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(set(data) - known)
    if unknown:
        hint = f"Here there may be {', '.join(sorted(known))}."
        raise InvalidInput(f"Unknown field {unknown[0][:80]!r}.", hint, where=f"{where}.{unknown[0][:80]}")


def _input_string(data: dict[str, Any], task: TaskSchema, where: str) -> Found:
    _known_keys(data, {"input_string", "parameters", "params"}, where)
    values, inner = data["input_string"], _parameters(data)
    where = f"{where}.input_string"
    if _is_conversation(values, task):
        return Found([values], "chat", where, single=True, parameters=inner)
    single = not isinstance(values, list)
    return Found([values] if single else values, "frame", where, single, inner)


def _split(data: dict[str, Any], where: str) -> Found:
    """A data frame in pandas' "split" form; its index says nothing here."""
    _known_keys(data, _SPLIT_KEYS, where)
    columns, rows = data["columns"], data.get("data")
    if not isinstance(columns, list) or not columns or not isinstance(rows, list):
        raise InvalidInput('"columns" and "data" must be lists.', where=where)
    if len(columns) == 1:  # pandas takes a bare value for a row of one
        values = [row[0] if isinstance(row, list) and len(row) == 1 else row for row in rows]
    elif any(not isinstance(row, list) or len(row) != len(columns) for row in rows):
        raise InvalidInput(f"Every row of data needs {len(columns)} values.", where=f"{where}.data")
    else:
        values = [dict(zip(map(str, columns), row, strict=True)) for row in rows]
    return Found(values, "list", f"{where}.data", parameters=_parameters(data))


def render(call: Call, answers: list[Any], collect: Callable[..., Any], table: Callable[..., Any]) -> Any:
    """Shape the answers as the request's form expects."""
    if call.style == "canonical":
        return collect(answers, call.single, call.parameters)
    if call.style == "chat":
        return {"output": table(answers[:1])[0]}
    values = table(answers)
    if call.style == "list":
        return values
    return [{"0": _cell(value)} for value in values]


def _cell(value: Any) -> Any:
    """A data frame's cell: the label of a classification, a list of words as its text."""
    if isinstance(value, dict) and "label" in value:
        return value["label"]
    return str(value) if isinstance(value, list) and all(isinstance(word, str) for word in value) else value
