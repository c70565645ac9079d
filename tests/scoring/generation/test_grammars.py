"""Answers bound to a grammar keep it, and nobody beside them notices."""

from __future__ import annotations

import json
import random
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from scoring.config import Limits
from scoring.decoder.decoder import Decoder
from scoring.generation.scheduler import Scheduler
from scoring.schema.structured import MOST_GRAMMAR
from tests.conftest import Tiny
from tests.scoring.conftest import Served
from tests.scoring.generating import PROMPTS
from tests.scoring.generation.schemas import schemas

TASK = "text-generation"
SLOTS = 8
CONTEXT = 2048
OBJECT = {
    "type": "object",
    "properties": {"a": {"type": "integer", "minimum": -9, "maximum": 99}, "b": {"enum": ["é", "zwei", None]}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
COMPACT = {"disable_any_whitespace": True}

Check = Callable[[str], bool]


def valid(schema: Any) -> Check:
    return lambda text: not list(Draft202012Validator(schema).iter_errors(json.loads(text)))


#: Every form of asking, and what an answer then is.
FORMS: list[tuple[dict[str, Any], Check]] = [
    ({"guided_json": OBJECT}, valid(OBJECT)),
    ({"guided_json": json.dumps(OBJECT), "guided_whitespace_pattern": " ?"}, valid(OBJECT)),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": OBJECT}}}, valid(OBJECT)),
    ({"structured_outputs": {"json": OBJECT, **COMPACT}}, lambda text: valid(OBJECT)(text) and " " not in text),
    ({"guided_choice": ["yes", "nein", "ça va"]}, lambda text: text in ("yes", "nein", "ça va")),
    ({"guided_regex": r"[0-9]{3}/[a-c]{2}é"}, lambda text: bool(re.fullmatch("[0-9]{3}/[a-c]{2}é", text))),
    ({"guided_grammar": 'root ::= "a" ("b" | "c"){2,5} "d"'}, lambda text: bool(re.fullmatch("a[bc]{2,5}d", text))),
    (
        {"structured_outputs": {"grammar": 'start: "x" Y\nY: /[yz]{2}/'}},
        lambda text: bool(re.fullmatch("x[yz]{2}", text)),
    ),
]
HOW = [
    {},
    {"do_sample": True, "temperature": 3.0},
    {"do_sample": True, "top_k": 3, "temperature": 2.0, "repetition_penalty": 1.3},
    {"do_sample": True, "top_p": 0.5},
]


def roomy(made: Served) -> Served:
    """A model with a context in which every answer finds its end."""
    loaded = made.service.loaded
    if loaded.model.config.model_type not in ("gpt2", "bloom"):  # whose positions are counted
        loaded.model.config.max_position_embeddings = CONTEXT
        object.__setattr__(loaded, "context_length", CONTEXT)
    return made


def served(tiny: Tiny, family: str = "qwen2", late: bool = False, **limits: Any) -> Served:
    """A model on slots; `late` reads tokens a step later, as on a GPU."""
    made = roomy(Served(tiny(family, TASK), TASK, Limits(**limits)))
    loaded = made.service.loaded
    loaded.runtime.decoder = Decoder(loaded.model, SLOTS, loaded.context_length)
    slots = made.service.task.slots(made.service.deployment.limits)
    assert slots is not None
    slots._late = late
    return made


@pytest.fixture(scope="module", params=["slots", "late", "generate"])
def model(request: pytest.FixtureRequest, tiny: Tiny) -> Iterator[Served]:
    """One model, on slots, on slots that are read late, and without any."""
    if request.param == "generate":
        made = roomy(Served(tiny("qwen2", TASK), TASK))
    else:
        made = served(tiny, late=request.param == "late")
    yield made
    assert made.service.drain(20)


def texts(model: Served, prompt: str, **parameters: Any) -> list[str]:
    most = min(1000, model.service.loaded.context_length - 60)
    answer = model.ok(prompt, max_new_tokens=most, return_full_text=False, **parameters)
    return [entry["generated_text"] for entry in answer]


# -- what is kept --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(len(FORMS)))
def test_an_answer_is_what_it_is_bound_to(number: int, model: Served) -> None:
    asked, holds = FORMS[number]
    for seed, how in enumerate(HOW):
        sampled = {"seed": seed} if how else {}
        for text in texts(model, PROMPTS[seed], **asked, **how, **sampled, num_return_sequences=2 if how else 1):
            assert holds(text), text


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma", "bloom"])
def test_tokenizers_of_every_kind_are_bound(family: str, tiny: Tiny) -> None:
    made = served(tiny, family)
    for asked, holds in FORMS[3:6]:
        [text] = texts(made, "Hello", **asked, do_sample=True, seed=5, temperature=2.0)
        assert holds(text), text
    assert made.service.drain(20)


def test_bound_rows_and_free_rows_share_steps_and_answer_as_alone(tiny: Tiny) -> None:
    for late in (False, True):
        model = served(tiny, late=late)
        rng = random.Random(late)
        asks = [
            {"inputs": rng.choice(PROMPTS), "parameters": {**FORMS[n % len(FORMS)][0], **HOW[n % 4], "seed": n}}
            if n % 2
            else {"inputs": rng.choice(PROMPTS), "parameters": {**HOW[n // 2 % 4], "seed": n}}
            for n in range(32)
        ]
        for ask in asks:
            ask["parameters"] |= {"max_new_tokens": 60, "return_full_text": False}
        alone = [model(ask) for ask in asks]
        with ThreadPoolExecutor(16) as pool:
            together = list(pool.map(model, asks))
        assert [status for status, _ in alone] == [200] * 32
        assert together == alone
        assert model.service.drain(20)


def test_five_hundred_schemas_of_many_kinds_are_kept(tiny: Tiny) -> None:
    """A part of them here; `python -m benchmarks.grammars --schemas` asks for all."""
    model = roomy(Served(tiny("qwen2", TASK), TASK, Limits(queue_size=1024, max_batch_tokens=2**20)))
    model.service.loaded.runtime.decoder = Decoder(model.service.loaded.model, 64, CONTEXT)
    keeps_schemas(model, schemas()[::21])


def keeps_schemas(model: Served, asked: list[dict[str, Any]]) -> None:
    def answer(numbered: tuple[int, dict[str, Any]]) -> str:
        number, schema = numbered
        parameters = {"structured_outputs": {"json": schema, **COMPACT}, "max_new_tokens": 1500, "seed": number}
        how = {"do_sample": True, "temperature": 1.0 + number % 3, "return_full_text": False}
        status, told = model({"inputs": "The", "parameters": parameters | how})
        assert status == 200, (schema, told)
        return str(told[0]["generated_text"])

    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(answer, enumerate(asked)))
    for schema, text in zip(asked, answers, strict=True):
        Draft202012Validator(schema).validate(json.loads(text))
    assert model.service.drain(20)


# -- beside what else a request asks for ---------------------------------------------------------------------------


def test_a_stream_adds_up_and_stop_texts_and_the_most_tokens_cut(model: Served) -> None:
    asked = {"guided_regex": "[a-c]{20}[0-9]{20}", "return_full_text": False}
    [whole] = texts(model, "The", guided_regex=asked["guided_regex"])
    body: dict[str, Any] = {"inputs": "The", "parameters": asked | {"max_new_tokens": 60}}
    _, events = model(body | {"stream": True})
    assert "".join(event["token"]["text"] for event in events[:-2]) == whole
    body["options"] = {"usage": True}
    _, cut = model({**body, "parameters": asked | {"max_new_tokens": 5}})
    assert cut["usage"]["finish_reasons"] == ["length"]
    assert whole.startswith(cut["answer"][0]["generated_text"])
    _, stopped = model({**body, "parameters": asked | {"max_new_tokens": 60, "stop": whole[25]}})
    assert stopped["answer"][0]["generated_text"] == whole[: whole.index(whole[25])]
    _, ended = model(body)
    assert ended["usage"]["finish_reasons"] == ["stop"]


def test_logprobs_are_the_models_own(model: Served) -> None:
    """As vLLM reports them: before the mask, which may leave none of the likeliest."""
    bound = model.ok("The", max_new_tokens=1, guided_choice=["é"], return_details=True, top_n_tokens=3)[0]["details"]
    free = model.ok("The", max_new_tokens=1, return_details=True, top_n_tokens=3)[0]["details"]
    assert bound["top_tokens"][0] == free["top_tokens"][0]
    assert bound["tokens"][0]["logprob"] <= free["tokens"][0]["logprob"] < 0


def test_an_ended_grammar_ends_the_text_whatever_else_holds_it_up(model: Served) -> None:
    assert texts(model, "The", guided_choice=["a"], min_new_tokens=50) == ["a"]
    assert texts(model, "The", guided_choice=["a"], ignore_eos=True) == ["a"]


def test_a_bound_row_that_is_cancelled_leaves_its_slot(tiny: Tiny) -> None:
    model = served(tiny)
    body = {"inputs": "The", "parameters": {"guided_regex": "[a-z]+[0-9]{400}", "max_new_tokens": 100}, "stream": True}
    stream: Any = model.service.answer(json.dumps(body)).body
    next(iter(stream))
    stream.close()
    assert model.service.drain(20)


# -- what cannot be kept -------------------------------------------------------------------------------------------

_PLACES: list[tuple[dict[str, Any], str, str]] = [
    ({"guided_json": {"properties": {"a": {"items": {"not": {}}}}}}, "not", "guided_json.properties.a.items"),
    ({"guided_json": {"anyOf": [{"type": "null"}, {"type": "strng"}]}}, "strng", "guided_json.anyOf[1]"),
    ({"guided_json": {"$ref": "#/$defs/x", "$defs": {"x": {"if": {}}}}}, "if", "guided_json.$defs.x"),
    ({"guided_json": {"$ref": "https://example.org/s"}}, "", "guided_json"),
    ({"guided_json": "{"}, "not JSON", "guided_json"),
    ({"guided_json": "[1]"}, "JSON object", "guided_json"),
    ({"guided_json": {"enum": []}}, "Unsatisfiable", "guided_json"),
    ({"guided_regex": "a(b"}, "unclosed group", "guided_regex"),
    ({"guided_regex": "(?=a)b"}, "look", "guided_regex"),
    ({"guided_grammar": "start: foo"}, "foo", "guided_grammar"),
    ({"guided_grammar": "root ::= ("}, "", "guided_grammar"),
    ({"guided_grammar": "root ::= " + "(" * 9000}, "", "guided_grammar"),
    ({"guided_choice": []}, "at least 1", "guided_choice"),
    ({"guided_regex": "a", "guided_choice": ["a"]}, "both bind", "guided_choice"),
    ({"response_format": {"type": "json_schema"}}, "needs a schema", "response_format"),
    ({"guided_json": {"description": "x" * MOST_GRAMMAR}}, "characters", "guided_json"),
    ({"guided_regex": "a", "num_beams": 2}, "beams", "guided_regex"),
]


@pytest.mark.parametrize(("asked", "says", "place"), _PLACES)
def test_what_cannot_be_kept_is_refused_with_its_place(
    asked: dict[str, Any], says: str, place: str, tiny: Tiny, serve: Any
) -> None:
    error = serve(tiny("qwen2", TASK), TASK).refused("The", **asked)
    assert error["where"] == f"parameters.{place}", error
    assert says in error["message"]


def test_a_schema_is_kept_as_far_as_it_goes_unless_it_is_strict(tiny: Tiny, serve: Any) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer", "not": {"const": 1}}}, "required": ["a"]}
    asked = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema | {"additionalProperties": False}}}
    model = serve(tiny("qwen2", TASK), TASK)
    model.ok("The", response_format=asked, max_new_tokens=20)
    asked["json_schema"]["strict"] = True  # type: ignore[index]
    assert model.refused("The", response_format=asked)["where"].endswith("schema.properties.a")


_COSTLY = {
    "a chain of rules": {
        "guided_grammar": "start: r0\n" + "".join(f"r{i}: r{i + 1}\n" for i in range(6000)) + 'r6000: "b"'
    },
    "a chain of references": {
        "guided_json": {
            "$ref": "#/$defs/a0",
            "$defs": {f"a{i}": {"$ref": f"#/$defs/a{i + 1}"} for i in range(4000)} | {"a4000": {"type": "string"}},
        }
    },
    "many properties": {"guided_json": {"properties": {f"p{i}": {} for i in range(5000)}}},
    "many alternatives": {"guided_json": {"anyOf": [{"properties": {f"p{i}": {}}} for i in range(3000)]}},
    "products of alternatives": {
        "guided_json": {"allOf": [{"anyOf": [{"properties": {f"p{i}{j}": {}}} for j in range(3)]} for i in range(8)]}
    },
    "counted repeats": {"guided_regex": "((a{1,1000}b){1,1000}c){1,1000}"},
    "a long pattern": {"guided_json": {"type": "string", "pattern": "^(a?){300}a{300}$"}},
}


@pytest.mark.parametrize("kind", _COSTLY)
def test_a_grammar_that_costs_is_answered_or_refused_while_others_are_served(kind: str, tiny: Tiny) -> None:
    """No grammar ends the process, and none holds up rows beside it for long: the longest gap is of one step."""
    model = served(tiny)
    model.ok("The", max_new_tokens=2)
    status: list[int] = []
    asked = {"inputs": "The", "parameters": _COSTLY[kind] | {"max_new_tokens": 3}}
    asker = threading.Thread(target=lambda: status.append(model(asked)[0]))
    asker.start()
    while asker.is_alive():
        model.ok("The", max_new_tokens=2)
    assert status[0] in (200, 400)
    assert model.service.drain(20)


def test_grammars_are_compiled_once_and_few_are_kept(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    model = served(tiny)
    grammars = model.service.task.grammars  # type: ignore[attr-defined]
    made: list[str] = []
    compile_one = grammars._compile
    monkeypatch.setattr(grammars, "_compile", lambda one: made.append(one.text) or compile_one(one))
    monkeypatch.setattr("scoring.generation.grammars._KEPT", 2)
    for choice in ("a", "a", "b", "a", "c", "b"):
        texts(model, "The", guided_choice=[choice])
    assert made == ['["a"]', '["b"]', '["c"]', '["b"]']
    assert len(grammars._known) == 2
    assert model.service.drain(20)


def test_rows_in_a_tight_pool_lose_no_token_whenever_tokens_are_read(tiny: Tiny) -> None:
    """Bound, free and biased rows, some of which give up their slots and some of which end early."""
    model = served(tiny)
    task, decoder = model.service.task, model.service.loaded.runtime.decoder
    kinds: list[dict[str, Any]] = [{}, {"guided_regex": "[a-f ]{40}"}, {"logit_bias": {"70": 4.0}}]
    kinds += [{"return_details": True}]
    kinds += [
        {"guided_choice": ["yes", "nein"]},
        HOW[1] | {"seed": 5, "guided_regex": "[0-9]{30}"},
        HOW[3] | {"seed": 3},
    ]
    prompt = "The quick brown fox jumps over the lazy dog"

    def answers(late: bool, capacity: int) -> list[Any]:
        scheduler = Scheduler(task, decoder, capacity, reuse=False)
        scheduler._late = late
        done: dict[int, Any] = {}
        waiting = [
            (number, task.encode(prompt, task.schema.parse_parameters({"max_new_tokens": 40, **kind}), 0)[0])
            for number, kind in enumerate(kinds)
        ]
        while waiting or scheduler.active:
            while waiting and scheduler.fits(waiting[0][1]):
                number, row = waiting.pop(0)
                scheduler.add(row, partial(done.__setitem__, number))
            scheduler.step()
        return [done[number][0] for number in range(len(kinds))]

    alone = answers(False, 10**6)
    before = model.service.statistics()["preemptions"]
    assert answers(True, 10**6) == alone == answers(False, 7 * 64) == answers(True, 7 * 64)
    assert model.service.statistics()["preemptions"] >= before + 2
    assert model.service.drain(20)
