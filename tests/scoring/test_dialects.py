"""Requests as their publishers wrote them, each answered in kind.

The payloads are those of the model descriptions in Azure/azureml-assets (assets/models/system/*/description.md) and
of the samples in Azure/azureml-examples (sdk/python and cli/foundation-models/system/inference); the last ones are the
forms of the Hugging Face registry and of pandas. Long texts are shortened. Models are tiny and random, so that a test
asks for the form of an answer, and for its content only where a canonical request gives it.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from scoring.config import Limits
from scoring.dialects import parse, read_json
from scoring.errors import MiiAzureError
from scoring.tasks import TASKS, schema, task_schema
from tests.conftest import Tiny
from tests.scoring.conftest import Serve, Served
from tests.tiny_models import ENTITIES, LABELS

TOWER = "The tower is 324 metres (1,063 ft) tall, about the same height as an 81-storey building."
DAYS = ["Today was an amazing day!", "It was an unfortunate series of events."]
MASKED = ["Paris is the [MASK] of France.", "Today is a [MASK] day!"]
JOHN = {"question": "What's my name?", "context": "My name is John and I live in Seattle"}
PARIS = [
    {"role": "user", "content": "I am going to Paris, what should I see?"},
    {"role": "assistant", "content": "Here are some attractions:\n\n1. The Eiffel Tower\n2. The Louvre Museum"},
    {"role": "user", "content": "What is so great about #1?"},
]
SAMPLED = {"temperature": 0.6, "top_p": 0.9, "do_sample": True, "max_new_tokens": 20}
SEATTLE = ["My name is John and I live in Seattle", "Berlin is the capital of Germany."]


class Published(NamedTuple):
    """One payload, what it was published for, and the form of its answer."""

    source: str
    task: str
    family: str
    payload: dict[str, Any]
    kind: str
    count: int = 1


PUBLISHED = [
    # -- text-generation
    Published(
        "gpt2",
        "text-generation",
        "gpt2",
        {
            "input_data": ["I believe the meaning of life is"],
            "params": {
                "top_p": 1.0,
                "temperature": 0.8,
                "max_new_tokens": 40,
                "do_sample": True,
                "return_full_text": True,
            },
        },
        "texts",
    ),
    Published(
        "Llama-2-7b",
        "text-generation",
        "llama",
        {"input_data": {"input_string": ["I believe the meaning of life is"], "parameters": SAMPLED}},
        "frame",
    ),
    Published(
        "Mistral-7B-v0-1",
        "text-generation",
        "mistral",
        {
            "input_data": {
                "input_string": ["What is your favourite condiment?", "Do you have mayonnaise recipes?"],
                "parameters": {"max_new_tokens": 20, "do_sample": True, "return_full_text": False},
            }
        },
        "frame",
        2,
    ),
    Published(
        "tiiuae-falcon-7b: no parameters",
        "text-generation",
        "gpt_neox",
        {"input_data": {"input_string": ["Explain to me the difference between nuclear fission and fusion."]}},
        "frame",
    ),
    Published(
        "meta-llama-3-8b/sample_completions_score.json: temperature without do_sample",
        "text-generation",
        "llama",
        {
            "inputs": {"input_string": ["she liked to think being surrounded by adults was one reason"]},
            "parameters": {"top_p": 0.8, "temperature": 0.8, "max_new_tokens": 20, "return_full_text": False},
        },
        "frame",
    ),
    Published(
        "sample-inputs/text-generation.json",
        "text-generation",
        "gpt2",
        {"inputs": ["My name is Thomas and my main "]},
        "pipeline lists",
    ),
    # -- chat
    Published(
        "Llama-2-7b-chat",
        "conversational",
        "llama",
        {"input_data": {"input_string": PARIS, "parameters": SAMPLED}},
        "chat",
    ),
    Published(
        "Mistral-7B-Instruct-v0-1: return_full_text",
        "conversational",
        "mistral",
        {"input_data": {"input_string": PARIS, "parameters": SAMPLED | {"return_full_text": False}}},
        "chat",
    ),
    Published(
        "chat-completion/payload.json: max_length shorter than the prompt",
        "conversational",
        "qwen2",
        {
            "input_data": {
                "input_string": PARIS,
                "parameters": {
                    "max_length": 100,
                    "temperature": 0.8,
                    "top_p": 0.7,
                    "do_sample": True,
                    "max_new_tokens": 100,
                },
            }
        },
        "chat",
    ),
    Published(
        "meta-llama-3-8b-instruct/sample_chat_completions_score.json",
        "conversational",
        "qwen2",
        {
            "inputs": {
                "input_string": [
                    {"role": "system", "content": "You are a helpful assistant."},
                    {"role": "user", "content": "Who won the world series in 2020?"},
                ]
            },
            "parameters": {"top_p": 0.8, "temperature": 0.8, "max_new_tokens": 30},
        },
        "chat",
    ),
    # -- fill-mask
    Published("bert-base-cased", "fill-mask", "bert", {"input_data": MASKED}, "texts", 2),
    Published(
        "roberta-base",
        "fill-mask",
        "roberta",
        {"input_data": ["Paris is the <mask> of France.", "Today is a <mask> day!"]},
        "texts",
        2,
    ),
    Published("bert-base-uncased, older", "fill-mask", "bert", {"inputs": {"input_string": MASKED}}, "frame", 2),
    Published(
        "microsoft-deberta-base", "fill-mask", "deberta-v2", {"input_data": {"input_string": MASKED}}, "frame", 2
    ),
    # -- question-answering
    Published(
        "distilbert-base-cased-distilled-squad", "question-answering", "distilbert", {"input_data": JOHN}, "texts"
    ),
    Published(
        "squad-dataset/sample_score.json: columns",
        "question-answering",
        "distilbert",
        {"inputs": {name: [text] for name, text in JOHN.items()}},
        "texts",
    ),
    Published("sample-inputs/question-answering.json", "question-answering", "bert", {"inputs": [JOHN]}, "pipeline"),
    # -- text-classification
    Published(
        "distilbert-base-uncased-finetuned-sst-2-english",
        "text-classification",
        "distilbert",
        {"input_data": DAYS},
        "labels",
        2,
    ),
    Published(
        "Ashishkr-query_wellformedness_score",
        "text-classification",
        "roberta",
        {"input_data": {"input_string": DAYS}},
        "frame of labels",
        2,
    ),
    Published(
        "roberta-large-mnli", "text-classification", "roberta", {"inputs": {"input_string": DAYS}}, "frame of labels", 2
    ),
    Published(
        "glue-mnli-dataset/sample_score.json: special tokens in the text",
        "text-classification",
        "bert",
        {"inputs": {"input_string": ["[CLS] Children like shows. [SEP] They like the gardens. [SEP]"]}},
        "frame of labels",
    ),
    # -- token-classification
    Published(
        "Jean-Baptiste-camembert-ner",
        "token-classification",
        "xlm-roberta",
        {
            "input_data": {
                "input_string": ["Je m'appelle jean-baptiste et je vis à montréal", "george washington est allé"]
            }
        },
        "frame of tags",
        2,
    ),
    Published(
        "sample-inputs/token-classification.json",
        "token-classification",
        "bert",
        {"inputs": {"input_string": ["My name is Wolfgang and I live in Berlin.", "The head office is in Redmond."]}},
        "frame of tags",
        2,
    ),
    # -- summarization, translation
    Published("facebook-bart-large-cnn", "summarization", "bart", {"input_data": [TOWER]}, "texts"),
    Published(
        "t5-base, older",
        "summarization",
        "t5",
        {"input_data": {"input_string": [TOWER, "Paris is large."]}},
        "frame",
        2,
    ),
    Published(
        "sample-inputs/summarization.json", "summarization", "t5", {"inputs": {"input_string": [TOWER]}}, "frame"
    ),
    Published(
        "t5-small",
        "translation",
        "t5",
        {
            "input_data": [
                "translate English to French: Life is so beautiful, once you learn how to live with it",
                "translate English to German: Berlin is the capital of Germany",
            ]
        },
        "texts",
        2,
    ),
    Published(
        "t5-large, older",
        "translation",
        "t5",
        {"inputs": {"input_string": SEATTLE}, "parameters": {"task_type": "translation_en_to_fr"}},
        "frame",
        2,
    ),
    Published(
        "t5-base, older",
        "translation",
        "t5",
        {"input_data": {"input_string": SEATTLE}, "parameters": {"task_type": "translation_en_to_ro"}},
        "frame",
        2,
    ),
    Published("Helsinki-NLP-opus-mt-en-de", "translation", "marian", {"input_data": SEATTLE}, "texts", 2),
    Published("translation/sample_score.json", "translation", "marian", {"inputs": SEATTLE}, "pipeline lists", 2),
]


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


def test_every_task_that_azures_catalogue_has_is_published() -> None:
    assert {p.task for p in PUBLISHED} == set(TASKS) - {"feature-extraction", "sentence-embeddings"}


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
        ({"input_data": {"columns": ["text"], "data": [["x", "y"]]}}, "input_data.data[0]"),
        ({"input_data": {"columns": ["text"], "data": [[1]]}}, "input_data.data[0]"),
        ({"input_data": {"columns": ["text"], "data": ["x"], "rows": 1}}, "input_data.rows"),
        ({"input_data": ["a"], "inputs": "b"}, "inputs"),
        ({"inputs": "a", "options": {"use_gpu": True, "x": 1}}, "options"),
        ({"inputs": "a", "stream": "yes"}, "stream"),
        ({"inputs": "a", "parameters": {"stream": True}}, "parameters"),
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
