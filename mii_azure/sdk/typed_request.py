"""Requests as people type them: JSON, plain text, @file and key=value, made into a task's canonical request."""

import base64
import json
import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, get_args

from mii_azure.errors import SpecError
from mii_azure.platform.paths import expanded
from scoring.schema.registry import TASKS
from scoring.schema.requests import TaskSchema

_PAIR = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
#: What begins a JSON array and no text: fill-mask's texts may begin with [MASK].
_ARRAY = re.compile(r'\[\s*(["{\[\]\d-]|$|true|false|null)')
_FORM = 'Type text, @FILE, key=value or JSON such as \'{"inputs": "..."}\'.'
INPUTS = "inputs"
#: Files that stand for their bytes in base64.
_SOUND = (".wav", ".flac", ".ogg", ".oga", ".mp3")


def json_of(words: Sequence[str]) -> str | None:
    """Text of the one JSON request that the words are, also as @FILE, which no task has to be known for; else None."""
    text = contents(words[0]).lstrip() if len(words) == 1 else ""
    return text if text.startswith("{") or _ARRAY.match(text) else None


def read_json(text: str) -> Any:
    """Parse a request; raises SpecError for text that is not JSON."""
    try:
        return json.loads(text)
    except RecursionError:
        raise SpecError("The request is nested too deeply.", 'It looks like \'{"inputs": "..."}\'.') from None
    except ValueError as error:
        raise SpecError(f"The request is not JSON: {error}.", 'It looks like \'{"inputs": "..."}\'.') from None


def contents(word: str) -> str:
    """Text that a word stands for: its own, or with `@` before it that of a file; raises SpecError."""
    if not word.startswith("@") or len(word) == 1:
        return word
    path = expanded(word[1:])
    try:
        if path.suffix.lower() in _SOUND:
            return base64.b64encode(path.read_bytes()).decode()
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise SpecError(f"{path} cannot be read: {reason}.", f"{_FORM} A text with @ first goes into JSON.") from None


def payload_of(words: Sequence[str], task: str) -> dict[str, Any]:
    """Canonical request of a task from texts and key=value pairs; raises SpecError for a key that it has not.

    Pairs are fields of the input, then parameters, whose values are JSON where they can be. Several texts are several
    inputs; in a conversation they are one message.
    """
    known = TASKS.get(task)
    if known is None:
        raise SpecError(f"How to ask for {task!r} is not known here.", f"Send JSON. {_FORM}")
    texts, pairs = _split(words)
    fields = _fields(known)
    own = {key: contents(value) for key, value in pairs.items() if key in fields}
    parameters = {key: _value(value) for key, value in pairs.items() if key in known.parameters.model_fields}
    for key in pairs:
        if key not in (*fields, *known.parameters.model_fields, INPUTS):
            raise _unknown(key, task, [*fields, *known.parameters.model_fields])
    texts += [contents(pairs[INPUTS])] if INPUTS in pairs else []
    payload: dict[str, Any] = {INPUTS: _inputs(task, texts, own, fields)}
    return payload | ({"parameters": parameters} if parameters else {})


def _split(words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    texts, pairs = [], {}
    for word in words:
        match = _PAIR.fullmatch(word)
        if match:
            pairs[match[1]] = match[2]
        else:
            texts.append(contents(word))
    return texts, pairs


def _fields(task: TaskSchema) -> list[str]:
    """Keys of an input that has any: those of a question and its context, say; `system` of a conversation."""
    if task.name == "conversational":
        return ["system"]
    if task.ranks:
        return ["query"]
    kinds = [kind for kind in (task.input, *get_args(task.input)) if hasattr(kind, "model_fields")]
    return [key for kind in kinds for key in kind.model_fields if key not in task.parameters.model_fields]


def _inputs(task: str, texts: list[str], own: dict[str, str], fields: list[str]) -> Any:
    if task == "conversational":
        if not texts:
            raise SpecError("There is no message to answer.", _FORM)
        system = [{"role": "system", "content": own["system"]}] if "system" in own else []
        return [*system, {"role": "user", "content": " ".join(texts)}]
    if fields == ["query"]:  # of a ranking; two texts without one are a pair
        if not texts or (not own and len(texts) != 2):
            raise SpecError(f"An input of {task} is query=... and texts, or two texts.", _FORM)
        return {**own, "texts": texts} if own else texts
    if "sentences" in fields:
        if not texts or list(own) != ["source_sentence"]:
            raise SpecError(f"An input of {task} is source_sentence=... and sentences.", _FORM)
        return {**own, "sentences": texts}
    if own and not texts:
        return own
    if own or not texts or (task == "question-answering"):
        asked = " ".join(f"{key}=..." for key in fields) or "a text"
        raise SpecError(f"An input of {task} is {asked}.", _FORM)
    return texts[0] if len(texts) == 1 else texts


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return contents(text)


def _unknown(key: str, task: str, known: Sequence[str]) -> SpecError:
    near = get_close_matches(key, known, n=1, cutoff=0.6)
    told = f"Did you mean {near[0]}?" if near else f"It has {', '.join(known)}."
    return SpecError(f"{task} has no {key}.", f"{told} A text that has = in it is sent as inputs='...'.")
