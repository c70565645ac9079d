"""Follows sequences as their tokens come: text for streams, stop texts, cancellation."""

from collections.abc import Sequence
from typing import Any

import torch

from scoring.decoder.logprobs import ScoredTokens, TokenLogprob
from scoring.engine.row import Between, Row
from scoring.generation.details import Details, describe
from scoring.generation.detokenizer import Detokenizer, Stops, stop_at, text_of
from scoring.generation.grammars import Grammar
from scoring.generation.replies import Parser, parser_of
from scoring.generation.text_generator import TextGenerator


class BatchStreamer:
    """Inspects a batch after every step: passes text on, and ends rows that reached a stop text or were cancelled.

    Between its steps, the rows on slots advance.
    """

    def __init__(
        self,
        task: TextGenerator,
        rows: Sequence[Row],
        start: int,
        searching: bool,
        between: Between,
        grammars: Sequence[Grammar] = (),
    ) -> None:
        self._task = task
        self._grammars = grammars  # of each sequence, if there are any
        self._rows = rows
        self._start = start
        self._between = between
        self._searching = searching  # beams swap rows from step to step: no text before the end
        wanted = not searching and any(row.emit or row.parameters.stop for row in rows)
        each = rows[0].parameters["num_return_sequences"]
        self._followers = (
            [SequenceStreamer(task, row, number) for row in rows for number in range(each)] if wanted else []
        )
        # A stop text that the newest token completes lies in the text of these: a character has at most four tokens.
        self._tail = 32 + 4 * max((len(stop) for row in rows for stop in row.parameters.stop), default=0)
        self._over = [False] * (len(rows) * each)  # sequences that reached an end token
        self.lengths: list[int | None] = [None] * (len(rows) * each)  # tokens at the stop text of each; not of beams

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        each = input_ids.shape[0] // len(self._rows)
        done = [row.cancelled.is_set() for row in self._rows for _ in range(each)]
        self._time(input_ids[:, -1], each)
        if self._followers:
            for index, token in enumerate(input_ids[:, -1].tolist()):
                done[index] |= self._followers[index].push(token)
        elif self._searching and any(row.parameters.stop for row in self._rows):
            for index, tokens in enumerate(input_ids[:, max(self._start, input_ids.shape[1] - self._tail) :].tolist()):
                stop = self._rows[index // each].parameters.stop
                text = text_of(self._task.tokenizer, tokens)
                done[index] |= stop_at(text, stop) is not None
        if not self._searching:
            if self._task.stops is not None:
                found = self._task.stops.found(input_ids).tolist()
                done = [own or other for own, other in zip(done, found, strict=True)]
            if self._grammars:
                done = [own or other for own, other in zip(done, self._advance(input_ids[:, -1]), strict=True)]
            self._note(done, input_ids.shape[1] - self._start)
        self._between()
        return torch.tensor(done, device=input_ids.device)

    def _advance(self, tokens: torch.Tensor) -> list[bool]:
        """Take the last tokens of sequences with grammars; True for those after which nothing may follow."""
        pairs = zip(self._grammars, tokens.tolist(), strict=True)
        going = [(grammar, token) for grammar, token in pairs if not grammar.ended]
        self._task.grammars.advance([grammar for grammar, _ in going], [token for _, token in going])
        for grammar, _ in going:
            grammar.check()
        return [grammar.ended for grammar in self._grammars]

    def _note(self, done: Sequence[bool], tokens: int) -> None:
        """Note the length of each sequence that ends now: what follows it, while others go on, is padding."""
        self.lengths = [
            tokens if length is None and over else length for length, over in zip(self.lengths, done, strict=True)
        ]

    def _time(self, tokens: torch.Tensor, each: int) -> None:
        """Count one token per step for a row, until all its sequences have ended; beams end together."""
        live = [self._searching or not all(self._over[i * each : (i + 1) * each]) for i in range(len(self._rows))]
        self._task.statistics.tokens(row for row, going in zip(self._rows, live, strict=True) if going)
        if not self._searching:
            ends = {*self._task.eos, *self._rows[0].parameters.stop_ids}
            self._over = [over or token in ends for over, token in zip(self._over, tokens.tolist(), strict=True)]


class SequenceStreamer:
    """Turns the tokens of one sequence into text as they come; `number` is its index among its row's."""

    def __init__(self, task: TextGenerator, row: Row, number: int = 0) -> None:
        self.row = row
        self._number = number
        self._ends = {*task.eos, *row.parameters.stop_ids}
        self._ended = False
        self._detokenizer = Detokenizer(task.tokenizer)
        self._stops = Stops(row.parameters.stop, row.parameters.tells_stop) if row.parameters.stop else None
        self._shown = shown(row, number)
        self._again = bool(self._shown.parts)  # the row is run again: part of its text has been sent
        self._text = ""  # of a row that is run again
        self._length = 0  # characters of the text
        self._count = 0  # tokens
        prompt = [] if task.encoder_decoder else row.features["input_ids"]
        told = row.emit is not None and row.parameters.details is not None
        self._details = Details(task.tokenizer, prompt) if told else None

    def push(self, token: int, chance: TokenLogprob | None = None) -> bool:
        """Take the next token; True when a stop text ends the sequence."""
        if self._ended:  # padding, while other rows go on
            return True
        self._count += 1
        piece = self._detokenizer.push(token)
        text = piece if self._stops is None else self._stops.push(piece)
        if self.row.emit is not None:
            self._length += len(text)
            details = self._details if chance is not None else None
            if details is not None and chance is not None:
                details.push(token, piece, chance)
            self._show(text, details)
        stopped = self._stops is not None and self._stops.found
        self._ended = stopped or token in self._ends
        return stopped

    def _show(self, text: str, details: Details | None) -> None:
        if self._again:
            self._text += text
            text = self._shown.rest(self._text)
        self._shown.generated = self._count
        if details is not None:
            send(self.row, self._shown, text, self._number, details, details.within(self._length))
        elif text:
            send(self.row, self._shown, text, self._number)


class Shown:
    """Part of an answer that its stream has been sent: its text, and the number of tokens with details."""

    def __init__(self, parser: Parser | None) -> None:
        self.parts: list[str] = []
        self.tokens = 0
        self.generated = 0  # tokens of the answer so far
        self.parser = parser  # of answers that may hold more than text

    def rest(self, text: str) -> str:
        """Text of an answer that has not been sent; none if what was sent is not its beginning."""
        sent = "".join(self.parts)
        return text[len(sent) :] if text.startswith(sent) else ""


def shown(row: Row, number: int) -> Shown:
    """Part of an answer sent so far; a row that is run again continues where its stream was."""
    row.extra = {} if row.extra is None else row.extra
    if number not in row.extra:
        form = row.parameters.reply
        parser = None if form.plain else parser_of(form, row.features["input_ids"], row.answer + number)
        row.extra[number] = Shown(parser)
    found: Shown = row.extra[number]
    return found


def send(row: Row, sent: Shown, text: str, number: int = 0, details: Details | None = None, count: int = 0) -> None:
    """Send a row's stream the next text of an answer, and the details of its first `count` tokens not sent yet."""
    if row.emit is None or not (text or count > sent.tokens):
        return
    parts = [{"text": text}] if sent.parser is None else sent.parser.push(text)
    told = None
    if details is not None:
        told = details.to_dict(sent.tokens, max(sent.tokens, count))
        sent.tokens = max(sent.tokens, count)
        parts = parts or [{"text": ""}]
    sent.parts.append(text)
    emit(row, number, parts, told, sent.generated)


def emit(
    row: Row, number: int, parts: Sequence[dict[str, Any]], details: dict[str, Any] | None = None, generated: int = 0
) -> None:
    """Send a row's stream parts of an answer, one event each, the first one with details.

    `generated` tokens of the answer are known by now, which each event tells if the row asks for it.
    """
    for part in parts:
        event: dict[str, Any] = {"token": {"text": "", **part}}
        if row.parameters.counts:
            event["usage"] = {"prompt_tokens": row.prompt_tokens, "completion_tokens": generated}
        if row.answers > 1:
            event["token"]["index"] = row.answer + number
        if details is not None:
            event["details"], details = details, None
        if row.emit is not None:
            row.emit(event)


def show_end(task: TextGenerator, row: Row, output: Sequence[list[int]]) -> None:
    """Send a stream the text that was held back until the end."""
    if row.emit is None:
        return
    for number, tokens in enumerate(output):
        details, count = describe(task, row, tokens) if isinstance(tokens, ScoredTokens) else (None, 0)
        sent = shown(row, number)
        sent.generated = len(tokens)
        send(row, sent, sent.rest(task.text(tokens, row.parameters)), number, details, count)
        if sent.parser is not None:
            emit(row, number, sent.parser.finish(), None, len(tokens))
