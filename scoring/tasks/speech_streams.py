"""Follows what Whisper writes, token by token, and tells streams the text that its answer will have.

Of a window everything up to the last pair of timestamps stays, or the whole if there is no pair; what follows a pair
stays only once another closes it, or the window ends with a single one. The window after begins at that pair.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from scoring.engine.row import Between, Row
from scoring.errors import InvalidInput
from scoring.generation.detokenizer import Detokenizer


class SpeechStream:
    """Text of one row as it comes; what it has told of a row that is read again stays told."""

    def __init__(self, row: Row, tokenizer: Any, first_time: int, ends: frozenset[int]) -> None:
        self._row = row
        self._tokenizer = tokenizer
        self._first_time = first_time  # of the tokens that are times, which come last in the vocabulary
        self._ends = ends
        self._text = ""  # that is certain
        self._piece: list[int] = []  # tokens since the last time
        self._shown = 0  # characters of the piece's text
        self._detokenizer = Detokenizer(tokenizer)
        self.begin()

    def begin(self) -> None:
        """Take the tokens of another window from now on."""
        self._held: list[int] = []  # tokens after a pair of times
        self._paired = self._over = self._timed = False

    def push(self, token: int) -> None:
        """Take the window's next token; what follows its end is padding."""
        self._over |= token in self._ends
        if self._over:
            return
        timed = token >= self._first_time
        if timed and self._timed:
            self._keep()
            self._paired = True
        self._held.append(token)
        self._timed = timed
        if not self._paired:
            self._keep()

    def end(self) -> None:
        """End the window."""
        if self._paired and self._timed and len(self._held) > 1:
            self._keep()
        self._complete()

    def _keep(self) -> None:
        for token in self._held:
            if token < self._first_time:
                self._piece.append(token)
                self._show(self._detokenizer.push(token))
            else:
                self._complete()
        self._held = []

    def _complete(self) -> None:
        """Show what was held back of the piece, which no later token can change."""
        if self._piece:
            self._show(str(self._tokenizer.decode(self._piece, skip_special_tokens=True))[self._shown :])
        self._piece, self._shown, self._detokenizer = [], 0, Detokenizer(self._tokenizer)

    def _show(self, text: str) -> None:
        self._shown += len(text)
        self._text += text
        tell(self._row, self._text)


def tell(row: Row, text: str) -> None:
    """Send a row's stream what it has not been told of a text; nothing if that does not begin with what it was told."""
    parts: list[str] = row.extra.told
    told = "".join(parts)
    if row.emit is not None and len(text) > len(told) and text.startswith(told):
        parts.append(text[len(told) :])
        row.emit({"token": {"text": parts[-1]}})


class Following:
    """Streamer of transformers' generation for rows of one batch."""

    def __init__(
        self, rows: Sequence[Row], stream: Callable[[Row], SpeechStream], long: bool, between: Between
    ) -> None:
        self._rows = rows
        self._streams = [stream(row) if row.emit is not None else None for row in rows]
        self._long = long
        self._between = between
        self._going: Sequence[int] = range(len(rows))  # rows that this reading is of
        self._readings = 0
        self._begun = False

    def read(self, going: Sequence[int]) -> None:
        """Prepare for another reading, of these rows alone."""
        self._going = going
        self._readings += 1

    def put(self, tokens: torch.Tensor) -> None:
        """Take the next token of each row; first come those that are given."""
        if not self._begun:
            self._begun = True
            for stream in self._live():
                stream.begin()
            return
        for at, token in zip(self._going, tokens.tolist(), strict=False):
            if (followed := self._streams[at]) is not None and self._certain:
                followed.push(token)
        self._between()
        require_listeners(self._rows)

    def end(self) -> None:
        """End the reading."""
        self._begun = False
        for stream in self._live():
            stream.end()

    @property
    def _certain(self) -> bool:
        """True unless a single window is read again, which is forgotten where it leads nowhere."""
        return self._long or self._readings <= 1

    def _live(self) -> list[SpeechStream]:
        found = [self._streams[at] for at in self._going] if self._certain else []
        return [each for each in found if each is not None]


def require_listeners(rows: Sequence[Row]) -> None:
    """Raise InvalidInput once nobody waits for any of the rows."""
    if all(row.cancelled.is_set() for row in rows):
        raise InvalidInput("Nobody waits for the answer any more.")


def certain(generation: Any) -> bool:
    """True if what a model writes is its answer: no beams, and no windows that are left out afterwards."""
    silent = getattr(generation, "no_speech_threshold", None) is not None
    return not silent and (generation.num_beams or 1) == 1 and isinstance(generation.no_timestamps_token_id, int)
