"""Transcription requests of OpenAI's clients as canonical ones, and answers in the forms that they may ask for."""

import base64
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from local_runner.protocol.openai_requests import check_served
from scoring.errors import InvalidInput, InvalidParameter, MiiAzureError
from scoring.host_api import Deployment

TASK = "automatic-speech-recognition"
FORMATS = ("json", "text", "srt", "verbose_json", "vtt")
_TIMED = ("srt", "verbose_json", "vtt")
#: Fields that change no answer, and values of others that ask for nothing.
_IGNORED = {"user", "chunking_strategy"}
_SWITCHES = {"true": True, "True": True, "false": False, "False": False}
_GRANULARITY = "timestamp_granularities[]"
_NUMBERS = {"temperature": float, "seed": int, "max_new_tokens": int}
_FIELDS = {"file", "stream", "model", "language", "prompt", "response_format", _GRANULARITY, *_NUMBERS}
#: Names of the caller's fields for places of a canonical request.
_PLACES = {"inputs": "file", "inputs[0]": "file", "parameters.return_timestamps": "timestamp_granularities"}


def canonical(
    file: bytes | None, fields: Mapping[str, list[str]], deployment: Deployment, path: str
) -> tuple[dict[str, Any], str]:
    """Canonical request for a form's file and fields, and the form that its answer is to have."""
    one = {name: values[-1] for name, values in fields.items() if values}
    check_served({"model": one.get("model")}, deployment, (TASK,), path)
    if not file:
        fault = "missing" if file is None else "empty"
        raise InvalidInput(f"The file is {fault}.", 'Send a sound file as the form\'s field "file".', "file")
    for name in one:
        if name not in _FIELDS | _IGNORED:
            raise InvalidParameter(f"{name[:80]} is not served here.", f'Leave out "{name[:80]}".', name[:80])
    form = one.get("response_format", "json")
    if form not in FORMATS:
        raise InvalidParameter(
            f"There is no response_format {form[:40]!r}.", f"There are {', '.join(FORMATS)}.", "response_format"
        )
    streamed = {"stream": True} if _streamed(one.get("stream", "false"), form) else {}
    units = fields.get(_GRANULARITY, ())
    if others := [each for each in units if each not in ("segment", "word")]:
        raise InvalidParameter(
            f"Times of each {others[0][:40]} are not told.", "Ask for segment or word.", "timestamp_granularities"
        )
    parameters: dict[str, Any] = {name: one[name] for name in ("language", "prompt") if one.get(name)}
    parameters |= {name: _number(one[name], name) for name in _NUMBERS if one.get(name)}
    if path.endswith("/translations"):
        parameters["task"] = "translate"
    if form in _TIMED:
        parameters["return_segments"] = True
    if "word" in units:
        if form != "verbose_json":
            raise InvalidParameter(f"{form} has no words.", "Ask for verbose_json.", "timestamp_granularities")
        parameters["return_timestamps"] = "word"
    return {"inputs": base64.b64encode(file).decode(), "parameters": parameters, **streamed}, form


def _streamed(told: str, form: str) -> bool:
    """True if the answer is to be events; raises InvalidParameter, also for a form that has none."""
    if told not in _SWITCHES:
        raise InvalidParameter("stream is true or false.", where="stream")
    if _SWITCHES[told] and form != "json":
        raise InvalidParameter(f"{form[:40]} is not streamed.", "Ask for json, or leave out stream.", "stream")
    return _SWITCHES[told]


def event(told: Mapping[str, Any]) -> dict[str, Any]:
    """Event of a stream as OpenAI's clients read it: more of the text, or at the end the whole."""
    if "token" in told:
        return {"type": "transcript.text.delta", "delta": told["token"]["text"]}
    return {"type": "transcript.text.done", "text": told["answer"]["text"]}


def _number(text: str, name: str) -> Any:
    try:
        return _NUMBERS[name](text)
    except ValueError:
        raise InvalidParameter(f"{name} is a number.", where=name) from None


@contextmanager
def in_words_of_the_form() -> Iterator[None]:
    """Name the form's fields in errors raised inside."""
    try:
        yield
    except MiiAzureError as error:
        name_field(error)
        raise


def name_field(error: MiiAzureError) -> None:
    """Name the form's field where an error names a canonical request's."""
    error.where = _PLACES.get(error.where, error.where.removeprefix("parameters."))
    if error.where == "file":
        error.hint = error.hint.replace(", in base64", "")  # which a form's file is not


def rendered(answer: dict[str, Any], form: str, path: str) -> tuple[str, str]:
    """Body and media type of an answer in a form."""
    if form == "text":
        return answer["text"] + "\n", "text/plain; charset=utf-8"
    if form == "srt":
        blocks = [f"{at}\n{_span(each, ',')}\n{each['text'].strip()}\n" for at, each in _numbered(answer)]
        return "\n".join(blocks), "application/x-subrip; charset=utf-8"
    if form == "vtt":
        blocks = [f"{_span(each, '.')}\n{each['text'].strip()}\n" for _, each in _numbered(answer)]
        return "\n".join(["WEBVTT\n", *blocks]), "text/vtt; charset=utf-8"
    told: dict[str, Any] = {"text": answer["text"]}
    if form == "verbose_json":
        task = "translate" if path.endswith("/translations") else "transcribe"
        told = {"task": task, **{name: answer[name] for name in ("language", "duration", "text", "segments")}}
        if "chunks" in answer:
            told["words"] = [
                {"word": each["text"].strip(), "start": each["timestamp"][0], "end": each["timestamp"][1]}
                for each in answer["chunks"]
            ]
    return json.dumps(told, ensure_ascii=False), "application/json"


def _numbered(answer: dict[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    return enumerate(answer["segments"], 1)


def _span(segment: dict[str, Any], mark: str) -> str:
    return f"{_clock(segment['start'], mark)} --> {_clock(segment['end'], mark)}"


def _clock(seconds: float, mark: str) -> str:
    whole, part = divmod(round(1000 * seconds), 1000)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}{mark}{part:03}"
