"""Detokenizes one sequence incrementally, and finds the stop texts that end it.

The pieces together are exactly the text of all tokens, cut at the first stop text.
"""

import json
import re
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

from scoring.generation.mark_texts import kept_as_text

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # a token of byte-fallback vocabularies
_BOUNDARY = re.compile(r".*\w\w(?= )", re.DOTALL)
_LONG, _SHORT = 32, 12  # tokens decoded together: cut back to the short window when longer than the long one


class Detokenizer:
    """Incremental decoding: `push` returns the text that later tokens cannot change any more."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._special = special_tokens(tokenizer)
        self._cleans = _cleans_up(tokenizer)
        self._decode = _decoding(tokenizer)
        self._own = own_texts(tokenizer)
        self._kept = kept_as_text(tokenizer)
        self._whole = False  # some text has been returned, and no token waits for others to complete its text
        self._window: list[int] = []  # the last tokens
        self._given = 0  # characters of the window's text already returned
        self._unclean = ""

    def push(self, token: int) -> str:
        """Take the next token; may return nothing, while a character or a run of bytes is incomplete."""
        self._window.append(token)
        piece = self._own[token] if self._whole else None
        if piece is None:
            if token in self._special:
                return self._kept.get(token, "")
            piece = self._decoded(token)
        else:
            self._given += len(piece)
        if self._whole and len(self._window) > _LONG:
            self._shorten()
        return self._clean(piece) if self._cleans else piece

    def _decoded(self, token: int) -> str:
        """Text that the window has gained by its last token, from decoding all of it."""
        if is_byte(self._tokenizer, token):
            self._whole = False
            return ""  # an invalid byte would change the whole run of bytes before it
        text = self._decode(self._window)
        end = len(text) - text.endswith("\ufffd")  # the last character may lack bytes
        piece = text[self._given : end]
        self._given = max(self._given, end)
        self._whole = 0 < self._given == len(text)
        return piece

    def _shorten(self) -> None:
        tail = self._window[-_SHORT:]
        text = self._decode(tail)
        if text.strip():  # decoders strip leading spaces: the window's beginning has to stay the same
            self._window, self._given = tail, len(text)

    def _clean(self, piece: str) -> str:
        """Clean up text that later tokens cannot change: every rule of the tokenizer's clean-up begins with a space."""
        self._unclean += piece
        found = _BOUNDARY.match(self._unclean)
        if not found:
            return ""
        done, self._unclean = self._unclean[: found.end()], self._unclean[found.end() :]
        cleaned: str = self._tokenizer.clean_up_tokenization(done)
        return cleaned


def text_of(tokenizer: Any, tokens: Sequence[int]) -> str:
    """The text of an answer's tokens: without special ones, but with the marks that it is parsed by."""
    text: str = tokenizer.decode(tokens, skip_special_tokens=True)
    kept = kept_as_text(tokenizer)
    if not any(token in kept for token in tokens):
        return text
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.push(token) for token in tokens]
    told = sum(len(piece) for token, piece in zip(tokens, pieces, strict=True) if token not in kept)
    return "".join([*pieces, text[told:]])


class OwnTexts(dict[int, str | None]):
    """Text that each token adds to any text before it; None where its neighbours have a say, or it is special.

    Looked up, a token costs a fiftieth of decoding it with its neighbours.
    """

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self._tokenizer = tokenizer
        self._special = special_tokens(tokenizer)
        self._decode = _decoding(tokenizer)
        self._before = tokenizer.encode("a", add_special_tokens=False) if decodes_by_token(tokenizer) else []
        self._text = self._decode(self._before) if self._before else ""

    def __missing__(self, token: int) -> str | None:
        own = None
        if self._text.strip() and token not in self._special and not is_byte(self._tokenizer, token):
            text = self._decode([*self._before, token])
            # A character that lacks bytes may get them from the next token.
            own = text[len(self._text) :] if text.startswith(self._text) and "\ufffd" not in text else None
        self[token] = own
        return own


def decodes_by_token(tokenizer: Any) -> bool:
    """Return True if each token after the first adds the same text wherever it stands, runs of bytes aside."""
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    if decoder is None or not _decodes_natively(tokenizer):
        return False
    told = json.loads(decoder.__getstate__())
    steps = told["decoders"] if told["type"] == "Sequence" else [told]
    kinds = [step["type"] for step in steps]
    if kinds in (["ByteLevel"], ["Metaspace"], ["WordPiece"]):
        return True
    strips = [step for step in steps if step["type"] == "Strip"]
    known = ["Replace", "ByteFallback", "Fuse", "Strip"]
    return kinds == known[: len(kinds)] and len(kinds) >= 2 and not any(step["stop"] for step in strips)


@lru_cache(maxsize=4)
def own_texts(tokenizer: Any) -> OwnTexts:
    """Texts of a tokenizer's tokens, filled as they occur; all sequences share them."""
    return OwnTexts(tokenizer)


def is_byte(tokenizer: Any, token: int) -> bool:
    """Return True for a token that stands for one byte, whatever character it is part of."""
    return bool(_BYTE.fullmatch(tokenizer.convert_ids_to_tokens(token)))


@lru_cache(maxsize=4)
def special_tokens(tokenizer: Any) -> frozenset[int]:
    """Tokens without text, including the unnamed marks of a chat template."""
    added = tokenizer.added_tokens_decoder.items()
    return frozenset(token for token, text in added if text.special).union(tokenizer.all_special_ids)


@lru_cache(maxsize=4)
def _decoding(tokenizer: Any) -> Callable[[list[int]], str]:
    """Decoding function without special tokens and clean-up, equal to the tokenizer's `decode`.

    `decode` checks the type of each token on every call, which takes several times as long as the decoding.
    """
    if _decodes_natively(tokenizer):
        return partial(tokenizer.backend_tokenizer.decode, skip_special_tokens=True)
    return partial(tokenizer.decode, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _decodes_natively(tokenizer: Any) -> bool:
    """Return True if `decode` is the tokenizers library's, not a method of the tokenizer's own class."""
    from transformers import PreTrainedTokenizerFast as Fast

    kind = type(tokenizer)
    return isinstance(tokenizer, Fast) and kind.decode is Fast.decode and kind._decode is Fast._decode


def _cleans_up(tokenizer: Any) -> bool:
    """Return True if decoding ends with transformers' clean-up of spaces, which byte-pair vocabularies skip."""
    if not tokenizer.clean_up_tokenization_spaces:
        return False
    return not tokenizer.is_fast or type(tokenizer.backend_tokenizer.model).__name__ != "BPE"


class Stops:
    """Passes text on up to the first stop text, holding back what may be the beginning of one.

    Each character is looked at once, however many stop texts there are. `told`: the stop text is passed on too.
    """

    def __init__(self, stops: Sequence[str], told: bool = False) -> None:
        self.found = False
        self._told = told
        self._machine = _machine(tuple(stops)) if stops else None
        self._state = 0
        self._held = ""

    def push(self, text: str) -> str:
        """Take the next piece; return the text that can be shown."""
        machine = self._machine
        if self.found or machine is None:
            return "" if self.found else text
        first = len(self._held) + 1
        self._held += text
        for end, character in enumerate(text, first):
            self._state = machine.after(self._state, character)
            if length := machine.complete[self._state]:
                self.found = True
                return self._held[: end if self._told else end - length]
        shown = len(self._held) - machine.depth[self._state]
        text, self._held = self._held[:shown], self._held[shown:]
        return text


class Machine:
    """Aho-Corasick automaton: a state is the longest suffix of the text so far that is a prefix of a word."""

    def __init__(self, words: Sequence[str]) -> None:
        self._next: list[dict[str, int]] = [{}]
        self._shorter = [0]  # the next longest such suffix
        self.depth = [0]  # characters of the state
        self.complete = [0]  # characters of the longest word that is a suffix of the state
        for word in words:
            self._add(word)
        queue = list(self._next[0].values())
        for state in queue:
            for character, child in self._next[state].items():
                self._shorter[child] = self.after(self._shorter[state], character)
                self.complete[child] = self.complete[child] or self.complete[self._shorter[child]]
                queue.append(child)

    def _add(self, word: str) -> None:
        state = 0
        for character in word:
            if character not in self._next[state]:
                self._next[state][character] = len(self._next)
                self._next.append({})
                self._shorter.append(0)
                self.depth.append(self.depth[state] + 1)
                self.complete.append(0)
            state = self._next[state][character]
        self.complete[state] = len(word)

    def after(self, state: int, character: str) -> int:
        """The state after one more character."""
        while state and character not in self._next[state]:
            state = self._shorter[state]
        return self._next[state].get(character, 0)


_machine = lru_cache(maxsize=64)(Machine)  # rows of a request, and often requests of a client, share one


def first_stop(text: str, stops: Sequence[str]) -> tuple[int, str] | None:
    """The first completed stop text, and the index at which it begins; None without one."""
    found = [(at + len(stop), at, stop) for stop in stops if (at := text.find(stop)) >= 0]
    return min(found)[1:] if found else None


def stop_at(text: str, stops: Sequence[str], told: bool = False) -> int | None:
    """Index at which the first completed stop text begins, or ends if it is told too; None without one."""
    found = first_stop(text, stops)
    return None if found is None else found[0] + (len(found[1]) if told else 0)
