"""Answers are split into thought, text and calls, whatever pieces they come in."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import pytest

from scoring.generation.call_forms import marks_as_text, tool_format
from scoring.generation.channels import MARKS as CHANNEL_MARKS
from scoring.generation.replies import ReplyForm, ReplyParser, parser_of, whole

HERMES = tool_format("{{ tools }} <tool_call>")
MISTRAL = tool_format("{{ tools }} [TOOL_CALLS]")
LLAMA = tool_format("{{ tools }} <|python_tag|>")
PLAIN = tool_format("{% for tool in tools %}")
NAMES = ("now", "get_weather")
CALLS, LISTS, BARE, JSON = (ReplyForm(tools=NAMES, format=form) for form in (HERMES, MISTRAL, LLAMA, PLAIN))
TYPED = frozenset(
    {("get_weather", "days", "array"), ("get_weather", "days", "integer"), ("get_weather", "city", "string")}
    | {("now", "exact", "boolean")}
)
CHANNELS = ReplyForm(
    tools=NAMES, format=tool_format("{{ tools }} <|channel|>analysis<|message|> <|python_tag|>"), channels=True
)
TAGGED = ReplyForm(tools=NAMES, format=tool_format("{{ tools }} <tool_call><function=a><parameter=b>"), typed=TYPED)
KEYED = ReplyForm(True, tools=NAMES, format=tool_format("{{ tools }} <tool_call><arg_key>"), typed=TYPED)
WEATHER = '{"name": "get_weather", "arguments": {"city": "Zürich \\"1\\"", "days": [1, {"a": "}"}]}}'
ARGUMENTS = '{"city": "Zürich \\"1\\"", "days": [1, {"a": "}"}]}'
NOW = '{"name": "now", "arguments": {}}'

#: Form, text, and what it is: thought, text, calls.
_GEMMA = "{{ tools }} <|tool_call>call:f{}<tool_call|><|channel>thought\n<channel|>"
BRACED = ReplyForm(
    True,
    False,
    NAMES,
    tool_format(_GEMMA),
    marks=("<|channel>thought\n", "<channel|>"),
    dropped=(*marks_as_text(_GEMMA),),
)
CASES: list[tuple[ReplyForm, str, tuple[str | None, str, list[tuple[str, str]]]]] = [
    (ReplyForm(), "<think>a</think> {b", (None, "<think>a</think> {b", [])),
    (ReplyForm(thinks=True), "<think>\nHm <b>.\n</think>\n\nYes.", ("\nHm <b>.\n", "Yes.", [])),
    (ReplyForm(thinks=True), "No <think>x</think>", (None, "No <think>x</think>", [])),
    (ReplyForm(thinks=True, opened=True), "Hm </thin k></think> Yes", ("Hm </thin k>", "Yes", [])),
    (ReplyForm(thinks=True, opened=True), "Hm </thi", ("Hm </thi", "", [])),
    (
        CALLS,
        f"<tool_call>\n{WEATHER}\n</tool_call>",
        (None, "", [("get_weather", ARGUMENTS)]),
    ),
    (
        ReplyForm(True, False, NAMES, HERMES),
        f"<think>t</think>I look. <tool_call>{NOW}</tool_call>\n<tool_call>{WEATHER}</tool_call>\nDone",
        ("t", "I look. Done", [("now", "{}"), ("get_weather", ARGUMENTS)]),
    ),
    (CALLS, "a <tool_call>b</tool_call>", (None, "a <tool_call>b</tool_call>", [])),
    (CALLS, 'a <tool_call>{"name": "rm"}x', (None, 'a <tool_call>{"name": "rm"}x', [])),
    (
        CALLS,
        f'<tool_call>{{"name": "rm", <tool_call>{NOW}</tool_call>',
        (None, '<tool_call>{"name": "rm", ', [("now", "{}")]),
    ),
    (
        TAGGED,
        "<tool_call><function=rm><tool_call><function=now></function></tool_call>",
        (None, "<tool_call><function=rm>", [("now", "{}")]),
    ),
    (CALLS, 'a <tool_call>{"name": "now"', (None, "a ", [("now", "")])),
    (CALLS, "a <tool_ca", (None, "a <tool_ca", [])),
    (CALLS, '{"name": "now"}', (None, "", [("now", "{}")])),
    (
        LISTS,
        f"[{NOW}, {WEATHER}]",
        (None, "", [("now", "{}"), ("get_weather", ARGUMENTS)]),
    ),
    (LISTS, f"[TOOL_CALLS] [{NOW}]", (None, "", [("now", "{}")])),
    (LISTS, "[1, 2]", (None, "[1, 2]", [])),
    (
        BARE,
        '{"name": "now", "parameters": {"a": 1}}; {"type": "function", "name": "now", "parameters": {}}',
        (None, "", [("now", '{"a": 1}'), ("now", "{}")]),
    ),
    (
        JSON,
        '{"arguments": {"b": null}, "name": "now"}',
        (None, "", [("now", '{"b": null}')]),
    ),
    (
        JSON,
        '{"name": "now", "arguments": "{\\"a\\": 1}"}',
        (None, "", [("now", '{"a": 1}')]),
    ),
    (JSON, ' {"answer": [1]} ok', (None, ' {"answer": [1]} ok', [])),
    (JSON, "Hello {", (None, "Hello {", [])),
    (
        TAGGED,
        'I look.\n<tool_call>\n<function=get_weather>\n<parameter=city>\nZürich "1"\n<b>\n</parameter>\n'
        "<parameter=days>\n[1, 2]\n</parameter>\n</function>\n</tool_call>\n"
        "<tool_call>\n<function=now>\n</function>\n</tool_call>",
        (None, "I look.\n", [("get_weather", '{"city": "Zürich \\"1\\"\\n<b>", "days": [1, 2]}'), ("now", "{}")]),
    ),
    (
        TAGGED,
        "<function=now>\n<parameter=zone>\n1\n</parameter>\n<parameter=exact>\nTrue\n</parameter>\n</function>",
        (None, "", [("now", '{"zone": "1", "exact": true}')]),
    ),
    (TAGGED, "a <tool_call>\n<function=rm>\n</function>", (None, "a <tool_call>\n<function=rm>\n</function>", [])),
    (TAGGED, "a <tool_call>{", (None, "a <tool_call>{", [])),
    (TAGGED, "<tool_call>\n<function=now>\n<parameter=zone>\n1", (None, "", [("now", "")])),
    (
        KEYED,
        "<think>t</think>\n<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Bern</arg_value>\n"
        "<arg_key>days</arg_key><arg_value>7</arg_value>\n</tool_call>\n<tool_call>now</tool_call>Done",
        ("t", "Done", [("get_weather", '{"city": "Bern", "days": 7}'), ("now", "{}")]),
    ),
    (replace(BRACED, dropped=()), "<|channel>a<tool_call|>", (None, "<|channel>a<tool_call|>", [])),
    (BRACED, "a<tool_call|> b<|ch<channel|>annel> <|tool_", (None, "a b<|channel> <|tool_", [])),
    (BRACED, "<|channel>thought\na<|tool_call>b<channel|>c<|channel>", ("ab", "c", [])),
    (BRACED, '<|channel>I<|tool_call>call:rm{a:<|"|>b<|"|>}<tool_call|>.', (None, "Icall:rm{a:b}.", [])),
    (
        BRACED,
        'a<channel|><|tool_call>call:get_weather{city:<|"|>Bern<|"|>}<tool_call|><tool_call|>b<|"|>',
        (None, "ab", [("get_weather", '{"city": "Bern"}')]),
    ),
    (
        CHANNELS,
        "<|channel|>analysis<|message|>Hm <b>.<|end|><|start|>assistant<|channel|>final<|message|>Yes.",
        ("Hm <b>.", "Yes.", []),
    ),
    (
        CHANNELS,
        "<|channel|>analysis<|message|>t<|end|><|start|>assistant<|channel|>commentary<|message|>I look.<|end|>"
        '<|start|>assistant<|channel|>commentary to=functions.now <|constrain|>json<|message|>{"a": 1}<|call|>',
        ("t", "I look.", [("now", '{"a": 1}')]),
    ),
    (
        CHANNELS,
        ' to=functions.get_weather<|channel|>commentary json<|message|>{"city": "<|"}<|call|>',
        (None, "", [("get_weather", '{"city": "<|"}')]),
    ),
    (CHANNELS, "<|channel|>commentary to=functions.rm<|message|>x<|call|>", (None, "x", [])),
    (CHANNELS, "<|channel|>analysis<|message|>t<|en", ("t<|en", "", [])),
    (CHANNELS, "<|channel|>final<|mess", (None, "", [])),
    (CHANNELS, "Hello <|end", (None, "Hello <|end", [])),
    (
        replace(CHANNELS, dropped=CHANNEL_MARKS),
        "<|channel|>analysis<|message|>t<|mess<|message|>age|><|end|><|channel|>final<|message|>a<|constrain|> b",
        ("t<|message|>", "a b", []),
    ),
    (replace(CHANNELS, dropped=CHANNEL_MARKS), "Hello <|end|> <|call|>you<|call", (None, "Hello  you<|call", [])),
    (CHANNELS, "to be", (None, "to be", [])),
    (CHANNELS, NOW, (None, "", [("now", "{}")])),
    (KEYED, "get_weather is <arg_key>", (None, "get_weather is <arg_key>", [])),
    (KEYED, "a <tool_call>rm\n</tool_call>", (None, "a <tool_call>rm\n</tool_call>", [])),
]


@pytest.mark.parametrize(("form", "text", "parts"), CASES)
def test_an_answer_has_the_same_parts_in_any_pieces(form: ReplyForm, text: str, parts: Any) -> None:
    thought, said, calls = parts
    found = whole(form, [1, 2], 0, text)
    assert (found.get("reasoning_content"), found["text"]) == (thought, said)
    told = [(call["function"]["name"], call["function"]["arguments"]) for call in found.get("tool_calls", [])]
    assert told == calls
    assert len({call["id"] for call in found.get("tool_calls", [])}) == len(calls)
    for number in range(20):
        assert in_pieces(form, text, random.Random(number)) == found


def in_pieces(form: ReplyForm, text: str, rng: random.Random) -> Any:
    parser, found = parser_of(form, [1, 2], 0), []
    while text:
        size = rng.choice([1, 1, 2, 5])
        found += parser.push(text[:size])
        text = text[size:]
    return put_together([*found, *parser.finish()])


def put_together(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """What a client makes of a stream's deltas."""
    made: dict[str, Any] = {"text": ""}
    calls: list[dict[str, Any]] = []
    for part in parts:
        for name in ("text", "reasoning_content"):
            if name in part:
                made[name] = made.get(name, "") + part[name]
        for delta in part.get("tool_calls", ()):
            if delta["index"] == len(calls):
                calls.append(
                    {
                        "id": delta["id"],
                        "type": "function",
                        "function": {"name": delta["function"]["name"], "arguments": ""},
                    }
                )
            calls[delta["index"]]["function"]["arguments"] += delta["function"]["arguments"]
    return {**made, "tool_calls": calls} if calls else made


def test_arguments_are_told_while_they_come() -> None:
    parser = ReplyParser(CALLS, [], 0)
    told = [part for piece in f"<tool_call>{WEATHER}</tool_call>" for part in parser.push(piece)]
    assert len(told) > 30
    assert json.loads(put_together(told)["tool_calls"][0]["function"]["arguments"])["days"][0] == 1
