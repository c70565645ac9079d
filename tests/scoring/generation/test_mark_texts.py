"""Marks that a tokenizer holds for special: text while an answer is parsed, and none in what it says."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import AddedToken

from scoring.generation.call_forms import marks_as_text
from scoring.generation.detokenizer import Detokenizer, text_of
from scoring.generation.mark_texts import MarksDropped, keep_as_text
from tests import tiny_tokenizers
from tests.tool_models import TEMPLATES, THINKING

#: What each form's template teaches, and a mark of it.
TAUGHT = {
    **{name: (TEMPLATES[name], "<tool_call>") for name in ("hermes", "qwen_xml", "glm")},
    "mistral": (TEMPLATES["mistral"] + "[TOOL_CALLS]", "[TOOL_CALLS]"),
    "llama3": (TEMPLATES["llama3"], "<|python_tag|>"),
    "gemma": (TEMPLATES["gemma"], '<|"|>'),
    "thought": (THINKING, "</think>"),
    "channel": ("<|channel>thought\n<channel|>", "<|channel>"),
}


def tokenizer_with(mark: str, special: bool = True) -> Any:
    made = tiny_tokenizers.gemma(256)
    made.add_tokens([AddedToken(mark, special=special, normalized=False)], special_tokens=special)
    return made


@pytest.mark.parametrize("name", TAUGHT)
def test_marks_of_every_form_are_kept_until_an_answer_is_parsed(name: str) -> None:
    template, mark = TAUGHT[name]
    tokenizer = tokenizer_with(mark)
    assert keep_as_text(tokenizer, marks_as_text(template)) == (mark,)
    ids = tokenizer(f"a{mark}b", add_special_tokens=False)["input_ids"]
    assert text_of(tokenizer, ids) == f"a{mark}b"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "ab"
    assert keep_as_text(tokenizer_with(mark, special=False), marks_as_text(template)) == ()


def test_a_token_that_ends_texts_stays_special() -> None:
    tokenizer = tokenizer_with("<tool_call|>")
    tokenizer.eos_token = "<tool_call|>"
    assert keep_as_text(tokenizer, ["<tool_call|>"]) == ()


@pytest.mark.parametrize(
    "tokens",
    [
        ["<0xC3>", "<tool_call|>", "<0xA9>", "a"],
        ["a", "<0x41>", "<tool_call|>", "<0xFF>"],
        ["<tool_call|>", "▁", "a", "<tool_call|>", "<bos>", "<0xE2>"],
    ],
)
def test_a_mark_changes_nothing_of_the_text_around_it(tokens: list[str]) -> None:
    """Bytes on its two sides are one character, or none, as they are without it."""
    tokenizer = tokenizer_with("<tool_call|>")
    ids = tokenizer.convert_tokens_to_ids(tokens)
    marks = keep_as_text(tokenizer, ["<tool_call|>"])
    text = text_of(tokenizer, ids)
    assert text.count("<tool_call|>") == tokens.count("<tool_call|>")
    assert MarksDropped(marks).push(text) == tokenizer.decode(ids, skip_special_tokens=True)
    detokenizer = Detokenizer(tokenizer)
    assert text.startswith("".join(map(detokenizer.push, ids)))


def test_text_that_only_begins_like_a_mark_is_shown_at_the_end() -> None:
    dropped = MarksDropped(["<a>", "<ab>"])
    assert [dropped.push(piece) for piece in ("x<", "a", ">y<a", "b", "c<a")] == ["x", "", "y", "", "<abc"]
    assert dropped.finish() == "<a"
