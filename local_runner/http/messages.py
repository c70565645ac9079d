"""/v1/messages, Anthropic's interface, for text, over the same scoring script as every other protocol."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from local_runner.bundle.script import Answer
from local_runner.host.host import Host, internal
from local_runner.http.messages_events import MessageEvents, begun, ended, failed
from local_runner.protocol import errors, messages_requests, openai_requests
from scoring.errors import InternalError, MiiAzureError


def add(app: FastAPI, host: Host, body: Callable[[Request], Any]) -> None:
    """Add the routes; `body` reads a request's JSON object within the limits."""

    async def scored(request: Request, sent: dict[str, Any], read: Any) -> Answer:
        with messages_requests.in_words_of(sent):
            canonical = json.dumps(read(sent, host.deployment), ensure_ascii=False)
            answer = await host.score(canonical, request.headers)
            if answer.status >= 400:
                error = errors.failure_of(answer)
                # The system prompt and tools' results are messages of their own to the script: its numbers are others.
                error.where = "inputs" if error.where.startswith("inputs") else error.where
                raise error
        return answer

    @app.post(messages_requests.PATH, summary="Answer a conversation, in the form of Anthropic's messages")
    async def messages(request: Request) -> Response:
        sent = await body(request)
        answer = await scored(request, sent, messages_requests.canonical)
        message = begun(openai_requests.answered_as(sent, host.deployment))
        if sent.get("stream") is not True:
            told = json.loads(answer.body)
            return JSONResponse(ended(message, told["answer"][0][0], told["usage"]))
        if answer.chunks is None:
            raise InternalError("The scoring script did not stream.")
        events = _events(host, answer, MessageEvents(message))
        return StreamingResponse(events, 200, {"Cache-Control": "no-cache"}, "text/event-stream")

    @app.post(f"{messages_requests.PATH}/count_tokens", summary="Count the tokens of a conversation")
    async def count_tokens(request: Request) -> Response:
        answer = await scored(request, await body(request), messages_requests.tokens)
        return JSONResponse({"input_tokens": json.loads(answer.body)["count"]})


async def _events(host: Host, answer: Answer, told: MessageEvents) -> AsyncIterator[bytes]:
    try:
        yield told.begin()
        async with aclosing(host.events(answer)) as lists:
            async for events in lists:
                yield b"".join(map(told.told, events))
    except Exception as error:
        yield failed(error if isinstance(error, MiiAzureError) else internal(error))
