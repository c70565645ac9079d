"""/v1/responses for text, over the same scoring script as every other protocol; nothing is stored."""

import json
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from local_runner.host.host import Host
from local_runner.http.event_responses import streamed
from local_runner.http.responses_events import ResponseEvents, begun, ended, output_of
from local_runner.protocol import errors, openai_requests, responses_requests


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
        events = ResponseEvents(response, scored)
        return streamed(host, answer, events.told, events.failed, events.begin())
