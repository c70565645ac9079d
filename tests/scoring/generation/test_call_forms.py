"""Calls of tools in every form that models write, whole and in pieces; and how a form is known from its template."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from scoring.generation.call_forms import marks_as_text, marks_of_speech, thought_marks, tool_format
from scoring.generation.pythonic_calls import json_of
from scoring.generation.replies import ReplyForm, whole
from tests.scoring.generation.test_replies import in_pieces
from tests.tool_models import TEMPLATES

CITY, DAYS = '{"city": "Bern", "days": 2}', '{"city": "a\\"}b", "days": 1}'
NESTED = '{"city": "a(\\"]", "days": [1, {"k": null}]}'
TYPED = frozenset({("look", "city", "string"), ("look", "days", "integer")})
_CALL, _SEP, _END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
_DEEPSEEK = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")
_KIMI, _GIVEN, _KIMI_END = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"

#: Form, what a model writes, the text that is left, its calls, and ids that it gave them itself.
CASES: list[tuple[str, str, str, list[tuple[str, str]], list[str]]] = [
    (
        "mistral_args",
        f"I look.[TOOL_CALLS]look[CALL_ID]abcdef123[ARGS]{CITY}[TOOL_CALLS]now[CALL_ID]bbbbbbbbb[ARGS]{{}}",
        "I look.",
        [("look", CITY), ("now", "{}")],
        ["abcdef123", "bbbbbbbbb"],
    ),
    ("mistral_args", f"[TOOL_CALLS]look[ARGS]{DAYS}", "", [("look", DAYS)], []),
    ("mistral_args", f"[TOOL_CALLS]look{CITY}", "", [("look", CITY)], []),
    ("mistral_args", "[TOOL_CALLS]look[ARGS]null", "[TOOL_CALLS]look[ARGS]null", [], []),
    (
        "deepseek_v3",
        f"{_DEEPSEEK[0]}{_CALL}function{_SEP}look\n```json\n{CITY}\n```{_END}\n{_CALL}function{_SEP}now\n```json\n{{}}\n"
        f"```{_END}{_DEEPSEEK[1]}",
        "",
        [("look", CITY), ("now", "{}")],
        [],
    ),
    (
        "deepseek_v31",
        f"Yes.{_DEEPSEEK[0]}{_CALL}look{_SEP}{DAYS}{_END}{_CALL}now{_SEP}{{}}{_END}{_DEEPSEEK[1]}Done",
        "Yes.Done",
        [("look", DAYS), ("now", "{}")],
        [],
    ),
    ("deepseek_v31", f"{_DEEPSEEK[0]}{_CALL}rm{_SEP}{{}}{_END}", f"{_DEEPSEEK[0]}{_CALL}rm{_SEP}{{}}{_END}", [], []),
    (
        "deepseek_v32",
        '<｜DSML｜function_calls>\n<｜DSML｜invoke name="look">\n<｜DSML｜parameter name="city" string="true">12'
        '</｜DSML｜parameter>\n<｜DSML｜parameter name="days" string="false">2</｜DSML｜parameter>\n</｜DSML｜invoke>\n'
        '<｜DSML｜invoke name="now">\n</｜DSML｜invoke>\n</｜DSML｜function_calls>',
        "",
        [("look", '{"city": "12", "days": 2}'), ("now", "{}")],
        [],
    ),
    (
        "kimi_k2",
        f"<|tool_calls_section_begin|>{_KIMI}functions.look:0{_GIVEN}{CITY}{_KIMI_END}{_KIMI}functions.now:1{_GIVEN}"
        f"{{}}{_KIMI_END}<|tool_calls_section_end|>",
        "",
        [("look", CITY), ("now", "{}")],
        ["functions.look:0", "functions.now:1"],
    ),
    ("kimi_k2", f"{_KIMI}functions.now:3{_GIVEN}{{}}{_KIMI_END}", "", [("now", "{}")], ["functions.now:3"]),
    (
        "minimax_m2",
        'I look.\n<minimax:tool_call>\n<invoke name="look">\n<parameter name="city">Bern</parameter>\n'
        '<parameter name="days">2</parameter>\n</invoke>\n<invoke name="now">\n</invoke>\n</minimax:tool_call>',
        "I look.\n",
        [("look", CITY), ("now", "{}")],
        [],
    ),
    ("minimax_m2", '<minimax:tool_call><invoke name="rm">', '<minimax:tool_call><invoke name="rm">', [], []),
    (
        "seed_oss",
        "<seed:tool_call>\n<function=look>\n<parameter=city>Bern</parameter>\n<parameter=days>2</parameter>\n</function>\n"
        "</seed:tool_call>",
        "",
        [("look", CITY)],
        [],
    ),
    (
        "step3",
        '<｜tool_calls_begin｜>\n<｜tool_call_begin｜>function<｜tool_sep｜><steptml:invoke name="look">\n'
        '<steptml:parameter name="city">Bern</steptml:parameter>\n'
        '<steptml:parameter name="days">2</steptml:parameter>\n'
        '</steptml:invoke><｜tool_call_end｜>\n<｜tool_call_begin｜>function<｜tool_sep｜><steptml:invoke name="now">'
        "</steptml:invoke><｜tool_call_end｜>\n<｜tool_calls_end｜>",
        "",
        [("look", CITY), ("now", "{}")],
        [],
    ),
    (
        "longcat",
        f'<longcat_tool_call>{{"name": "look", "arguments": {CITY}}}</longcat_tool_call>',
        "",
        [("look", CITY)],
        [],
    ),
    (
        "cohere",
        f'<|START_ACTION|>[\n    {{"tool_call_id": "0", "tool_name": "look", "parameters": {CITY}}},\n'
        '    {"tool_call_id": "1", "tool_name": "now", "parameters": {}}\n]<|END_ACTION|>',
        "",
        [("look", CITY), ("now", "{}")],
        [],
    ),
    (
        "nemotron",
        f'<TOOLCALL>[{{"name": "look", "arguments": {CITY}}}, {{"name": "now", "arguments": {{}}}}]</TOOLCALL>',
        "",
        [("look", CITY), ("now", "{}")],
        [],
    ),
    ("jamba", f'<tool_calls>[\n{{"name": "look", "arguments": {DAYS}}}\n]</tool_calls>', "", [("look", DAYS)], []),
    (
        "granite",
        f'<|tool_call|>[{{"name": "look", "arguments": {CITY}}}, {{"name": "now"}}]',
        "",
        [("look", CITY), ("now", "{}")],
        [],
    ),
    ("phi4_mini", f'<|tool_call|>{{"name": "look", "arguments": {CITY}}}<|/tool_call|>', "", [("look", CITY)], []),
    (
        "lfm2",
        "<|tool_call_start|>[look(city='Bern', days=2), now()]<|tool_call_end|>Wait.",
        "Wait.",
        [("look", CITY), ("now", "{}")],
        [],
    ),
    (
        "olmo3",
        '<function_calls>\nlook(city="Bern", days=2)\nnow()\n</function_calls>',
        "",
        [("look", CITY), ("now", "{}")],
        [],
    ),
    ("olmo3", "<function_calls>rm()</function_calls>", "<function_calls>rm()</function_calls>", [], []),
    (
        "apertus",
        f'<|tools_prefix|>[{{"look": {CITY}}}, {{"now": {{}}}}]<|tools_suffix|>',
        "",
        [("look", CITY), ("now", "{}")],
        [],
    ),
    ("pythonic", "[look(city='a(\"]', days=[1, {'k': None}]), now()]", "", [("look", NESTED), ("now", "{}")], []),
    ("pythonic", "[1, 2] and more", "[1, 2] and more", [], []),
    ("pythonic", "[rm(a=1)]", "[rm(a=1)]", [], []),
]


@pytest.mark.parametrize(("name", "text", "said", "calls", "ids"), CASES)
def test_calls_of_every_form_are_the_same_in_any_pieces(
    name: str, text: str, said: str, calls: list[tuple[str, str]], ids: list[str]
) -> None:
    form = ReplyForm(tools=("look", "now"), format=tool_format(TEMPLATES[name]), typed=TYPED)
    found = whole(form, [1, 2], 0, text)
    told = found.get("tool_calls", [])
    assert found["text"] == said
    assert [call["function"]["name"] for call in told] == [function for function, _ in calls]
    for call, (_, arguments) in zip(told, calls, strict=True):
        assert call["function"]["arguments"] == arguments
    assert [call["id"] for call in told] == (ids or [call["id"] for call in told])
    assert all(len(call["id"]) == 9 for call in told if not ids)
    for number in range(20):
        assert in_pieces(form, text, random.Random(number)) == found


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_form_is_known_from_its_template(name: str) -> None:
    form = tool_format(TEMPLATES[name])
    assert form is not None
    assert form.name == name
    assert {form.begin, form.end} - {""} <= marks_as_text(TEMPLATES[name])


_ALSO = [
    ("tools tool_declare<|im_middle|>", "kimi_k2"),
    ("tools functools[", "phi4_mini"),
    ("tools <|tool_call_start|>", "lfm2"),
    ("tools [TOOL_CALLS] [ARGS]", "mistral_args"),
    ("tools <tool_call>f[ARGS]{}", "hermes"),
    ("tools <start_function_call>", "gemma"),
    ("tools ipython", "llama3"),
]


@pytest.mark.parametrize(("template", "name"), _ALSO)
def test_a_form_is_known_by_other_signs_too(template: str, name: str) -> None:
    form = tool_format(template)
    assert form is not None
    assert form.name == name


def test_marks_of_thoughts_and_of_speech() -> None:
    assert thought_marks("<seed:think></seed:think>") == ("<seed:think>", "</seed:think>")
    assert thought_marks("[THINK][/THINK]") == ("[THINK]", "[/THINK]")
    assert marks_of_speech("<|START_RESPONSE|>a<|END_RESPONSE|>") == {"<|START_RESPONSE|>", "<|END_RESPONSE|>"}
    form = ReplyForm(
        True, marks=("<|START_THINKING|>", "<|END_THINKING|>"), dropped=("<|END_RESPONSE|>", "<|START_RESPONSE|>")
    )
    answer = "<|START_THINKING|>Hm.<|END_THINKING|><|START_RESPONSE|>Yes.<|END_RESPONSE|>"
    assert whole(form, [1], 0, answer) == {"reasoning_content": "Hm.", "text": "Yes."}


_LITERALS: list[tuple[str, Any]] = [
    ("1", 1),
    (" -2.5 ", -2.5),
    ("True", True),
    ("false", False),
    ("None", None),
    ("'it\\'s \\n \\x41 \\u00e9 \\d'", "it's \n A é \\d"),
    ('"a\\u00fc\\ud83d\\ude00"', "aü😀"),
    ("[1, 'a', (2, 3,), {'k': True},]", [1, "a", [2, 3], {"k": True}]),
    ("{'True': True}", {"True": True}),
    ("[1,,2]", "[1,,2]"),
    ("1 + 1", "1 + 1"),
    ("nan", "nan"),
    ("NaN", "NaN"),
    ("1e999", "1e999"),
    ("'\\ud800'", "'\\ud800'"),
    ("__import__('os')", "__import__('os')"),
    ("[" * 100_000, "[" * 100_000),
    ("'" * 3, "'''"),
    ("", ""),
]


@pytest.mark.parametrize(("text", "value"), _LITERALS)
def test_literals_of_python_become_json(text: str, value: Any) -> None:
    assert json.loads(json_of(text)) == value
