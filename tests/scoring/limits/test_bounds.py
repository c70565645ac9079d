"""What a request may cost is bounded by the model and the schemas, and an answer's size is known before it is made."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from transformers import AutoTokenizer

from scoring.api.dialects import parse
from scoring.config import Limits
from scoring.limits.bounded_tokenizer import Tokenizing
from scoring.schema.registry import TASKS
from scoring.schema.requests import MOST_EMBEDDED, MOST_STOP_CHARACTERS, MOST_STOPS, MOST_WORDS
from tests.conftest import Tiny
from tests.scoring.conftest import Serve, Served
from tests.tiny_models import FAMILIES

ROOM = Limits(max_payload_bytes=8 << 20)
HUGE = "the river runs " * 200_000  # 3 MB
AFFORDABLE = 600_000  # characters, tokenised for one refused request; a window of 128 tokens, a thousand times
TEXTS = {
    "words": "The river Aare runs through Bern. " * 1500,
    "one word": "a" * 50_000,
    "spaces": "king " * 40 + " " * 30_000 + "Anna Müller lives in Zürich. " * 900,
    "scripts": "名前 😀 naïve\u200b café №5! " * 2000,
}


class Tokenised:
    """How many characters a tokenizer was given."""

    def __init__(self, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.characters = 0
        call = type(tokenizer).__call__

        def spy(own: Any, *texts: Any, **options: Any) -> Any:
            self.characters += sum(map(len, texts))
            return call(own, *texts, **options)

        monkeypatch.setattr(type(tokenizer), "__call__", spy)


def say(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


@pytest.mark.parametrize(
    ("family", "task", "value"),
    [
        ("gpt2", "text-generation", HUGE),
        ("qwen2", "conversational", say(HUGE)),
        ("bert", "text-classification", HUGE),
        ("bert", "text-classification", {"text": "short", "text_pair": HUGE}),
        ("bert", "token-classification", HUGE),
        ("roberta", "fill-mask", f"<mask> {HUGE}"),
        ("bert", "sentence-embeddings", HUGE),
        ("bert", "question-answering", {"question": "Who?", "context": HUGE}),
        ("bart", "summarization", HUGE),
        ("t5", "translation", HUGE),
    ],
)
def test_a_text_far_past_the_context_is_refused_for_little(
    family: str, task: str, value: Any, tiny: Tiny, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve(tiny(family, task), task, ROOM)
    tokenised = Tokenised(served.service.loaded.tokenizer, monkeypatch)
    status, answer = served({"inputs": [value]})
    assert status in (400, 413), answer
    assert answer["error"]["code"] in ("text_too_long", "prompt_too_long")
    assert answer["error"]["where"] == "inputs[0]"
    assert tokenised.characters < AFFORDABLE


@pytest.mark.parametrize("task", ["text-classification", "sentence-embeddings", "token-classification"])
def test_a_long_text_is_cut_for_little(task: str, tiny: Tiny, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve(tiny("bert", task), task, ROOM)
    expected = served.ok(HUGE[:6000], truncation=True)
    tokenised = Tokenised(served.service.loaded.tokenizer, monkeypatch)
    assert served.ok(HUGE, truncation=True) == expected
    assert tokenised.characters < AFFORDABLE


def test_a_question_that_leaves_no_room_is_refused_for_little(
    tiny: Tiny, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve(tiny("bert", "question-answering"), "question-answering", ROOM)
    tokenised = Tokenised(served.service.loaded.tokenizer, monkeypatch)
    error = served.refused({"question": HUGE, "context": "Anna lives in Bern."}, max_question_len=10**9)
    assert (error["code"], error["where"]) == ("prompt_too_long", "inputs[0].question")
    assert tokenised.characters < AFFORDABLE


def test_a_long_question_is_cut_for_little(tiny: Tiny, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve(tiny("bert", "question-answering"), "question-answering", ROOM)
    context = "Anna lives in Bern."
    expected = served.ok({"question": HUGE[:6000], "context": context})
    tokenised = Tokenised(served.service.loaded.tokenizer, monkeypatch)
    assert served.ok({"question": HUGE, "context": context}) == expected
    assert tokenised.characters < AFFORDABLE


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta", "albert", "deberta-v2", "gpt2", "llama", "t5"])
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("side", ["right", "left"])
def test_cutting_first_gives_the_tokens_of_cutting_last(family: str, text: str, side: str, tiny: Tiny) -> None:
    task = {"encoder": "feature-extraction", "decoder": "text-generation"}.get(FAMILIES[family].kind, "translation")
    tokenizer = AutoTokenizer.from_pretrained(tiny(family, task))
    tokenizer.truncation_side = side
    options = {"truncation": True, "max_length": 512}
    assert Tokenizing(tokenizer, 512)(text, **options)["input_ids"] == tokenizer(text, **options)["input_ids"]


def test_a_long_text_that_may_well_fit_is_tokenised_once(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny("gpt2", "text-generation"))
    tokenised = Tokenised(tokenizer, monkeypatch)
    assert len(Tokenizing(tokenizer, 8192)(TEXTS["words"][:32_000], verbose=False)["input_ids"]) > 1000
    assert tokenised.characters == 32_000


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "opt", "bloom", "llama", "qwen2", "gemma"])
@pytest.mark.parametrize("special", [True, False])
def test_ids_alone_are_those_of_a_call(family: str, special: bool, tiny: Tiny) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny(family, "text-generation"))
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenize = Tokenizing(tokenizer, 1 << 17)
    for text in ("", "Bern </s> <|endoftext|> \n\n", *TEXTS.values()):
        tokenize("left over", truncation=True, max_length=1, padding="max_length")
        assert tokenize.ids(text, special) == tokenizer(text, add_special_tokens=special)["input_ids"]


def test_a_tokenizer_that_encodes_its_own_way_is_asked_for_ids(tiny: Tiny) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny("gpt2", "text-generation"))

    class Own(type(tokenizer)):  # type: ignore[misc]
        def __call__(self, text: str, **options: Any) -> Any:
            return super().__call__(text.upper(), **options)

    expected = tokenizer("BERN")["input_ids"]
    tokenizer.__class__ = Own
    assert Tokenizing(tokenizer, 512).ids("bern") == expected


def test_a_text_that_normalising_shortens_is_answered(tiny: Tiny, serve: Serve) -> None:
    served = serve(tiny("bert", "text-classification"), "text-classification")
    assert served.ok("A good" + " " * 60_000 + "film.") == served.ok("A good film.")


def test_more_inputs_than_the_queue_holds_are_refused(tiny: Tiny, serve: Serve) -> None:
    served = serve(tiny("bert", "text-classification"), "text-classification", Limits(queue_size=3))
    assert "more sequences than the 3" in served.refused(["a"] * 4)["message"]


MOST = [
    ("sentence-similarity", {"source_sentence": "a", "sentences": ["b"] * MOST_EMBEDDED}, {}),
    ("text-ranking", {"query": "a", "texts": ["b"] * MOST_EMBEDDED}, {}),
    ("zero-shot-classification", "a", {"candidate_labels": [f"{n}" for n in range(MOST_WORDS)]}),
]


@pytest.mark.parametrize(("task", "inputs", "parameters"), MOST, ids=[each[0] for each in MOST])
def test_as_many_as_a_list_may_have_are_answered(
    task: str, inputs: Any, parameters: dict[str, Any], tiny: Tiny, serve: Serve
) -> None:
    """The longest list that the schema takes asks no more rows of the queue than one request may."""
    answer = serve(tiny("bert", task), task).ok(inputs, **parameters)
    assert len(answer["labels"] if isinstance(answer, dict) else answer) in (MOST_EMBEDDED, MOST_WORDS)


ANSWERS = [
    (
        "roberta",
        "question-answering",
        {"question": "Where?", "context": "Anna lives in Zürich. " * 60},
        {"top_k": 4000},
    ),
    ("roberta", "question-answering", {"question": "Where?", "context": "Who knows?\n\t\x01"}, {"top_k": 10}),
    ("bert", "fill-mask", "The [MASK] of [MASK] is [MASK].", {"top_k": 300}),
    ("roberta", "fill-mask", 'The <mask> said: "ünï".', {"top_k": 300}),
    ("bert", "feature-extraction", "The river runs. " * 12, {}),
    ("bert", "sentence-embeddings", ["The river runs."] * 40, {}),
    ("bert", "text-classification", ["A good film."] * 9, {"top_k": None}),
    ("bert", "token-classification", 'Anna "Ä" lives in Bern. ' * 9, {"ignore_labels": []}),
    ("gpt2", "text-generation", "Hello\n" * 9, {"max_new_tokens": 40}),
    (
        "gpt2",
        "text-generation",
        "Hello",
        {"max_new_tokens": 40, "do_sample": True, "num_return_sequences": 8, "seed": 1},
    ),
    ("gpt2", "text-generation", "Hello", {"max_new_tokens": 40, "return_details": True, "top_n_tokens": 20}),
    ("qwen2", "conversational", [say("Hello there!")], {"max_new_tokens": 20}),
    ("t5", "translation", "The house is old.", {"max_new_tokens": 40, "return_details": True}),
]


@pytest.mark.parametrize(("family", "task", "inputs", "parameters"), ANSWERS)
def test_no_answer_is_larger_than_it_is_counted(
    family: str, task: str, inputs: Any, parameters: dict[str, Any], tiny: Tiny, serve: Serve
) -> None:
    served = serve(tiny(family, task), task)
    counted = count(served, {"inputs": inputs, "parameters": parameters})
    answer = served.ok(inputs, **parameters)
    told = len(json.dumps(answer, ensure_ascii=False, separators=(",", ":")).encode())
    envelope = 40 * (1 + (len(inputs) if isinstance(inputs, list) else 1))
    assert told <= counted + envelope
    assert counted < 60 * told + 20_000  # and it is no mere guess, or legitimate requests would be refused


def count(served: Served, payload: dict[str, Any]) -> int:
    """What the answer to a request may take."""
    task = served.service.task
    call = parse(payload, task.schema)
    rows = [task.encode(value, call.parameters, item) for item, value in enumerate(call.inputs)]
    return sum(task.answer_bytes(value, call.parameters, group) for value, group in zip(call.inputs, rows, strict=True))


@pytest.mark.parametrize(
    ("family", "task", "inputs", "parameters"),
    [
        (
            "roberta",
            "question-answering",
            {"question": "Where?", "context": "Anna lives in Bern. " * 90},
            {"top_k": 10**6, "max_answer_len": 300},
        ),
        ("bert", "fill-mask", ["[MASK] " * 100] * 10, {"top_k": 10**6}),
        ("bert", "feature-extraction", ["The river runs. " * 12] * 200, {}),
        ("gpt2", "text-generation", ["Hi"] * 8, {"return_details": True, "top_n_tokens": 20, "max_new_tokens": 99}),
        ("qwen2", "conversational", [say("Hi " * 20)] * 60, {"num_return_sequences": 16, "do_sample": True}),
    ],
)
def test_a_huge_answer_is_refused_before_it_is_computed(
    family: str,
    task: str,
    inputs: Any,
    parameters: dict[str, Any],
    tiny: Tiny,
    serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    served = serve(tiny(family, task), task, Limits(max_answer_bytes=1 << 20))
    monkeypatch.setattr(served.service.engine, "submit", None)
    status, answer = served({"inputs": inputs, "parameters": parameters})
    assert (status, answer["error"]["code"]) == (413, "payload_too_large")
    assert f"{1 << 20:,}" in answer["error"]["message"]
    assert answer["error"]["hint"]


def counts(schema: dict[str, Any], place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every integer, list and text of a JSON schema, also those inside."""
    if schema.get("type") in ("integer", "array", "string") and "enum" not in schema and "const" not in schema:
        yield place, schema
    for inner in [*schema.get("anyOf", []), *filter(None, [schema.get("items")])]:
        yield from counts(inner, place)
    for name, inner in schema.get("properties", {}).items():
        yield from counts(inner, f"{place}.{name}")


@pytest.mark.parametrize("task", TASKS)
def test_every_count_of_every_parameter_has_a_bound(task: str) -> None:
    document = TASKS[task].parameters.model_json_schema()
    found = list(counts(document, task))
    assert found or task in ("feature-extraction", "sentence-embeddings")  # which have choices only
    for place, schema in found:
        limits = {"integer": ("maximum", "exclusiveMaximum"), "array": ("maxItems",), "string": ("maxLength",)}
        assert any(limit in schema for limit in limits[schema["type"]]), (place, schema)


def test_a_conversation_has_a_bound() -> None:
    assert "maxItems" in TASKS["conversational"].adapter.json_schema()


@pytest.mark.parametrize(
    "stop", [["a"] * (MOST_STOPS + 1), [f"{n}" for n in range(430_000)], "a" * (MOST_STOP_CHARACTERS + 1), ["b" * 300]]
)
def test_more_stop_texts_than_anybody_needs_are_refused(stop: Any, tiny: Tiny, serve: Serve) -> None:
    error = serve(tiny("gpt2", "text-generation"), "text-generation").refused("Hello", stop=stop, max_new_tokens=2)
    assert (error["code"], error["where"].split(".")[:2]) == ("invalid_parameter", ["parameters", "stop"])


def test_as_many_and_as_long_stop_texts_as_there_may_be(tiny: Tiny, serve: Serve) -> None:
    served = serve(tiny("gpt2", "text-generation"), "text-generation")
    stops = ["a" * (MOST_STOP_CHARACTERS - 2) + f"{n:02}" for n in range(MOST_STOPS)]
    assert served.ok("Hello", stop=stops, max_new_tokens=8) == served.ok("Hello", max_new_tokens=8)


def test_a_search_with_beams_looks_at_the_end_of_its_texts_only(
    tiny: Tiny, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve(tiny("gpt2", "text-generation"), "text-generation")
    lengths: list[int] = []
    decode = type(served.service.loaded.tokenizer).decode

    def spy(own: Any, tokens: Any, **options: Any) -> Any:
        lengths.append(len(tokens))
        return decode(own, tokens, **options)

    monkeypatch.setattr(type(served.service.loaded.tokenizer), "decode", spy)
    served.ok("Hello", num_beams=2, stop="zq", max_new_tokens=100, min_new_tokens=100)
    assert len(lengths) > 100
    assert max(lengths[:-1]) <= 40


@pytest.mark.parametrize(
    "options", [{}, {"truncation": False, "max_length": None}, {"truncation": True, "max_length": 9}]
)
@pytest.mark.parametrize(
    "texts",
    [
        *(("Anna lives in Zürich, by the river.",), ("Where is it?", "By the long river, Anna.")),
        *(("By the long river, Anna.", ""), ("", "Anna lives in Zürich.")),
    ],
)
@pytest.mark.parametrize("family", ["bert", "roberta", "deberta-v2", "mpnet", "albert", "llama", "bloom", "t5"])
def test_features_are_those_of_the_tokenizers_own_call(
    family: str, texts: tuple[str, ...], options: dict[str, Any], tiny: Tiny
) -> None:
    """One way for texts whose offsets nobody asks for, whatever was asked of the tokenizer before."""
    tokenizer = AutoTokenizer.from_pretrained(tiny(family, FAMILIES[family].tasks[0]))
    tokenizing = Tokenizing(tokenizer, 128)
    for side in ("right", "left", "right"):
        found = dict(tokenizing(*texts, side=side, **options))
        tokenizer.truncation_side = side
        expected = tokenizer(*texts, **options)
        tokenizer.truncation_side = "right"
        assert found.pop("cut", False) is any(each.overflowing for each in expected.encodings)
        assert found == dict(expected)
        tokenizing(texts[0], truncation=True, max_length=4)
