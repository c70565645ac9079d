"""Speech over HTTP: /v1/audio/transcriptions and /v1/audio/translations as OpenAI's clients ask for them."""

import base64
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any

from fastapi import FastAPI, Request, Response

from local_runner.host.host import Host
from local_runner.http import openai
from local_runner.http.bodies import read_body
from local_runner.http.event_responses import streamed
from local_runner.http.openai_events import DONE, sse
from local_runner.protocol import audio_requests, errors
from scoring.errors import InvalidInput, MiiAzureError, PayloadTooLarge

_FORM = "Send a form (multipart/form-data) with the field file, as OpenAI's clients do."
_MOST_FIELDS = 32


def add(app: FastAPI, host: Host, body: Callable[[Request], Any]) -> None:
    """Add the routes; bodies are forms, not JSON."""

    @app.post("/v1/audio/transcriptions", summary="Write down what is said")
    async def transcriptions(request: Request) -> Response:
        return await answered(request)

    @app.post("/v1/audio/translations", summary="Write down in English what is said")
    async def translations(request: Request) -> Response:
        return await answered(request)

    async def answered(request: Request) -> Response:
        path = request.url.path
        with audio_requests.in_words_of_the_form():
            file, fields = await _form(request, host.max_body)
            sent, form = audio_requests.canonical(file, fields, host.deployment, path)
            answer = await host.score(_fitting(host, sent, len(file or b"")), request.headers)
            if answer.status >= 400:
                raise errors.failure_of(answer)
        if answer.chunks is not None:
            return streamed(host, answer, lambda each: sse(audio_requests.event(each)), _failed, end=DONE)
        content, kind = audio_requests.rendered(json.loads(answer.body), form, path)
        return Response(content, media_type=kind)


def _failed(error: MiiAzureError) -> bytes:
    """Event of an error that ends a transcript's stream, with the form's field."""
    audio_requests.name_field(error)
    return openai.failed(error)


def as_json(host: Host, content: bytes) -> bytes:
    """Canonical request for a body that is a sound file itself, as Hugging Face's clients post one; others as is."""
    if host.deployment.task != audio_requests.TASK or not content or content.lstrip()[:1] == b"{":
        return content
    return _fitting(host, {"inputs": base64.b64encode(content).decode()}, len(content), "inputs[0]").encode()


def _fitting(host: Host, sent: dict[str, Any], size: int, where: str = "file") -> str:
    """Body of a canonical request; raises PayloadTooLarge, in the file's own bytes, for one that is not scored."""
    body, limit = json.dumps(sent), host.deployment.limits.max_payload_bytes
    if len(body) <= limit:
        return body
    room = max(0, limit - (len(body) - len(sent["inputs"]))) // 4 * 3
    raise PayloadTooLarge(
        f"The file has {size:,} bytes; {room:,} have room, in base64, in the {limit:,} that a request may have.",
        "Compress it (FLAC, OGG, MP3), or cut it.",
        where,
    )


async def _form(request: Request, limit: int) -> tuple[bytes | None, dict[str, list[str]]]:
    """File and fields of a form; raises InvalidInput for a body that is no form, PayloadTooLarge."""
    from starlette.datastructures import UploadFile
    from starlette.formparsers import MultiPartException, MultiPartParser

    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise InvalidInput("The body is no form.", _FORM, "content-type")
    content = await read_body(request, limit)

    async def whole() -> AsyncGenerator[bytes, None]:
        yield content

    try:
        parser = MultiPartParser(request.headers, whole(), max_files=1, max_fields=_MOST_FIELDS, max_part_size=limit)
        parser.spool_max_size = limit  # of memory, which the body has taken already: nothing is written to a disk
        found = await parser.parse()
    except (MultiPartException, KeyError, ValueError, AssertionError) as error:
        raise InvalidInput("The form cannot be read.", _FORM) from error
    file, fields = None, dict[str, list[str]]()
    try:
        for name, value in found.multi_items():
            if isinstance(value, UploadFile):
                if name != "file":
                    raise InvalidInput(f"{name[:80]} is no file of this form.", _FORM, name[:80])
                file = await value.read()
            else:
                fields.setdefault(name, []).append(str(value))
    finally:
        await found.close()
    return file, fields
