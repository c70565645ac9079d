"""/v1/tokenize and /v1/detokenize in vLLM's shapes, also at /tokenize and /detokenize, as vLLM has them."""

import json
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from local_runner.host.host import Host
from local_runner.protocol import errors, token_requests
from scoring.errors import MiiAzureError


def add(app: FastAPI, host: Host, body: Callable[[Request], Any]) -> None:
    """Add the routes; `body` reads a request's JSON object within the limits."""

    @app.post("/tokenize", include_in_schema=False)
    @app.post("/v1/tokenize", summary="Tokens of a text or a conversation")
    async def tokenize(request: Request) -> Response:
        return await _answer(host, request, token_requests.tokenize(await body(request), host.deployment))

    @app.post("/detokenize", include_in_schema=False)
    @app.post("/v1/detokenize", summary="Text of tokens")
    async def detokenize(request: Request) -> Response:
        return await _answer(host, request, token_requests.detokenize(await body(request), host.deployment))


async def _answer(host: Host, request: Request, asked: dict[str, Any]) -> Response:
    answer = await host.score(json.dumps(asked, ensure_ascii=False), request.headers)
    if answer.status < 400:
        return JSONResponse(json.loads(answer.body))
    error: MiiAzureError = errors.failure_of(answer)
    error.where = error.where.removeprefix("parameters.").replace("inputs[0]", "messages")
    raise error
