"""Calls and thoughts that grammars bind, in every form: marks that are tokens are written by them, never by letters."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import pytest
from tokenizers import AddedToken

from scoring.generation.call_forms import THINK, ToolFormat, marks_as_text, tool_format
from scoring.generation.detokenizer import Detokenizer, text_of
from scoring.generation.grammars import Grammar, Grammars
from scoring.generation.mark_texts import keep_as_text
from scoring.generation.mark_tokens import by_tokens, mark_tokens
from scoring.generation.replies import ReplyForm, whole
from scoring.generation.tagged_calls import Tags, typed
from scoring.generation.tool_formats import call_or, framed, may_call, must_call, thought_rule
from scoring.schema.structured import Constraint
from scoring.schema.tools import Tool
from tests import tiny_tokenizers
from tests.tool_models import TEMPLATES

CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Bern", "Chur"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS = [
    Tool.model_validate({"type": "function", "function": {"name": "look", "parameters": CITY, "strict": True}}),
    Tool.model_validate({"type": "function", "function": {"name": "now"}}),
]
_MARK = re.compile(r"<[^<>\s]+>|｜\w+｜|\[[A-Z_]+\]")
MARKED = [name for name in TEMPLATES if (form := tool_format(TEMPLATES[name])) and form.marked]
KINDS = {"special": True, "added": False, "letters": None}


class Bound:
    """A tokenizer with a form's marks as tokens, special or not, or as letters; and grammars over it."""

    def __init__(self, name: str, kind: str) -> None:
        form = tool_format(TEMPLATES[name])
        assert form is not None
        self.form: ToolFormat = form
        self.tokenizer: Any = tiny_tokenizers.qwen2(300)
        self.marks = sorted({mark for mark in marks_as_text(TEMPLATES[name]) | {*THINK} if _MARK.fullmatch(mark)})
        self.letters = {mark: self.encode(mark) for mark in self.marks}
        if (special := KINDS[kind]) is not None:
            added = [AddedToken(mark, special=special, normalized=False) for mark in self.marks]
            self.tokenizer.add_tokens(added, special_tokens=special)
        keep_as_text(self.tokenizer, self.marks)
        self.tokens = mark_tokens(self.tokenizer, self.marks, [self.tokenizer.eos_token_id])
        self.grammars = Grammars(self.tokenizer, len(self.tokenizer), [self.tokenizer.eos_token_id])

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def allowed(self, grammar: Grammar) -> list[int]:
        words = self.grammars.masks([grammar])[0].tolist()
        return [token for token in range(len(self.tokenizer)) if words[token // 32] >> token % 32 & 1]

    def first(self, grammar: Grammar) -> set[str]:
        """The first characters of what may come, or the whole mark."""
        by_token = {token: mark for mark, token in self.tokens.items()}
        return {by_token.get(token) or text_of(self.tokenizer, [token])[:1] for token in self.allowed(grammar)}

    def write(self, grammar: Grammar, seed: int = 0) -> list[int]:
        """Tokens to the answer's end, each one of those allowed."""
        rng, made = random.Random(seed), list[int]()
        while not grammar.ended:
            assert len(made) < 5000
            made.append(rng.choice(self.allowed(grammar)))
            self.grammars.advance([grammar], made[-1:])
        return [token for token in made if token != self.tokenizer.eos_token_id]

    def takes(self, constraint: Constraint, ids: list[int]) -> bool:
        return bool(self.grammars.start(constraint).matcher.try_consume_tokens(ids) == len(ids))

    def check_calls(self, made: list[int], thinks: bool = False) -> None:
        """The answer is calls alone, whole as streamed, and each of its marks is one token where it has one."""
        text = text_of(self.tokenizer, made)
        detokenizer = Detokenizer(self.tokenizer)
        assert "".join(map(detokenizer.push, made)) == text
        tagged = typed(TOOLS) if isinstance(self.form.style, Tags) else frozenset()
        found = whole(ReplyForm(thinks, False, ("look", "now"), self.form, tagged), [1], 0, text)
        assert found["text"].strip() == "" and found["tool_calls"]
        for call in found["tool_calls"]:
            given = json.loads(call["function"]["arguments"])
            assert given == {} or (given["city"] in ("Bern", "Chur") and given["days"] in range(1, 10))
        for mark, token in self.tokens.items():
            assert made.count(token) == self.encode(text).count(token), mark


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MARKED)
def test_a_call_that_must_be_made_is_written_by_its_marks_tokens(name: str, kind: str) -> None:
    bound = Bound(name, kind)
    constraint = must_call(bound.form, TOOLS, True, "", bound.tokens)
    begin = _MARK.search(bound.form.begin)
    if kind != "letters" and begin is not None and begin[0] in bound.tokens:
        first = begin[0] if begin.start() == 0 else bound.form.begin[0]
        assert bound.first(bound.grammars.start(constraint)) == {first}
        assert not bound.takes(constraint, [*bound.letters[begin[0]]])
    for seed in range(2):
        bound.check_calls(bound.write(bound.grammars.start(constraint), seed))
    assert bool(bound.tokens) == (kind != "letters")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [name for name in MARKED if tool_format(TEMPLATES[name]).bounded])  # type: ignore[union-attr]
def test_a_text_turns_to_a_strict_call_by_the_marks_token(name: str, kind: str) -> None:
    bound = Bound(name, kind)
    constraint = may_call(bound.form, TOOLS, "", bound.tokens)
    begin, said = bound.encode(bound.form.begin), bound.encode("I look.")
    assert bound.takes(constraint, [*said, *begin])
    assert not bound.takes(constraint, [*said, *begin, *bound.encode("?")])
    behind = bound.grammars.start(must_call(bound.form, TOOLS, False, "", bound.tokens))
    called = bound.write(behind)
    bound.check_calls(called)
    assert bound.takes(constraint, [*called, *said, *called, *said, bound.tokenizer.eos_token_id])
    own = bound.form.begin
    if own in bound.tokens:
        assert begin == [bound.tokens[own]]
        assert not bound.takes(constraint, [*said, *bound.letters[own]])
        assert bound.takes(constraint, [*said, *bound.letters[own][:-1], *said])  # what only begins like it


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("opened", [True, False])
def test_a_thought_is_opened_and_ended_by_its_tokens(kind: str, opened: bool) -> None:
    bound = Bound("hermes", kind)
    thought = thought_rule("<think>" if opened else "", THINK)
    answer = Constraint("choice", '["yes"]', "parameters.guided_choice")
    before = "" if opened else "<think>"
    calls = bound.encode('<tool_call>{"name": "now", "arguments": {}}</tool_call>')
    for constraint, ids in (
        (framed(answer, thought, bound.tokens), bound.encode("yes")),
        (must_call(bound.form, TOOLS, True, thought, bound.tokens), calls),
        (call_or(answer, bound.form, TOOLS, True, thought, bound.tokens), calls),
        (may_call(bound.form, TOOLS, thought, bound.tokens), calls),
    ):
        assert bound.takes(constraint, [*bound.encode(f"{before}Is it <b?</think>\n"), *ids])
        if kind != "letters" and (opened or "TEXT" not in constraint.text):  # else it is a text without a thought
            assert not bound.takes(constraint, [*bound.encode(before), *bound.letters["</think>"]])
    if kind != "letters" and not opened:
        first = bound.first(bound.grammars.start(must_call(bound.form, TOOLS, True, thought, bound.tokens)))
        assert first == {"<think>", "<tool_call>"}


def test_rules_name_tokens_where_a_mark_has_one() -> None:
    tokens = {"<a>": 7, "<a><b>": 8, "[C]": 9}
    assert by_tokens('x: "<a>" "t<a>u" | "[C]"?', tokens) == 'x: <[7]> ("t" <[7]> "u") | <[9]>?'
    assert by_tokens('x: "<a><b><a>"', tokens) == "x: (<[8]> <[7]>)"
    assert by_tokens('x: %json {"const": "<a>"}', tokens) == 'x: %json {"const": "<a>"}'
    assert by_tokens('X: "<a>"', tokens) == 'X: "<a>"'
    assert by_tokens('x: "q\\"<d>"', tokens) == 'x: "q\\"<d>"'
    free = r"/(.|\n)*\n/ & ~/(.|\n)*\[C\](.|\n)*/"
    assert by_tokens('x[suffix="\\n[C]>"]: /(.|\\n)*/', tokens) == f'x: X <[9]> ">"\nX: {free}'


def test_a_token_that_ends_answers_is_no_mark() -> None:
    bound = Bound("hermes", "added")
    token = bound.tokens["</tool_call>"]
    assert "</tool_call>" not in mark_tokens(bound.tokenizer, bound.marks, [token])
