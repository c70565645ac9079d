"""Markers of queries and documents, which late-interaction models read as one token before a text."""

from collections.abc import Iterable
from typing import Any


def mark(tokenizer: Any, markers: Iterable[str]) -> None:
    """Have a tokenizer read each marker that its vocabulary has as that token; others stay text.

    A marker such as "[unused0] " was a token where the model was trained; written as text it would be split.
    """
    from tokenizers import AddedToken

    known = tokenizer.get_vocab()
    found = []
    for marker in markers:
        for each in (marker, *marker.split(None, 1)[:1]):
            if each.strip() and each in known:
                if tokenizer.tokenize(each) != [each]:
                    found.append(AddedToken(each, normalized=False, special=True))
                break
    if found:
        tokenizer.add_tokens(found, special_tokens=True)
