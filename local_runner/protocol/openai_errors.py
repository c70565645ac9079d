"""Errors of OpenAI's requests in the caller's words: the field that was sent, not the canonical one it became."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from scoring.errors import MiiAzureError

#: OpenAI's names of canonical parameters; the first that was sent is told, else the first.
NAMES: dict[str, tuple[str, ...]] = {
    "max_new_tokens": ("max_tokens", "max_completion_tokens", "max_output_tokens"),
    "num_return_sequences": ("n",),
    "return_details": ("logprobs",),
    "top_n_tokens": ("top_logprobs", "logprobs"),
    "return_full_text": ("echo",),
    "min_new_tokens": ("min_tokens",),
}
_WORD = re.compile(rf"\b({'|'.join(NAMES)})\b")
_NESTED = re.compile(r'"parameters": \{([^{}]*)\}')
_INPUTS = re.compile(r"inputs(\[\d+\])?(.*)", re.DOTALL)
_INDEX = re.compile(r"\.(\d+)\b")


@contextmanager
def in_words_of(sent: Mapping[str, Any], inputs: str) -> Iterator[None]:
    """Rename the fields in errors raised inside; `inputs` is the caller's name of what is scored."""
    try:
        yield
    except MiiAzureError as error:
        names = {ours: _sent_as(ours, sent) for ours in NAMES}
        error.message, error.hint = (
            in_callers_words(_WORD.sub(lambda found: names[found[1]], text)) for text in (error.message, error.hint)
        )
        error.where = _place(error.where, names, sent, inputs)
        raise


def rename_place(error: MiiAzureError, sent: Mapping[str, Any], places: Mapping[str, str]) -> None:
    """Tell an error's place by a path's own name of it, unless the other name was sent."""
    for theirs, ours in places.items():
        if theirs not in sent and (error.where == theirs or error.where.startswith(f"{theirs}.")):
            error.where = ours + error.where.removeprefix(theirs)
            break


def in_callers_words(text: str) -> str:
    """A sentence whose parameters stand at the top of the body, as callers of /v1 send them."""
    return _NESTED.sub(r"\1", text)


def _sent_as(ours: str, sent: Mapping[str, Any]) -> str:
    return next((name for name in (ours, *NAMES[ours]) if sent.get(name) is not None), NAMES[ours][0])


def _place(where: str, names: Mapping[str, str], sent: Mapping[str, Any], inputs: str) -> str:
    name = where.removeprefix("parameters.")
    if name != where:
        return names.get(name, name)
    if not (found := _INPUTS.fullmatch(where)):
        return where
    # A conversation, and a text that is no list, is the one input of its request.
    item = found[1] or "" if isinstance(sent.get(inputs), list) and inputs != "messages" else ""
    return inputs + item + _INDEX.sub(r"[\1]", found[2])
