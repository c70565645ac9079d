"""Conversations with tools and thoughts, by templates of every kind, over models that say what they are bound to."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonschema import Draft202012Validator
from transformers import AutoModelForCausalLM, AutoTokenizer

from scoring.decoder.decoder import Decoder
from scoring.generation.braced_calls import Braces
from scoring.generation.channels import MARKS
from scoring.generation.tagged_calls import Tags
from tests.conftest import Tiny
from tests.scoring.conftest import Served
from tests.scoring.generation.test_replies import put_together
from tests.tool_models import CONTEXT, TEMPLATES, THINKING, with_template

TASK = "conversational"
CHAT = [{"role": "user", "content": "What is the weather in Zürich?"}]
CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Zürich", "Bern"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "Weather.", "parameters": CITY}},
    {"type": "function", "function": {"name": "now"}},
]
NAMED = {"type": "function", "function": {"name": "get_weather"}}


def served(tiny: Tiny, tmp_path: Path, template: str, slots: bool = True) -> Served:
    """A tiny model with another template."""
    made = Served(with_template(tiny("qwen2", TASK), tmp_path / "model", template), TASK)
    if slots:
        made.service.loaded.runtime.decoder = Decoder(made.service.loaded.model, 4, CONTEXT)
    return made


@pytest.fixture(scope="module", params=[*TEMPLATES])
def model(request: pytest.FixtureRequest, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    yield from _of_form(request.param, tiny, tmp_path_factory)


@pytest.fixture(scope="module", params=["hermes", "json"])
def usual(request: pytest.FixtureRequest, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A model of one of two forms, for what is the same in all."""
    yield from _of_form(request.param, tiny, tmp_path_factory)


def _of_form(name: str, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    made = served(tiny, tmp_path_factory.mktemp(name), TEMPLATES[name])
    assert made.service.metadata()["tools"] == name
    yield made
    assert made.service.drain(20)


def ask(model: Served, chat: Any = CHAT, **parameters: Any) -> dict[str, Any]:
    parameters = {"max_new_tokens": 600, "return_full_text": False, "tools": TOOLS} | parameters
    status, answer = model({"inputs": chat, "parameters": parameters, "options": {"usage": True}})
    assert status == 200, answer
    [entry] = answer["answer"]
    return entry | {"finish_reason": answer["usage"]["finish_reasons"][0]}


def checked(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """The calls of an answer, whose arguments have to be what the tools say."""
    assert answer["finish_reason"] == "tool_calls", answer
    assert answer["generated_text"] == ""
    for call in answer["tool_calls"]:
        arguments = json.loads(call["function"]["arguments"])
        schema = CITY if call["function"]["name"] == "get_weather" else {"const": {}}
        Draft202012Validator(schema).validate(arguments)
        assert re.fullmatch(r"[a-zA-Z0-9]{9}|functions\.\w+:\d+", call["id"])
    calls: list[dict[str, Any]] = answer["tool_calls"]
    return calls


def test_a_tool_that_must_be_called_is_called(model: Served) -> None:
    how = {"do_sample": True, "seed": 1, "temperature": 2.0}
    [one] = checked(ask(model, tool_choice="required", parallel_tool_calls=False, **how))
    [own] = checked(ask(model, tool_choice=NAMED, **how))
    assert own["function"]["name"] == "get_weather"
    assert one["function"]["name"] in ("get_weather", "now")
    several = ask(model, tool_choice="required", max_new_tokens=200, **how)
    assert several["tool_calls"]
    assert several["finish_reason"] == "length" or checked(several)


def test_an_answer_keeps_its_format_or_calls_tools(model: Served) -> None:
    schema = {
        "type": "object",
        "properties": {"sky": {"enum": ["clear", "grey"]}},
        "required": ["sky"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    how = {"response_format": form, "do_sample": True, "temperature": 2.0, "parallel_tool_calls": False}
    own = model.service.task.tool_format
    begin = own.begin if own.marked else "[" if own.listed else ""
    kinds = set()
    for seed in range(8 if own.name == "json" else 2):
        wanted = ("{" if begin else "", begin)[seed % 2]
        first = model.service.task.call_tokenizer(wanted, add_special_tokens=False)["input_ids"][:1] if wanted else []
        bias = {str(token): 100.0 for token in first}
        told = ask(model, seed=seed, logit_bias=bias, max_new_tokens=600, **how)
        if "tool_calls" in told:
            checked(told)
        else:
            Draft202012Validator(schema).validate(json.loads(told["generated_text"]))
        kinds.add("tool_calls" in told)
    assert kinds == {True, False}
    [call] = checked(ask(model, response_format=form, tool_choice=NAMED))  # there is no text for a format to bind
    assert call["function"]["name"] == "get_weather"


def test_streamed_calls_add_up_to_the_answers(model: Served) -> None:
    parameters = {"max_new_tokens": 600, "return_full_text": False, "tools": TOOLS, "tool_choice": NAMED}
    how = {"do_sample": True, "seed": 2, "temperature": 2.0}
    status, events = model({"inputs": CHAT, "parameters": parameters | how, "stream": True})
    assert status == 200
    [entry] = events[-2]["answer"]
    made = put_together([event["token"] for event in events[:-2]])
    assert made["tool_calls"] == entry["tool_calls"]
    assert made["text"] == entry["generated_text"] == ""
    # Between tags or quotes a value is told once it is whole.
    form = model.service.task.tool_format
    assert len(events) > (3 if form.style.whole else 8)


def test_calls_and_answers_of_tools_go_back_through_the_template(model: Served) -> None:
    [call] = checked(ask(model, tool_choice=NAMED))
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    answer = {"role": "tool", "content": "21 °C", "tool_call_id": call["id"], "name": "get_weather"}
    told = ask(model, [*CHAT, message, answer], max_new_tokens=4, tool_choice="none")
    assert told["finish_reason"] in ("length", "stop")
    task = model.service.task
    [row] = task.encode(
        task.schema.parse_input([*CHAT, message, answer], ""), task.schema.parse_parameters({"tools": TOOLS}), 0
    )
    prompt = task.tokenizer.decode(row.features["input_ids"])
    assert "21 °C" in prompt
    assert json.loads(call["function"]["arguments"])["city"] in prompt


def test_what_is_not_called_is_text(usual: Served) -> None:
    free = ask(usual, max_new_tokens=12, tool_choice="none", tools=None)
    auto = ask(usual, max_new_tokens=12)
    assert set(free) == {"generated_text", "finish_reason"}
    assert auto["finish_reason"] == "length"
    answer = ask(usual, response_format={"type": "json_object"}, do_sample=True, seed=1, max_new_tokens=60)
    assert answer["finish_reason"] == "length" or isinstance(json.loads(answer["generated_text"]), dict)


_REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"tool_choice": {"type": "function", "function": {"name": "rm"}}}, "tool_choice"),
    ({"tools": [], "tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": "sometimes"}, "tool_choice"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
    ({"tools": [{"type": "code_interpreter"}]}, "tools.0.type"),
    ({"tool_choice": "required", "guided_regex": "a"}, "guided_regex"),
    ({"chat_template_kwargs": {"chat_template": "{{ 7 * 7 }}"}}, "chat_template_kwargs.chat_template"),
    ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs.tokenize"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
]


@pytest.mark.parametrize(("asked", "place"), _REFUSED)
def test_what_cannot_be_called_is_refused(asked: dict[str, Any], place: str, usual: Served) -> None:
    error = usual.refused(CHAT, **({"tools": TOOLS} | asked))
    assert error["where"].startswith(f"parameters.{place}"), error


def test_a_tools_schema_that_cannot_be_kept_is_refused_with_its_place(model: Served) -> None:
    bad = {"type": "object", "properties": {"a": {"not": {"const": 1}}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": bad, "strict": True}}
    error = model.refused(CHAT, tools=[TOOLS[0], tool], tool_choice="required")
    assert error["where"] == "parameters.tools[1].function.parameters.properties.a"
    tool["function"]["strict"] = False  # type: ignore[index]
    model.ok(CHAT, tools=[tool], tool_choice="required", max_new_tokens=4)


def test_a_text_between_tags_keeps_no_strict_limit(model: Served) -> None:
    own = {"city": {"type": "string", "maxLength": 4}}
    city = {"type": "object", "properties": own, "required": ["city"], "additionalProperties": False}
    tool = {"type": "function", "function": {"name": "f", "parameters": city, "strict": True}}
    form = model.service.task.tool_format
    if not isinstance(form.style, Tags | Braces):
        [call] = ask(model, tools=[tool], tool_choice="required", parallel_tool_calls=False)["tool_calls"]
        assert len(json.loads(call["function"]["arguments"])["city"]) <= 4
        return
    error = model.refused(CHAT, tools=[tool], tool_choice="required")
    assert error["where"] == "parameters.tools[0].function.parameters.properties.city"


def test_a_template_without_tools_says_so(tiny: Tiny, serve: Any) -> None:
    plain = serve(tiny("llama", TASK), TASK)
    assert plain.service.metadata()["tools"] is None
    assert "takes no tools" in plain.refused(CHAT, tools=TOOLS)["message"]
    plain.ok(CHAT, tools=[], max_new_tokens=2)


@pytest.mark.parametrize("slots", [True, False])
def test_a_thought_is_told_apart_and_may_be_turned_off(slots: bool, tiny: Tiny, tmp_path: Path) -> None:
    model = served(tiny, tmp_path, THINKING, slots)
    told = model.service.metadata()["reasoning"]
    assert told == {"marks": ["<think>", "</think>"], "switch": "enable_thinking"} or list(told["marks"]) == [
        *told["marks"]
    ]
    grammar = {"guided_grammar": 'start: "<think>" /[a-z]{3}/ "</think>\\n\\n" /[0-9]{3}/'}
    off = {"chat_template_kwargs": {"enable_thinking": False}}
    bound = {"guided_regex": "[0-9]{3}", "tools": None}
    without = ask(model, **bound, **off)
    assert without["generated_text"].isdigit()
    assert "reasoning_content" not in without
    # The tiny model's own choice seldom is a thought: bound to one, as text, it is split all the same.
    text = ask(model, **grammar, tools=None, **off)["generated_text"]
    assert text.startswith("<think>")
    (tmp_path / "opened").mkdir()
    inside = served(tiny, tmp_path / "opened", THINKING + "{% if add_generation_prompt %}<think>\n{% endif %}", slots)
    answer = ask(inside, **bound, do_sample=True, seed=3, temperature=5.0, max_new_tokens=300)
    thought = answer["reasoning_content"]
    assert thought
    assert answer["finish_reason"] == "length" or answer["generated_text"].strip().isdigit()
    for made in (model, inside):
        assert made.service.drain(20)


_EFFORTS = [
    # template, effort asked for, what the prompt ends with
    (_EFFORT := "{% if reasoning_effort is defined %}effort={{ reasoning_effort }}{% endif %}", "high", "effort=high"),
    (_EFFORT, None, "assistant\n"),
    ("", "high", "assistant\n"),
    ("", "none", "<think>\n\n</think>\n\n"),
    (_EFFORT, "none", "</think>\n\n"),
    ("{% if not (thinking | default(false)) %}</think>{% else %}<think>{% endif %}", "low", "<think>"),
]


@pytest.mark.parametrize(("written", "effort", "end"), _EFFORTS)
def test_an_effort_reaches_the_template_in_its_own_words(
    written: str, effort: str | None, end: str, tiny: Tiny, tmp_path: Path
) -> None:
    switched = THINKING if "thinking" not in written else THINKING.replace("enable_thinking", "absent")
    model = served(tiny, tmp_path, switched + "{% if add_generation_prompt %}" + written + "{% endif %}", False)
    task = model.service.task
    [row] = task.encode(
        task.schema.parse_input(CHAT, ""), task.schema.parse_parameters({"reasoning_effort": effort}), 0
    )
    prompt = task.tokenizer.decode(row.features["input_ids"])
    assert prompt.endswith(end) or (effort == "none" and end in prompt), prompt
    assert model.service.drain(20)


def test_an_effort_that_the_template_cannot_make_is_refused(tiny: Tiny, tmp_path: Path, serve: Any) -> None:
    plain = serve(tiny("llama", TASK), TASK)
    plain.ok(CHAT, reasoning_effort="none", max_new_tokens=2)
    assert plain.refused(CHAT, reasoning_effort="low")["where"] == "parameters.reasoning_effort"
    always = served(tiny, tmp_path, THINKING.replace("enable_thinking", "absent"), False)
    assert "cannot turn" in always.refused(CHAT, reasoning_effort="none")["message"]
    assert always.service.drain(20)


def test_values_refer_to_any_place_of_their_schema(model: Served) -> None:
    tree = {"type": "object", "properties": {"on": {"type": "boolean"}, "below": {"$ref": "#"}}, "required": ["on"]}
    schema = {**tree, "additionalProperties": False}
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    how = {"tool_choice": "required", "do_sample": True, "seed": 1, "parallel_tool_calls": False}
    [call] = ask(model, tools=tools, **how)["tool_calls"]
    Draft202012Validator(schema).validate(json.loads(call["function"]["arguments"]))


def test_a_schema_that_is_none_is_no_failure(usual: Served) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"type": None}}}}}]
    ask(usual, tools=tools, max_new_tokens=2)
    parameters = {"max_new_tokens": 2, "tools": tools, "tool_choice": "required"}
    status, answer = usual({"inputs": CHAT, "parameters": parameters})
    assert (status, answer["error"]["code"]) == (400, "invalid_parameter")


def _in_channels(tiny: Tiny, folder: Path) -> Path:
    """A tiny model whose answers come in channels, with the marks as special tokens."""
    template = TEMPLATES["json"] + "{% if false %}<|channel|>analysis<|message|>{{ reasoning_effort }}{% endif %}"
    made = with_template(tiny("qwen2", TASK), folder, template)
    tokenizer, model = AutoTokenizer.from_pretrained(made), AutoModelForCausalLM.from_pretrained(made)
    tokenizer.add_special_tokens({"additional_special_tokens": [*MARKS]})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    tokenizer.chat_template = template
    model.save_pretrained(made)
    tokenizer.save_pretrained(made)
    return made


def test_an_answer_in_channels_is_split(tiny: Tiny, tmp_path: Path) -> None:
    model = Served(_in_channels(tiny, tmp_path / "model"), TASK)
    task, told = model.service.task, model.service.metadata()
    assert (told["tools"], told["reasoning"]["marks"][0]) == ("harmony", "<|channel|>analysis<|message|>")
    said = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes."
    call = '<|start|>assistant to=functions.now<|channel|>commentary <|constrain|>json<|message|>{"a": 1}<|call|>'
    [row] = task.encode(task.schema.parse_input(CHAT, ""), task.schema.parse_parameters({"tools": TOOLS}), 0)
    tokens = task.tokenizer.encode(said + call, add_special_tokens=False)
    assert len(set(tokens) & set(task.tokenizer.convert_tokens_to_ids([*MARKS]))) == len(MARKS)
    [entry] = task.decode(CHAT, task.schema.parse_parameters({"return_full_text": False}), [row], [[tokens]])
    assert (entry["reasoning_content"], entry["generated_text"]) == ("Hm.", "Yes.")
    [made] = entry["tool_calls"]
    assert made["function"] == {"name": "now", "arguments": '{"a": 1}'}
    assert ask(model, guided_regex="[0-9]{3}", tools=None)["generated_text"].isdigit()
    assert model.service.drain(20)
