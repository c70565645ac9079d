"""Reads the request forms that users already send, and answers each in kind.

    canonical   {"inputs": one or list, "parameters": {}}                     the pipeline's shape
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

from scoring.errors import InvalidInput, InvalidJson
from scoring.schemas import Strict, TaskSchema

_MASK = "[MASK]"
_TOP_KEYS = {"inputs", "input_data", "parameters", "params", "stream", "options"}
#: Accepted and ignored: the hosted inference API's caching hints.
_OPTIONS = {"use_cache", "wait_for_model", "use_gpu"}


@dataclass(frozen=True)
class Call:
    """A request, whatever its form."""

    inputs: list[Any]  # checked by the task's schema
    parameters: Strict
    single: bool
    stream: bool
    style: str  # which form it came in


def read_json(raw: str) -> Any:
    """Parse a body; raise InvalidJson for anything that is not strict JSON."""
    if not raw.strip():
        raise InvalidJson("The body is empty.", 'Send JSON with the header "Content-Type: application/json".')
    try:
        return json.loads(raw, parse_constant=_refuse_constant)
    except RecursionError:
        raise InvalidJson("The JSON is nested too deeply.") from None
    except ValueError as error:
        if isinstance(error, InvalidJson):
            raise
        raise InvalidJson(f"The body is not JSON: {error}.", 'It looks like {"inputs": ...}.') from None


def _refuse_constant(name: str) -> float:
    raise InvalidJson(f"{name} is not JSON.", "Send a number or null.")


def parse(payload: Any, task: TaskSchema) -> Call:
    """Recognise the form of a payload and check it against the task's schema."""
    if not isinstance(payload, dict):
        raise InvalidInput("The body must be a JSON object.", f"It looks like {json.dumps(task.sample)}.")
    unknown = sorted(set(payload) - _TOP_KEYS)
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
    if stream and not task.generative:
        raise InvalidInput(f"{task.name} has nothing to stream.", 'Leave out "stream".', where="stream")
    where = "input_data" if "input_data" in payload else "inputs"
    if where not in payload:
        raise InvalidInput('"inputs" is missing.', f"The request looks like {json.dumps(task.sample)}.", where="inputs")
    values, single, style, inner = _unwrap(payload[where], task, azure=where == "input_data")
    parameters = {**_mapping(inner, f"{where}.parameters"), **_mapping(_parameters(payload), "parameters")}
    if not values:
        raise InvalidInput(
            "There is nothing to score.", f"The request looks like {json.dumps(task.sample)}.", where=where
        )
    inputs = [
        _encodable(task.parse_input(value, where if single else f"{where}[{i}]"), where)
        for i, value in enumerate(values)
    ]
    if stream and len(inputs) > 1:
        raise InvalidInput("A stream answers one input.", "Send one request per input.", where=where)
    return Call(inputs, task.parse_parameters(parameters), single, stream, style)


def _parameters(payload: dict[str, Any]) -> Any:
    return payload["parameters"] if payload.get("parameters") is not None else payload.get("params")


def _mapping(values: Any, where: str) -> dict[str, Any]:
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InvalidInput("Parameters must be a JSON object.", where=where)
    return values


def _check_options(options: Any) -> None:
    if options is not None and (not isinstance(options, dict) or set(options) - _OPTIONS):
        raise InvalidInput(f'"options" may hold {", ".join(sorted(_OPTIONS))}.', where="options")


def _unwrap(data: Any, task: TaskSchema, azure: bool) -> tuple[list[Any], bool, str, Any]:
    """Return (inputs, single, style, parameters found inside)."""
    if isinstance(data, dict) and "input_string" in data:
        return _input_string(data, task)
    if isinstance(data, dict) and "columns" in data:
        return _split(data, task)
    if isinstance(data, dict) and _columnar(data):
        return (
            [dict(zip(data, row, strict=True)) for row in zip(*data.values(), strict=True)],
            False,
            "list",
            None,
        )
    single = _is_single(data, task)
    return [data] if single else data, single and not azure, "list" if azure else "canonical", None


def _is_single(data: Any, task: TaskSchema) -> bool:
    """A conversation is itself a list; everywhere else a list means several inputs."""
    if not isinstance(data, list):
        return True
    return task.name == "conversational" and all(isinstance(message, dict) for message in data) and bool(data)


def _columnar(data: dict[str, Any]) -> bool:
    """{"question": [..], "context": [..]}: columns of one length."""
    columns = list(data.values())
    return bool(columns) and all(isinstance(c, list) for c in columns) and len({len(c) for c in columns}) == 1


def _input_string(data: dict[str, Any], task: TaskSchema) -> tuple[list[Any], bool, str, Any]:
    unknown = sorted(set(data) - {"input_string", "parameters", "params"})
    if unknown:
        raise InvalidInput(f"Unknown field {unknown[0][:80]!r}.", where=f"input_data.{unknown[0][:80]}")
    values, inner = data["input_string"], _parameters(data)
    if task.name == "conversational" and _is_single(values, task):
        return [values], True, "chat", inner
    return values if isinstance(values, list) else [values], False, "frame", inner


def _split(data: dict[str, Any], task: TaskSchema) -> tuple[list[Any], bool, str, Any]:
    columns, rows = data["columns"], data.get("data")
    if not isinstance(columns, list) or not isinstance(rows, list):
        raise InvalidInput('"columns" and "data" must be lists.', where="input_data")
    if any(not isinstance(row, list) or len(row) != len(columns) for row in rows):
        raise InvalidInput(f"Every row of data needs {len(columns)} values.", where="input_data.data")
    values = [row[0] if len(columns) == 1 else dict(zip(columns, row, strict=True)) for row in rows]
    return values, False, "list", _parameters(data)


def _encodable(value: Any, where: str) -> Any:
    """Refuse text that has no UTF-8 form: lone surrogates, which JSON can spell."""
    text = value if isinstance(value, str) else json.dumps(_plain_json(value), ensure_ascii=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidInput("The text holds half of a surrogate pair.", "Send valid Unicode.", where=where) from None
    return value


def _plain_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain_json(entry) for entry in value]
    return value.model_dump() if isinstance(value, Strict) else value


def render(call: Call, answers: list[Any], collect: Callable[..., Any], plain: Callable[[Any], Any]) -> Any:
    """Shape the answers as the request's form expects."""
    if call.style == "canonical":
        return collect(answers, call.single, call.parameters)
    if call.style == "chat":
        return {"output": plain(answers[0])}
    values = [plain(answer) for answer in answers]
    if call.style == "list":
        return values
    return [{"0": _cell(value)} for value in values]


def _cell(value: Any) -> Any:
    """A data frame's cell: the label of a classification, a list of words as its text."""
    if isinstance(value, dict) and "label" in value:
        return value["label"]
    return str(value) if isinstance(value, list) and all(isinstance(word, str) for word in value) else value
