"""Calls as Gemma writes them: their notation becomes JSON, their grammars keep it, and their marks stay text."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from tokenizers import AddedToken

from scoring.generation.braced_calls import BracedCall, Braces, value_of
from scoring.generation.call_forms import marks_as_text, thought_marks, tool_format
from scoring.generation.detokenizer import text_of
from scoring.generation.grammars import Grammars
from scoring.generation.mark_texts import keep_as_text
from scoring.generation.replies import ReplyForm, whole
from scoring.generation.tool_formats import must_call, thought_rule
from scoring.schema.tools import Tool
from tests import tiny_tokenizers

QUOTE = '<|"|>'
TEMPLATE = '{% if tools %}<|tool>{% endif %}<|tool_call>call:f{a:<|"|>b<|"|>}<tool_call|><|channel>thought\n<channel|>'
MARKS = ("<|tool_call>", "<tool_call|>", QUOTE, "<|channel>", "<channel|>")
SCHEMA: dict[str, Any] = {
    "type": "object",
    "$defs": {"Day": {"enum": ["mon", "sun"]}},
    "properties": {
        "city": {"type": "string"},
        "day": {"$ref": "#/$defs/Day"},
        "count": {"type": "integer", "minimum": 1, "maximum": 9},
        "tags": {"type": "array", "items": {"type": "string"}},
        "place": {"type": "object", "properties": {"lat": {"type": "number"}}, "required": ["lat"]},
        "either": {"anyOf": [{"type": "boolean"}, {"type": "string"}]},
        "free": {"type": "object"},
        "any": {},
    },
    "required": ["city"],
}


def tool(name: str = "get_weather", parameters: dict[str, Any] | None = None) -> Tool:
    own = SCHEMA if parameters is None else parameters
    return Tool.model_validate({"type": "function", "function": {"name": name, "parameters": own}})


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    made = tiny_tokenizers.gemma(256)
    made.add_tokens([AddedToken(mark, special=True, normalized=False) for mark in MARKS], special_tokens=True)
    made.add_special_tokens({"additional_special_tokens": ["<|channel>"]}, replace_extra_special_tokens=False)
    return made


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('<|"|>a, {b}: "c"<|"|>', 'a, {b}: "c"'),
        ("12", 12),
        ("-1.5e3", -1500.0),
        ("true", True),
        ("null", None),
        ("[]", []),
        ('[1,<|"|>x<|"|>,{a:[false]}]', [1, "x", {"a": [False]}]),
        ('{<|"|>key<|"|>:<|"|><|"|>}', {"key": ""}),
        ('"plain \\" JSON"', 'plain " JSON'),
        ("bare words", "bare words"),
        ('<|"|>no end', "no end"),
        ("[" * 100_000, "[" * 100_000),
        ("NaN", "NaN"),
        ("1e999", "1e999"),
    ],
)
def test_a_value_becomes_json(text: str, value: Any) -> None:
    assert value_of(text, QUOTE) == value


def test_a_call_is_told_value_by_value() -> None:
    call, told = BracedCall(QUOTE), list[str]()
    for character in 'call:get_weather{city:<|"|>Zürich, {x}<|"|>,count:3,place:{lat:1.5}}':
        assert not call.ended
        call.take(character)
        told += [call.told] if call.told not in told[-1:] else []
    assert call.ended
    assert call.name == "get_weather"
    assert json.loads(call.told) == {"city": "Zürich, {x}", "count": 3, "place": {"lat": 1.5}}
    assert told[:3] == ["", '{"city": "Zürich, {x}"', '{"city": "Zürich, {x}", "count": 3']
    assert all(later.startswith(earlier) for earlier, later in pairwise(told))


def test_an_answer_has_its_thought_its_text_and_its_calls() -> None:
    form, marks = tool_format(TEMPLATE), thought_marks(TEMPLATE)
    assert form is not None and marks is not None
    assert form.name == "gemma"
    answer = (
        "<|channel>thought\nLet me see.<channel|>I ask."
        '<|tool_call>call:get_weather{city:<|"|>Bern<|"|>}<tool_call|><|tool_call>call:now{}<tool_call|>'
    )
    found = whole(ReplyForm(True, False, ("get_weather", "now"), form, marks=marks), [1], 0, answer)
    assert found["reasoning_content"] == "Let me see."
    assert found["text"] == "I ask."
    assert [(call["function"]["name"], call["function"]["arguments"]) for call in found["tool_calls"]] == [
        ("get_weather", '{"city": "Bern"}'), ("now", "{}")
    ]  # fmt: skip
    assert whole(ReplyForm(False, False, ("now",), form), [1], 0, "<|tool_call>call:other{}")["text"] == (
        "<|tool_call>call:other{}"
    )


def test_marks_are_text_of_a_tokenizer_that_holds_them_for_special(tokenizer: Any) -> None:
    text = 'a<|tool_call>call:f{a:<|"|>b<|"|>}<tool_call|>'
    before = tokenizer(text)["input_ids"]
    assert "<|tool_call>" not in tokenizer.decode(before, skip_special_tokens=True)
    keep_as_text(tokenizer, marks_as_text(TEMPLATE))
    assert tokenizer(text)["input_ids"] == before
    assert text_of(tokenizer, before) == text


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ('{city:<|"|>Bern, {x}<|"|>}', True),
        ('{any:[<|"|>a<|"|>,1],city:<|"|>a<|"|>,count:3,day:<|"|>sun<|"|>,tags:[<|"|>x<|"|>,<|"|>y<|"|>]}', True),
        ('{city:<|"|>a<|"|>,either:true,free:{a:{b:null}},place:{lat:1.5}}', True),
        ('{city:<|"|>a<|"|>,either:<|"|>x<|"|>}', True),
        ("{count:3}", False),
        ('{city:<|"|>a<|"|>,count:12}', False),
        ('{city:<|"|>a<|"|>,day:<|"|>tue<|"|>}', False),
        ("{city:3}", False),
    ],
)
def test_a_grammar_keeps_the_schema_over_tokens_of_the_marks(tokenizer: Any, text: str, kept: bool) -> None:
    keep_as_text(tokenizer, marks_as_text(TEMPLATE))
    form, marks = tool_format(TEMPLATE), thought_marks(TEMPLATE)
    assert form is not None
    grammars = Grammars(tokenizer, len(tokenizer), [tokenizer.eos_token_id])
    grammar = grammars.start(must_call(form, [tool(), tool("now", {})], True, thought_rule("", marks), {}))
    answer = f"<|channel>thought\nHm.<channel|><|tool_call>call:get_weather{text}<tool_call|>"
    ids = tokenizer.backend_tokenizer.encode(answer, add_special_tokens=False).ids
    assert {tokenizer.convert_tokens_to_ids(mark) for mark in MARKS if mark != QUOTE} <= set(ids)
    assert (grammar.matcher.try_consume_tokens(ids) == len(ids)) == kept


def test_a_thought_ends_with_its_token_where_a_grammar_follows(tokenizer: Any) -> None:
    """As Qwen's </think>, which its tokenizer does not hold for special, and llguidance does."""
    own = tiny_tokenizers.qwen2(256)
    own.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in ("<think>", "</think>")])
    own_marks = thought_marks("<think></think>")
    form = tool_format("{{ tools }}")
    assert form is not None
    grammars = Grammars(own, len(own), [own.eos_token_id])
    grammar = grammars.start(must_call(form, [tool("now", {})], False, thought_rule("", own_marks), {}))
    ids = own("<think>a</think>")["input_ids"]
    assert own.convert_tokens_to_ids("</think>") in ids
    assert grammar.matcher.try_consume_tokens(ids) == len(ids)


def test_rules_of_a_function_without_arguments() -> None:
    assert Braces(QUOTE).rules(0, tool("now", {"type": "object", "properties": {}, "additionalProperties": False}), {})[
        0
    ] == ('call0: "call:now{"  "}"')


def test_schemas_that_refer_to_themselves_many_times_have_few_rules() -> None:
    tree = {"type": "object", "properties": {f"k{number}": {"$ref": "#"} for number in range(6)}}
    tool = Tool.model_validate({"type": "function", "function": {"name": "f", "parameters": tree}})
    assert len(Braces(QUOTE).rules(0, tool, {})) < 4000
