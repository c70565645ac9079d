"""Detokenizes one sequence incrementally, and finds the stop texts that end it.

The pieces together are exactly the text of all tokens, cut at the first stop text.
"""

import re
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

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
        self._window: list[int] = []  # the last tokens
        self._given = 0  # characters of the window's text already returned
        self._unclean = ""

    def push(self, token: int) -> str:
        """Take the next token; may return nothing, while a character or a run of bytes is incomplete."""
        self._window.append(token)
        if token in self._special or _BYTE.fullmatch(self._tokenizer.convert_ids_to_tokens(token)):
            return ""  # an invalid byte would change the whole run of bytes before it
        text = self._decode(self._window)
        end = len(text) - text.endswith("\ufffd")  # the last character may lack bytes
        piece = text[self._given : end]
        self._given = max(self._given, end)
        if end == len(text) and len(self._window) > _LONG:
            self._shorten()
        return self._clean(piece) if self._cleans else piece

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
    from transformers import PreTrainedTokenizerFast as Fast

    kind = type(tokenizer)
    if isinstance(tokenizer, Fast) and kind.decode is Fast.decode and kind._decode is Fast._decode:
        return partial(tokenizer.backend_tokenizer.decode, skip_special_tokens=True)
    return partial(tokenizer.decode, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _cleans_up(tokenizer: Any) -> bool:
    """Return True if decoding ends with transformers' clean-up of spaces, which byte-pair vocabularies skip."""
    if not tokenizer.clean_up_tokenization_spaces:
        return False
    return not tokenizer.is_fast or type(tokenizer.backend_tokenizer.model).__name__ != "BPE"


class Stops:
    """Passes text on up to the first stop text, holding back what may be the beginning of one.

    Each character is looked at once, however many stop texts there are.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.found = False
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
                return self._held[: end - length]
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


def stop_at(text: str, stops: Sequence[str]) -> int | None:
    """Index at which the first completed stop text begins; None without one."""
    found = [(at + len(stop), at) for stop in stops if (at := text.find(stop)) >= 0]
    return min(found)[1] if found else None
