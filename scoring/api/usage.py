"""Usage of a request: tokens in and out, and each answer's finish reason, for `{"options": {"usage": true}}`."""

import os
from collections.abc import Sequence
from typing import Any

from scoring.engine.row import Row, generated
from scoring.generation.detokenizer import first_stop, stop_at, text_of
from scoring.tasks.base import Task

TELL_VARIABLE = "MII_AZURE_TELL_CACHED_TOKENS"


def tells_cached_tokens() -> bool:
    """Return True if the operator lets callers see how many tokens were cached, perhaps by somebody else's prompt."""
    return os.environ.get(TELL_VARIABLE, "").lower() in ("1", "true", "yes", "on")


def usage(task: Task, rows: Sequence[Row], outputs: Sequence[Any]) -> dict[str, Any]:
    """Prompt tokens of all rows, and which inputs truncation cut, if any.

    For generative tasks also completion tokens, each answer's finish reason, and which stop text or token ended it; of
    speech completion tokens.
    """
    counted: dict[str, Any] = {"prompt_tokens": sum(row.prompt_tokens for row in rows if not row.answer)}
    if cut := sorted({row.item for row in rows if row.cut}):
        counted["truncated"] = cut
    if task.schema.generative:
        ended = [_end(task, row, tokens) for row, output in zip(rows, outputs, strict=True) for tokens in output]
        counted["completion_tokens"] = sum(count for count, _ in ended)
        if tells_cached_tokens():
            counted["cached_tokens"] = sum(row.cached for row in rows if not row.answer)
        counted["finish_reasons"] = [reason for _, reason in ended]
        if any(row.parameters.stop or row.parameters.stop_ids for row in rows):
            counted["stop_reasons"] = [
                _stopped_by(task, row, tokens) for row, output in zip(rows, outputs, strict=True) for tokens in output
            ]
    elif made := sum(generated(output) for row, output in zip(rows, outputs, strict=True) if row.new_tokens):
        counted["completion_tokens"] = made
    return counted


def _end(task: Any, row: Row, tokens: list[int]) -> tuple[int, str]:
    """Token count and finish reason: "stop" for an end token or a stop text, "length" if there was no room for more.

    "tool_calls" for an answer that calls tools and has an end.
    """
    reason = _reason(task, row, tokens)
    called = reason == "stop" and row.parameters.reply.tools and task.calls(row, tokens)
    return len(tokens), "tool_calls" if called else reason


def _stopped_by(task: Any, row: Row, tokens: list[int]) -> str | int | None:
    """The caller's stop text or token that ended an answer, if one did."""
    settings = row.parameters
    if tokens and tokens[-1] in settings.stop_ids:
        return tokens[-1]
    found = first_stop(text_of(task.tokenizer, tokens), settings.stop)
    return None if found is None else found[1]


def _reason(task: Any, row: Row, tokens: list[int]) -> str:
    stop = row.parameters.stop
    if tokens and (tokens[-1] in task.eos or tokens[-1] in row.parameters.stop_ids):
        return "stop"
    if stop and stop_at(text_of(task.tokenizer, tokens), stop) is not None:
        return "stop"
    return "length" if len(tokens) >= row.new_tokens else "stop"
