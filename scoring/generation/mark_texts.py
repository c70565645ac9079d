"""Marks of calls and thoughts, tokens of their own: kept as text in answers and in grammars."""

import json
import re
from collections.abc import Collection
from typing import Any

_MARK = re.compile(r"<[!-~]+>")  # what llguidance takes for a special token, whatever the tokenizer says


def keep_as_text(tokenizer: Any, marks: Collection[str]) -> None:
    """Have a tokenizer write these tokens into texts as it does others, from its first use on; their numbers stay."""
    special = {text.content for text in getattr(tokenizer, "added_tokens_decoder", {}).values() if text.special}
    if not special & set(marks) or not getattr(tokenizer, "is_fast", False):
        return
    from tokenizers import Tokenizer

    told = json.loads(tokenizer.backend_tokenizer.to_str())
    for token in told["added_tokens"]:
        token["special"] = token["special"] and token["content"] not in marks
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(told))
    named = tokenizer._special_tokens_map
    for name in [name for name, text in named.items() if str(text) in marks]:
        del named[name]
    tokenizer._extra_special_tokens = [text for text in tokenizer._extra_special_tokens if str(text) not in marks]


def told_vocabulary(tokenizer: Any) -> str:
    """A fast tokenizer's JSON for grammars, in which marks that are not special are words as any others.

    Else no grammar's text would have the token of </think>, say, but its letters. Raises ValueError for a slow one.
    """
    from transformers import PreTrainedTokenizerFast

    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError("it is none of the tokenizers library")
    told = json.loads(tokenizer.backend_tokenizer.to_str()) | {"padding": None, "truncation": None}
    words, added = told["model"].get("vocab"), told["added_tokens"]
    if isinstance(words, dict):
        words |= {token["content"]: token["id"] for token in added if token["content"] not in words}
        told["added_tokens"] = [token for token in added if token["special"] or not _MARK.fullmatch(token["content"])]
    return json.dumps(told)
