"""Requests as their publishers wrote them, each answered in kind; and the same content in every form.

Models are tiny and random, so that a test asks for the form of an answer, and for its content only where a canonical
request gives it.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from scoring.api.dialects import parse
from scoring.config import Limits
from scoring.errors import MiiAzureError
from scoring.schema.registry import TASKS, schema, task_schema
from scoring.strict_json.body import read_json
from tests.conftest import Tiny
from tests.scoring.conftest import Serve, Served
from tests.scoring.published import JOHN, PARIS, PUBLISHED, Published
from tests.tiny_models import ENTITIES, LABELS


def check(kind: str, answer: Any, count: int) -> None:
    """Fail unless the answer has the form that the publisher shows."""
    if kind == "chat":
        assert list(answer) == ["output"]
        assert isinstance(answer["output"], str)
        return
    assert isinstance(answer, list)
    assert len(answer) == count
    if kind.startswith("frame"):
        assert all(list(entry) == ["0"] for entry in answer)
        answer = [entry["0"] for entry in answer]
    if kind in ("texts", "frame"):
        assert all(isinstance(text, str) for text in answer)
    elif kind == "frame of labels":
        assert set(answer) <= set(LABELS)
    elif kind == "labels":
        assert all(set(entry) == {"label", "score"} for entry in answer)
    elif kind == "images":
        assert all(set(entry) == {"prompt", "generated_image", "nsfw_content_detected"} for entry in answer)
    elif kind == "frame of tags":
        assert all(text.startswith("['") and text.endswith("']") for text in answer)
    elif kind == "pipeline lists":
        assert all(isinstance(entry, list) for entry in answer)


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda p: f"{p.task}: {p.source}")
def test_what_is_published_is_answered_in_kind(published: Published, tiny: Tiny, serve: Serve) -> None:
    decodes = published.family in ("llama", "mistral", "qwen2", "gpt_neox")
    limits = Limits(context_length=1024) if decodes else Limits()  # rotary positions have no end
    served = serve(tiny(published.family, published.task), published.task, limits)
    status, answer = served(published.payload)
    assert status == 200, answer
    check(published.kind, answer, published.count)


#: Tasks of which the catalogue has no sample.
UNPUBLISHED = {
    *("feature-extraction", "sentence-embeddings", "sentence-similarity", "text-ranking", "zero-shot-classification"),
    "automatic-speech-recognition",
}


def test_every_task_that_azures_catalogue_has_is_published() -> None:
    assert {p.task for p in PUBLISHED} == set(TASKS) - UNPUBLISHED


# -- the same content in every form ------------------------------------------------------------------------------------


@pytest.fixture
def generator(tiny: Tiny, serve: Serve) -> Served:
    return serve(tiny("gpt2", "text-generation"), "text-generation")


def answered(served: Served, payload: dict[str, Any]) -> Any:
    status, answer = served(payload)
    assert status == 200, answer
    return answer


@pytest.mark.parametrize("inner", ["parameters", "params"])
@pytest.mark.parametrize("outer", ["parameters", "params"])
def test_every_form_of_a_generation_has_the_same_text(inner: str, outer: str, generator: Served) -> None:
    prompts, parameters = ["Hello", "The end"], {"max_new_tokens": 6, "return_full_text": False}
    texts = [answer[0]["generated_text"] for answer in generator.ok(prompts, **parameters)]
    framed = [{"0": text} for text in texts]
    forms: list[tuple[dict[str, Any], Any]] = [
        ({"input_data": prompts, outer: parameters}, texts),
        ({"input_data": {"input_string": prompts, inner: parameters}}, framed),
        ({"input_data": {"input_string": prompts}, outer: parameters}, framed),
        ({"inputs": {"input_string": prompts, inner: parameters}}, framed),
        (
            {"input_data": {"columns": ["text"], "index": [0, 1], "data": [[p] for p in prompts]}, outer: parameters},
            texts,
        ),
        ({"input_data": {"columns": ["text"], "data": prompts, inner: parameters}}, texts),
        ({"input_data": prompts[0], outer: parameters}, texts[:1]),
        ({"input_data": {"input_string": prompts[0], inner: parameters}}, framed[:1]),
        (
            {"inputs": prompts[0], outer: parameters, "options": {"use_cache": False, "wait_for_model": True}},
            [{"generated_text": texts[0]}],
        ),
    ]
    for payload, expected in forms:
        assert answered(generator, payload) == expected, payload


def test_outer_parameters_go_before_inner_ones(generator: Served) -> None:
    payload = {
        "input_data": {"input_string": ["Hello"], "parameters": {"max_new_tokens": 9, "return_full_text": False}},
        "parameters": {"max_new_tokens": 3},
    }
    expected = generator.ok("Hello", max_new_tokens=3, return_full_text=False)[0]["generated_text"]
    assert answered(generator, payload) == [{"0": expected}]


def test_several_answers_to_one_prompt(generator: Served) -> None:
    parameters = {"max_new_tokens": 3, "num_beams": 2, "num_return_sequences": 2}
    texts = [entry["generated_text"] for entry in generator.ok("Hello", **parameters)]
    assert answered(generator, {"input_data": ["Hello"], "params": parameters}) == [texts]
    assert answered(generator, {"input_data": {"input_string": ["Hello"]}, "params": parameters}) == [{"0": str(texts)}]


def test_every_form_of_a_conversation_has_the_same_reply(tiny: Tiny, serve: Serve) -> None:
    served = serve(tiny("qwen2", "conversational"), "conversational", Limits(context_length=1024))
    parameters = {"max_new_tokens": 6}
    reply = served.ok(PARIS, **parameters)[0]["generated_text"][-1]["content"]
    assert answered(served, {"input_data": {"input_string": PARIS, "parameters": parameters}}) == {"output": reply}
    assert answered(served, {"input_data": PARIS, "params": parameters}) == {"output": reply}
    assert answered(served, {"inputs": {"input_string": PARIS}, "parameters": parameters}) == {"output": reply}
    assert answered(served, {"input_data": [PARIS, PARIS], "params": parameters}) == [reply, reply]
    both = {"input_data": {"input_string": [PARIS, PARIS], "parameters": parameters}}
    assert answered(served, both) == [{"0": reply}, {"0": reply}]


def test_every_form_of_a_question_has_the_same_answer(tiny: Tiny, serve: Serve) -> None:
    served = serve(tiny("bert", "question-answering"), "question-answering")
    found = served.ok(JOHN)["answer"].strip()
    columns = {"columns": list(JOHN), "data": [list(JOHN.values())] * 2}
    for payload, count in [
        ({"input_data": JOHN}, 1),
        ({"input_data": [JOHN, JOHN]}, 2),
        ({"input_data": {name: [text, text] for name, text in JOHN.items()}}, 2),
        ({"input_data": columns}, 2),
    ]:
        assert answered(served, payload) == [found] * count
    assert answered(served, {"input_data": {"input_string": [JOHN]}}) == [{"0": found}]


def test_tags_are_one_per_word(tiny: Tiny, serve: Serve) -> None:
    served = serve(tiny("bert", "token-classification"), "token-classification")
    text = "My name is Wolfgang and I live in Berlin ."
    [cell] = answered(served, {"input_data": {"input_string": [text]}})
    tags = json.loads(cell["0"].replace("'", '"'))
    assert len(tags) == len(text.split())
    assert set(tags) <= set(ENTITIES)


# -- what no form allows -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "where"),
    [
        ({"input_data": {"input_string": ["a"], "input": 1}}, "input_data.input"),
        ({"inputs": {"input_string": ["a"], "index": [0]}}, "inputs.index"),
        ({"input_data": {"input_string": ["a", 1]}}, "input_data.input_string[1]"),
        ({"input_data": {"input_string": 1}}, "input_data.input_string"),
        ({"input_data": {"input_string": []}}, "input_data.input_string"),
        ({"input_data": {"input_string": ["a"], "parameters": []}}, "input_data.parameters"),
        ({"input_data": ["a"], "params": "x"}, "parameters"),
        ({"input_data": {"columns": ["text"]}}, "input_data"),
        ({"input_data": {"columns": [], "data": []}}, "input_data"),
        ({"input_data": {"columns": ["a", "b"], "data": [["x"]]}}, "input_data.data"),
        ({"input_data": {"columns": ["text"], "data": [["x", "y"]]}}, "input_data.data[0].0"),
        ({"input_data": {"columns": ["text"], "data": [[1]]}}, "input_data.data[0]"),
        ({"input_data": {"columns": ["text"], "data": ["x"], "rows": 1}}, "input_data.rows"),
        ({"input_data": ["a"], "inputs": "b"}, "inputs"),
        ({"inputs": "a", "options": {"use_gpu": True, "x": 1}}, "options"),
        ({"inputs": "a", "stream": "yes"}, "stream"),
        ({"inputs": "a", "parameters": {"stream": True}}, "parameters.stream"),
        ({"inputs": "a", "parameters": {"top_k": 1}, "params": {"top_k": 2}}, "params"),
        ({"inputs": {"input_string": ["a"], "parameters": {"top_k": 1}, "params": {}}}, "params"),
        ({"inputs": "a", "options": {"usage": "yes"}}, "options.usage"),
        ({"inputs": [PARIS[0]]}, "inputs[0]"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(payload: dict[str, Any], where: str, generator: Served) -> None:
    status, answer = generator(payload)
    assert status == 400, answer
    assert answer["error"]["where"] == where


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["input_string", "columns", "data", "question", "context", "text", "role", "content", "x"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)
PAYLOADS = st.dictionaries(
    st.sampled_from(["inputs", "input_data", "parameters", "params", "stream", "options", "other"]), JSON, max_size=4
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(payload=PAYLOADS, task=st.sampled_from(sorted(TASKS)))
def test_any_payload_is_a_call_or_an_error_of_the_interface(payload: dict[str, Any], task: str) -> None:
    try:
        call = parse(read_json(json.dumps(payload)), task_schema(task))
    except MiiAzureError as error:
        assert error.http_status == 400
        assert error.message
    else:
        assert call.inputs


@pytest.mark.parametrize("task", sorted(TASKS))
def test_samples_keep_to_the_published_request_schema(task: str) -> None:
    published = schema(task)
    validator = Draft202012Validator(published["request"])
    validator.validate(published["sample"])
    for entry in PUBLISHED:
        if entry.task == task and "input_data" in entry.payload:
            validator.validate(entry.payload)
    assert not validator.is_valid({"other": 1})
