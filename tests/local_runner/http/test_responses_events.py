"""Log-probabilities of /v1/responses: those of a message's text alone, the same whole and streamed."""

import json
from typing import Any

import pytest

from local_runner.http.responses_events import ResponseEvents, begun, output_of
from scoring.generation.call_forms import tool_format
from scoring.generation.replies import ReplyForm, ReplyParser, whole
from tests.tool_models import TEMPLATES

FORM = ReplyForm(thinks=True, tools=("look",), format=tool_format(TEMPLATES["hermes"]))
THOUGHT = ["<think>", "\n", "I think", " so", "</think>", "\n\n"]
CALL = ["<tool_call>", '{"name": "look",', ' "arguments": {"at', '": "so"', "}", "}", "</tool_call>"]
TEXT = ["", "think", " so", " <", "b"]  # the first is half a character, the last ones might have been a call's mark
USAGE = {"finish_reasons": ["stop"], "prompt_tokens": 1, "completion_tokens": 1}


def details(pieces: list[str]) -> dict[str, Any]:
    return {"tokens": [{"id": 0, "text": text, "logprob": -float(len(text)), "special": False} for text in pieces]}


def streamed(pushes: list[list[str]]) -> list[dict[str, Any]]:
    """Output of a stream whose events have these tokens each, as the scoring package tells them."""
    parser, told = ReplyParser(FORM, [1], 0), ResponseEvents(begun({}, "m"), True)
    raw = told.begin()
    for pieces in pushes:
        first, *others = parser.push("".join(pieces)) or [{"text": ""}]
        raw += told.told({"token": {"text": "", **first}, "details": details(pieces)})
        raw += b"".join(told.told({"token": {"text": "", **part}}) for part in others)
    raw += b"".join(told.told({"token": {"text": "", **part}}) for part in parser.finish())
    raw += told.told({"usage": USAGE})
    last = json.loads(raw.decode().rstrip().rsplit("data: ", 1)[1])
    assert last["type"] == "response.completed"
    return list(last["response"]["output"])


def told_of(output: list[dict[str, Any]]) -> list[tuple[str, Any, list[str]]]:
    """Kind, content and scored tokens of each item."""
    found = []
    for item in output:
        [part] = item.get("content", [{"text": item.get("arguments")}])
        found.append((item["type"], part["text"], [token["token"] for token in part.get("logprobs", ())]))
    return found


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize(
    ("pieces", "kinds", "scored"),
    [
        (TEXT, ["message"], TEXT),
        ([*THOUGHT, *TEXT], ["reasoning", "message"], TEXT),
        (THOUGHT[:4], ["reasoning", "message"], []),
        (CALL, ["function_call"], None),
        ([*THOUGHT, *CALL, *CALL], ["reasoning", "function_call", "function_call"], None),
        ([*THOUGHT, "So", ":", *CALL], ["reasoning", "message", "function_call"], ["So", ":"]),
        (["So", ":", *CALL], ["message", "function_call"], ["So", ":"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_they_are_those_of_the_message(
    pieces: list[str], kinds: list[str], scored: list[str] | None, at_once: bool
) -> None:
    parts = whole(FORM, [1], 0, "".join(pieces))
    entry = {"generated_text": parts.pop("text"), **parts, "details": details(pieces)}
    wanted = told_of(output_of(entry, True))
    assert [kind for kind, _, _ in wanted] == kinds
    assert [tokens for kind, _, tokens in wanted if kind == "message"] == ([] if scored is None else [scored])
    found = told_of(streamed([pieces] if at_once else [[piece] for piece in pieces]))
    assert found == wanted[: len(found)]
    assert {kind for kind, _, _ in wanted[len(found) :]} <= {"message"}  # that says nothing
