"""/v1/responses for text, over the same scoring script as every other protocol; nothing is stored."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from local_runner.bundle.script import Answer
from local_runner.host.host import Host, internal
from local_runner.http.responses_events import ResponseEvents, begun, ended, output_of
from local_runner.protocol import errors, openai_requests, responses_requests
from scoring.errors import InternalError, MiiAzureError


def add(app: FastAPI, host: Host, body: Callable[[Request], Any]) -> None:
    """Add the route; `body` reads a request's JSON object within the limits."""

    @app.post(responses_requests.PATH, summary="Answer an input, in the form of OpenAI's responses")
    async def responses(request: Request) -> Response:
        sent = await body(request)
        with responses_requests.in_words_of(sent):
            canonical = responses_requests.canonical(sent, host.deployment)
            answer = await host.score(json.dumps(canonical, ensure_ascii=False), request.headers)
            if answer.status >= 400:
                raise errors.failure_of(answer)
        response = begun(sent, openai_requests.answered_as(sent, host.deployment))
        scored = bool(canonical["parameters"].get("return_details"))
        if not canonical.get("stream"):
            told = json.loads(answer.body)
            return JSONResponse(ended(response, output_of(told["answer"][0][0], scored), told["usage"]))
        if answer.chunks is None:
            raise InternalError("The scoring script did not stream.")
        events = _events(host, answer, ResponseEvents(response, scored))
        return StreamingResponse(events, 200, {"Cache-Control": "no-cache"}, "text/event-stream")


async def _events(host: Host, answer: Answer, told: ResponseEvents) -> AsyncIterator[bytes]:
    try:
        yield told.begin()
        async with aclosing(host.events(answer)) as lists:
            async for events in lists:
                yield b"".join(map(told.told, events))
    except Exception as error:
        known = error if isinstance(error, MiiAzureError) else internal(error)
        yield told.failed("server_error", f"{known.message} {known.hint}".strip())
