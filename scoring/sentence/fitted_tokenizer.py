"""Tokenizers that treat texts as a sentence-transformers folder says: lowered, with markers as one token each."""

from collections.abc import Iterable
from typing import Any

from scoring.errors import LoadError
from scoring.sentence.folder import SentenceModel


def fit(tokenizer: Any, told: SentenceModel) -> None:
    """Have a tokenizer lower its texts, and read markers before them, as the folder says."""
    if told.lower_case:
        lower_case(tokenizer)
    if told.late:
        _mark(tokenizer, told.late.markers)


def lower_case(tokenizer: Any) -> None:
    """Have a tokenizer lower its texts, as the folder's do_lower_case says; raises LoadError for a slow one."""
    from tokenizers.normalizers import Lowercase, Sequence

    if not tokenizer.is_fast:
        raise LoadError(
            f"do_lower_case is not served with {type(tokenizer).__name__}.",
            "Save the model with a fast tokenizer: the folder then has tokenizer.json.",
        )
    own = tokenizer.backend_tokenizer.normalizer
    tokenizer.backend_tokenizer.normalizer = Sequence([Lowercase(), *([own] if own else [])])


def _mark(tokenizer: Any, markers: Iterable[str]) -> None:
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
