"""A bounded tokenizer: the cost of a text before it is refused depends on the model's context, not on the text.

A text of more characters than the model's context may well have is first tokenised piece by piece, only to count. If
the count exceeds what the model takes, the text is refused, or with truncation cut there: the tokens that are kept are
the same.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from scoring.errors import PromptTooLong, TextTooLong
from scoring.limits.deadline import check, held

_PIECE = 1 << 14  # characters tokenised at once to count
_PLAIN = 8  # characters a token of the context, up to which a text is tokenised once: most such texts fit
_SEAM = 128  # tokens that a cut within a word may add: WordPiece makes a word of over 100 characters one unknown token
_LEAST_LIMIT = 1 << 16  # characters that are always allowed
_SHRINKING = 4  # times the characters of the longest token: normalisers drop spaces, accents and control characters


class Tokenizing:
    """Calls a tokenizer, one thread at a time.

    A fast tokenizer keeps the last call's truncation, and some the languages, as its own state, so that two
    threads with different options would silently get each other's.
    """

    def __init__(self, tokenizer: Any, context: int) -> None:
        self._tokenizer = tokenizer
        self._context = context
        self._lock = threading.Lock()

    def __call__(self, *texts: str, most: int = 0, side: str | None = None, **options: Any) -> Any:
        """Tokenise one text or a pair into a BatchEncoding; `most` bounds each one's tokens, by default the context.

        `side` is the end at which truncation cuts, by default the tokenizer's own; the key "cut" is true if it did.
        Raises PromptTooLong and TextTooLong for a text that is longer, unless truncation is asked for.
        """
        own = self._tokenizer.truncation_side
        bounded = self.bounded(texts, most, options, side or own)
        if _is_plain(options) and self._direct:
            return self._features(bounded, options, side or own)
        with self.turn():
            self._tokenizer.truncation_side = side or own
            try:
                encoded = self._tokenizer(*bounded, **options)
                if options.get("truncation"):
                    encoded["cut"] = self._was_cut(encoded, bounded, options)
            finally:
                self._tokenizer.truncation_side = own
        return encoded

    def _features(self, texts: tuple[str, ...], options: dict[str, Any], side: str) -> dict[str, Any]:
        """Features of one text or a pair as a call gives them, without offsets, which take half of a call's time."""
        backend, names = self._tokenizer.backend_tokenizer, self._tokenizer.model_input_names
        with self.turn():
            self._cut_at(options["max_length"] if options.get("truncation") else None, side)
            if backend.padding is not None:
                backend.no_padding()
            backend.encode_special_tokens = self._tokenizer.split_special_tokens
            # Of a batch, because for a single text the interpreter is held.
            # A pair without a second text is one text, as in a call.
            (encoding,) = backend.encode_batch_fast([texts if any(texts[1:]) else texts[0]])
        found: dict[str, Any] = {"input_ids": encoding.ids}
        if "token_type_ids" in names:
            found["token_type_ids"] = encoding.type_ids
        if "attention_mask" in names:
            found["attention_mask"] = encoding.attention_mask
        if options.get("truncation"):
            found["cut"] = bool(encoding.overflowing)
        return found

    def _cut_at(self, most: int | None, side: str) -> None:
        """Have the tokenizer cut at so many tokens, or nowhere; setting what is set takes longer than asking."""
        backend = self._tokenizer.backend_tokenizer
        now = backend.truncation
        if most is None:
            if now is not None:
                backend.no_truncation()
            return
        asked = {"max_length": most, "stride": 0, "strategy": "longest_first", "direction": side}
        if now != asked:
            backend.enable_truncation(**asked)

    def ids(self, text: str, special: bool = True) -> list[int]:
        """Token ids of one text as a call gives them, without truncation; a long one takes two thirds of the time."""
        if not self._direct:
            return list(self(text, add_special_tokens=special)["input_ids"])
        bounded = self.bounded((text,), 0, {})
        backend = self._tokenizer.backend_tokenizer
        with self.turn():
            if backend.truncation is not None:
                backend.no_truncation()
            if backend.padding is not None:
                backend.no_padding()
            backend.encode_special_tokens = self._tokenizer.split_special_tokens
            # Of a batch, because for a single text the interpreter is held; without offsets, which nobody asks for.
            (encoding,) = backend.encode_batch_fast(list(bounded), add_special_tokens=special)
        found: list[int] = encoding.ids
        return found

    @cached_property
    def _direct(self) -> bool:
        """True for a fast tokenizer whose class encodes as all of them do."""
        from transformers import PreTrainedTokenizerFast

        own = type(self._tokenizer)
        return issubclass(own, PreTrainedTokenizerFast) and all(
            getattr(own, name, None) is getattr(PreTrainedTokenizerFast, name, None)
            for name in ("__call__", "_encode_plus", "_batch_encode_plus", "set_truncation_and_padding")
        )

    def _was_cut(self, encoded: Any, texts: tuple[str, ...], options: dict[str, Any]) -> bool:
        """Return True if truncation left tokens out; a slow tokenizer does not tell, and is asked again."""
        if encoded.encodings:
            return any(each.overflowing for each in encoded.encodings)
        most = options.get("max_length")
        if most is None or len(encoded["input_ids"]) < most:
            return False
        return bool(len(self._tokenizer(*texts, verbose=False)["input_ids"]) > most)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Hold the tokenizer exclusively; raises RequestTimeout."""
        with held(self._lock):
            yield

    def bounded(
        self, texts: tuple[str, ...], most: int, options: dict[str, Any], side: str | None = None
    ) -> tuple[str, ...]:
        """The texts, each cut, with a margin, to what the options' truncation will keep of it."""
        cut = bool(options.get("truncation"))
        # A cut on the left would shift the character offsets.
        left = cut and (side or self._tokenizer.truncation_side) == "left"
        cut = cut and not (left and options.get("return_offsets_mapping"))
        return tuple(self._bounded(text, most or self._context, cut, left) for text in texts)

    def _bounded(self, text: str, most: int, cut: bool, left: bool) -> str:
        if len(text) <= max(_PIECE, _PLAIN * most):
            return text
        limit = max(_LEAST_LIMIT, _SHRINKING * most * self._longest)
        if len(text) > limit and not cut:
            raise _too_long(text, limit)
        tokens = 0
        for at in range(0, min(len(text), limit), _PIECE):
            start, stop = (len(text) - at - _PIECE, len(text) - at) if left else (at, at + _PIECE)
            tokens += max(0, self._count(text[max(0, start) : stop]) - _SEAM)
            if tokens > most and cut:
                return text[start:] if left else text[:stop]
            if tokens > most:
                raise PromptTooLong(
                    f"The text of {len(text):,} characters has more than {tokens:,} tokens; the model takes {most:,}.",
                    "Shorten it.",
                )
        if len(text) > limit:
            raise _too_long(text, limit)
        return text

    def _count(self, piece: str) -> int:
        check()
        plain = {"add_special_tokens": False, "return_attention_mask": False, "return_token_type_ids": False}
        with self.turn():
            return len(self._tokenizer(piece, verbose=False, **plain)["input_ids"])

    @cached_property
    def _longest(self) -> int:
        """Characters of the longest token."""
        return max(map(len, self._tokenizer.get_vocab()))


def _is_plain(options: dict[str, Any]) -> bool:
    """Return True for options that ask for nothing but features, cut or whole."""
    cut = options.get("truncation", False)
    return options.keys() <= {"truncation", "max_length"} and (
        cut is False or (cut is True and options.get("max_length") is not None)
    )


def _too_long(text: str, limit: int) -> TextTooLong:
    return TextTooLong(
        f"The text has {len(text):,} characters; what the model takes has at most {limit:,}.", "Shorten it."
    )
