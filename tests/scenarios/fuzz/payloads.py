"""Strategies for bodies: random JSON, requests of a task bent, published payloads mutated, broken bytes."""

import copy
import json
from typing import Any

from hypothesis import strategies as st

from scoring.schema.registry import TASKS
from scoring.schema.requests import TaskSchema
from tests.scoring.published import PUBLISHED

Json = Any

TEXTS = st.one_of(
    st.sampled_from(
        ["", " ", "a", "[MASK] <mask>", "\x00", "\ud800", "\udfff\ud800", "😀" * 9, "\u202e\u200b", "a" * 3000, "null"]
    ),
    st.text(max_size=12),
)
INTEGERS = st.one_of(
    st.integers(-2, 20), st.sampled_from([2**31, 2**63 - 1, 2**63, -(2**63) - 1, 10**40, 10**400]), st.integers()
)
SCALARS: st.SearchStrategy[Json] = st.one_of(st.none(), st.booleans(), INTEGERS, st.floats(), TEXTS)
VALUES: st.SearchStrategy[Json] = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=8
)
_BIG_NUMBER = "9" * 5000


def requests(task: str) -> st.SearchStrategy[Json]:
    """Objects whose keys are a request's, of which one value or another is not."""
    schema = TASKS[task]
    good = schema.sample["inputs"]
    inputs = st.one_of(st.just(good), st.just([good, good]), VALUES, _input_string(good), _split(good))
    parts = {
        "inputs": inputs,
        "input_data": inputs,
        "parameters": _parameters(schema),
        "params": _parameters(schema),
        "stream": st.booleans() | SCALARS,
        "options": st.dictionaries(st.sampled_from(["usage", "use_cache", "x"]), SCALARS, max_size=2) | SCALARS,
        "unknown": VALUES,
    }
    likely = st.fixed_dictionaries({"inputs": inputs, "parameters": _parameters(schema)})
    fitting = st.fixed_dictionaries(
        {"inputs": _like(good), "parameters": _fitting(schema)},
        optional={"stream": st.just(schema.generative or schema.hears)},
    )
    return st.one_of(fitting, fitting, fitting, likely, st.fixed_dictionaries({}, optional=parts))


def _like(good: Json) -> st.SearchStrategy[Json]:
    """Inputs of the sample's form, with texts of all kinds."""
    text = st.text(min_size=1, max_size=30) | st.sampled_from(["[MASK]", "a [MASK] b <mask>", "😀", "a " * 200, "\n"])
    one: st.SearchStrategy[Json] = text
    if isinstance(good, str) and (mask := "[MASK]" * ("[MASK]" in good) or "<mask>" * ("<mask>" in good)):
        one = text | text.map(lambda words: f"{words} {mask}")
    elif isinstance(good, dict):
        one = st.fixed_dictionaries(dict.fromkeys(good, text))
    elif isinstance(good, list) and isinstance(good[0], dict):
        roles = st.sampled_from(["system", "user", "assistant"])
        return st.lists(st.fixed_dictionaries({"role": roles, "content": text}), min_size=1, max_size=3)
    return one | st.lists(one, min_size=1, max_size=3)


def _fitting(schema: TaskSchema) -> st.SearchStrategy[Json]:
    """Parameters of the right types, mostly within their bounds."""
    strategies = fitting_values(schema)
    return st.dictionaries(st.sampled_from(sorted(strategies)), st.none(), max_size=4).flatmap(
        lambda chosen: st.fixed_dictionaries({name: strategies[name] for name in chosen})
    )


def fitting_values(schema: TaskSchema) -> dict[str, st.SearchStrategy[Json]]:
    """Values of the right type for each parameter of a task."""
    whole = schema.parameters.model_json_schema()
    return {name: _of_type(field, whole) for name, field in whole["properties"].items()}


def _resolved(field: dict[str, Any], whole: dict[str, Any]) -> list[dict[str, Any]]:
    """Alternatives of a field, its references and inner alternatives followed."""
    if "$ref" in field:
        return _resolved(whole["$defs"][field["$ref"].rsplit("/", 1)[1]], whole)
    if "anyOf" in field:
        return [each for kind in field["anyOf"] for each in _resolved(kind, whole)]
    return [field]


def _of_type(field: dict[str, Any], whole: dict[str, Any]) -> st.SearchStrategy[Json]:
    text = st.sampled_from(["a", " ", "e", "translation_en_to_de", "no word"]) | st.text(min_size=1, max_size=4)
    found: list[st.SearchStrategy[Json]] = []
    for kind in _resolved(field, whole):
        low = kind.get("minimum", 0)
        high = kind.get("maximum", 2**63)
        numbers = st.integers(int(low), int(min(high, low + 12))) | st.sampled_from([high, low])
        by_type: dict[str, st.SearchStrategy[Json]] = {
            "integer": numbers,
            "number": st.floats(low, min(high, low + 4)) | numbers,
            "boolean": st.booleans(),
            "string": text,
        }
        if kind.get("type") == "array":
            by_type["array"] = st.lists(_of_type(kind.get("items", {}), whole) | text, max_size=3)
        if kind.get("type") == "object":
            inner = {name: _of_type(each, whole) for name, each in kind.get("properties", {}).items()}
            counted = st.dictionaries(st.sampled_from(["5", "7", "no number"]), numbers, max_size=2)
            by_type["object"] = st.fixed_dictionaries({}, optional=inner) | counted
        words = kind.get("enum") or ([kind["const"]] if "const" in kind else None)
        found.append(st.sampled_from(words) if words else by_type.get(kind.get("type", ""), st.none()))
    return st.one_of(found)


def _parameters(schema: TaskSchema) -> st.SearchStrategy[Json]:
    names = [*schema.parameters.model_fields, "unknown"]
    values = st.one_of(SCALARS, st.integers(0, 8), st.floats(0, 1), st.lists(TEXTS, max_size=2), _choices(schema))
    return st.dictionaries(st.sampled_from(names), values, max_size=4) | VALUES


def _choices(schema: TaskSchema) -> st.SearchStrategy[Json]:
    """The words that the task's parameters take."""
    document = json.dumps(schema.parameters.model_json_schema())
    found = [word for word in ("sigmoid", "softmax", "none", "simple", "max", "mean", "cls") if f'"{word}"' in document]
    return st.sampled_from([*found, "never", True])


def _input_string(good: Json) -> st.SearchStrategy[Json]:
    return st.fixed_dictionaries({"input_string": st.just([good]) | VALUES}, optional={"parameters": VALUES})


def _split(good: Json) -> st.SearchStrategy[Json]:
    columns = st.sampled_from([["text"], ["question", "context"], ["prompt", "a", "a"]]) | VALUES
    rows = st.lists(st.lists(st.just(good) | SCALARS, max_size=3), max_size=3) | VALUES
    return st.fixed_dictionaries({"columns": columns, "data": rows}, optional={"index": VALUES})


@st.composite
def mutated(draw: st.DrawFn, payloads: list[Json]) -> Json:
    """One of the payloads with a value, somewhere inside, replaced, removed, repeated or wrapped."""
    payload = copy.deepcopy(draw(st.sampled_from(payloads)))
    for _ in range(draw(st.integers(1, 3))):
        payload = _mutate(draw, payload)
    return payload


def _mutate(draw: st.DrawFn, value: Json) -> Json:
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    if not keys or draw(st.integers(0, 4)) == 0:
        return draw(st.one_of(VALUES, st.just([value]), st.just({"inputs": value}), st.just(str(value))))
    key = draw(st.sampled_from(keys))
    how = draw(st.sampled_from(["into", "into", "into", "remove", "repeat"]))
    if how == "into":
        value[key] = _mutate(draw, value[key])
    elif how == "remove":
        del value[key]
    elif isinstance(value, dict):
        value[draw(TEXTS)] = copy.deepcopy(value[key])
    else:
        value.append(copy.deepcopy(value[key]))
    return value


def published(task: str) -> list[Json]:
    """What was published for the task, and its sample."""
    return [entry.payload for entry in PUBLISHED if entry.task == task] + [TASKS[task].sample]


def texts(values: st.SearchStrategy[Json]) -> st.SearchStrategy[str]:
    """The values as JSON: NaN and lone surrogates stay, as escapes or as they are; some end early."""
    return st.builds(_written, values, st.booleans(), st.sampled_from([*[None] * 12, -1, 5]))


def _written(value: Json, escaped: bool, end: int | None) -> str:
    return json.dumps(value, ensure_ascii=escaped)[:end]


def nested() -> st.SearchStrategy[str]:
    """Deep, deeper than any parser goes, and just as deep as it still does."""
    depth = st.sampled_from([5, 60, 120, 150, 200, 400, 700, 900, 960, 980, 990, 5000, 60_000])
    whole = st.builds(lambda n, form: form.replace("@", "[" * n + "]" * n), depth, st.sampled_from(_DEEP))
    objects = st.builds(lambda n: '{"inputs":' * n + "1" + "}" * n, depth)
    return st.one_of(whole, objects, st.builds(lambda n: "[" * n, depth))


_DEEP = (
    "@",
    '{"inputs": @}',
    '{"inputs": "a", "parameters": {"stop": @}}',
    '{"inputs": "a", "options": @}',
    '{"input_data": {"columns": @, "data": [[1]]}}',
    '{"inputs": [{"name": "inputs", "datatype": "BYTES", "shape": [1], "data": ["a"]}], "parameters": {"stop": @}}',
    '{"prompt": "a", "stop": @}',
    '{"prompt": "a", "logit_bias": @}',
    '{"inputs": "a", "parameters": {"guided_json": {"enum": [@]}}}',
    '{"prompt": "a", "response_format": {"type": "json_schema", "json_schema": {"schema": @}}}',
    '{"messages": @, "input": @, "tools": @}',
    '{"messages": [{"role": "user", "content": "a"}], "chat_template_kwargs": {"a": @}}',
)

ODD = st.sampled_from(
    [
        "",
        " ",
        "null",
        "[]",
        "{}",
        '""',
        "{'inputs': 1}",
        "\ufeff{}",
        '{"inputs": NaN}',
        '{"inputs": 1e999}',
        '{"inputs": -Infinity, "parameters": {"top_k": Infinity}}',
        f'{{"inputs": {_BIG_NUMBER}}}',
        f'{{"inputs": "a", "parameters": {{"seed": {_BIG_NUMBER}}}}}',
        '{"inputs": "\\ud800"}',
        '{"inputs": "a", "inputs": "b"}',
        '{"\\ud800": 1}',
        '{"inputs": "a", "parameters": {"\\udc00": 1}}',
        '{"mii_azure": "metadata"}',
        '{"mii_azure": ["metadata"]}',
    ]
)


def bodies(task: str) -> st.SearchStrategy[str]:
    """Everything above, for one task, as text."""
    values = st.one_of(requests(task), requests(task), requests(task), mutated(published(task)), VALUES)
    return st.one_of(*[texts(values)] * 6, nested(), ODD)


@st.composite
def broken_bytes(draw: st.DrawFn, bodies: st.SearchStrategy[str]) -> bytes:
    """A body in bytes: in some encoding, and perhaps with a byte changed, or cut."""
    text = draw(bodies)
    encoding = draw(st.sampled_from(["utf-8", "utf-8", "utf-8", "utf-16", "utf-8-sig", "utf-7", "latin-1"]))
    data = text.encode(encoding, "surrogatepass" if encoding.startswith(("utf-8", "utf-16")) else "replace")
    how = draw(st.sampled_from(["", "", "", "change", "cut", "noise"]))
    if how == "change" and data:
        at = draw(st.integers(0, len(data) - 1))
        data = data[:at] + bytes([draw(st.integers(0, 255))]) + data[at + 1 :]
    if how == "cut":
        data = data[: draw(st.integers(0, len(data)))]
    return draw(st.binary(max_size=40)) if how == "noise" else data
