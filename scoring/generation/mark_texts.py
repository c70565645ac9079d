"""Marks of calls and thoughts, tokens of their own: kept as text where answers are parsed, and in grammars.

What parsing leaves of marks that tokenizers hold for special is dropped, as `decode` drops them.
"""

import json
import re
from collections.abc import Collection
from typing import Any

_MARK = re.compile(r"<[!-~]+>")  # what llguidance takes for a special token, whatever the tokenizer says


def keep_as_text(tokenizer: Any, marks: Collection[str]) -> tuple[str, ...]:
    """Note which of these marks a tokenizer holds for special, and return them: answers have them as text until parsed.

    Tokens that begin, end or pad a text are left out.
    """
    ends = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token}
    added = getattr(tokenizer, "added_tokens_decoder", {})
    kept = {token: text.content for token, text in added.items() if text.special and text.content in {*marks} - ends}
    tokenizer.kept_as_text = kept
    return tuple(sorted(kept.values()))


def kept_as_text(tokenizer: Any) -> dict[int, str]:
    """Marks that a tokenizer holds for special and answers have as text, by token."""
    found: dict[int, str] = getattr(tokenizer, "kept_as_text", {})
    return found


class MarksDropped:
    """Passes text on without these marks, holding back what may be the beginning of one."""

    def __init__(self, marks: Collection[str]) -> None:
        self._marks = marks
        self._pattern = re.compile("|".join(re.escape(mark) for mark in sorted(marks, key=len, reverse=True)))
        self._held = ""

    def push(self, text: str) -> str:
        """Take the next piece; return the text that can be shown."""
        *whole, last = self._pattern.split(self._held + text)
        cut = len(last) - max(held(last, mark) for mark in self._marks)
        self._held = last[cut:]
        return "".join([*whole, last[:cut]])

    def finish(self) -> str:
        """The text that was held back."""
        text, self._held = self._held, ""
        return text


def held(text: str, mark: str) -> int:
    """Number of last characters that may be the beginning of a mark."""
    return next((size for size in range(min(len(mark) - 1, len(text)), 0, -1) if mark.startswith(text[-size:])), 0)


def told_vocabulary(tokenizer: Any) -> str:
    """A fast tokenizer's JSON for grammars, in which marks that are not special are words as any others.

    Else no grammar's text would have the token of </think>, say, but its letters. Raises ValueError for a slow one.
    """
    from transformers import PreTrainedTokenizerFast

    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError("it is none of the tokenizers library")
    told = json.loads(tokenizer.backend_tokenizer.to_str()) | {"padding": None, "truncation": None}
    words, added = told["model"].get("vocab"), told["added_tokens"]
    for token in added:
        token["special"] = token["special"] and token["id"] not in kept_as_text(tokenizer)
    if isinstance(words, dict):
        words |= {token["content"]: token["id"] for token in added if token["content"] not in words}
        told["added_tokens"] = [token for token in added if token["special"] or not _MARK.fullmatch(token["content"])]
    return json.dumps(told)
