"""/v1/messages, Anthropic's interface, for text, over the same scoring script as every other protocol."""

import json
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from local_runner.bundle.script import Answer
from local_runner.host.host import Host
from local_runner.http.event_responses import streamed
from local_runner.http.messages_events import MessageEvents, begun, ended, failed
from local_runner.protocol import errors, messages_requests, openai_requests


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
        events = MessageEvents(message)
        return streamed(host, answer, events.told, failed, events.begin())

    @app.post(f"{messages_requests.PATH}/count_tokens", summary="Count the tokens of a conversation")
    async def count_tokens(request: Request) -> Response:
        answer = await scored(request, await body(request), messages_requests.tokens)
        return JSONResponse({"input_tokens": json.loads(answer.body)["count"]})
