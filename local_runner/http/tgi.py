"""text-generation-inference's HTTP interface, over the same scoring script as every other protocol.

/generate and /generate_stream answer in its form. Source of the forms: the types of huggingface_hub.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from local_runner.bundle.script import Answer
from local_runner.host.host import Host
from local_runner.http.event_responses import streamed
from local_runner.http.openai_events import sse
from local_runner.protocol import errors, tgi_requests
from scoring.errors import MiiAzureError
from scoring.host_api import Event

PREFIX = "/generate"
_TYPES = {429: "overloaded", 500: "generation", 504: "incomplete_generation"}
_NO_TOKEN = {"id": 0, "text": "", "logprob": 0.0, "special": True}  # of an answer that a stop text ended at once


def add(app: FastAPI, host: Host, body: Callable[[Request], Any]) -> None:
    """Add the routes; `body` reads a request's JSON object within the limits."""

    @app.post("/generate", summary="Continue a text, in text-generation-inference's form")
    async def generate(request: Request) -> Response:
        asked = tgi_requests.canonical(await body(request), host.deployment, stream=False, full=False)
        [answer] = await whole(host, request.headers, asked)
        return JSONResponse(answer)

    @app.post("/generate_stream", summary="Continue a text as a stream, in text-generation-inference's form")
    async def generate_stream(request: Request) -> Response:
        asked = tgi_requests.canonical(await body(request), host.deployment, stream=True, full=False)
        return await as_stream(host, request.headers, asked)

    @app.get("/info", summary="The model and its limits, in text-generation-inference's form")
    async def info() -> dict[str, Any]:
        deployment = host.deployment
        return {
            "model_id": deployment.model.id,
            "model_sha": deployment.model.revision,
            "model_dtype": deployment.dtype,
            "model_pipeline_tag": deployment.task,
            "max_concurrent_requests": deployment.limits.queue_size,
            "max_total_tokens": deployment.limits.context_length or None,
            "router": "mii-azure",
        }

    @app.head("/health", include_in_schema=False)
    @app.get("/health", summary="Ready to score")
    async def health() -> Response:
        if not host.ready:
            raise host.unready()
        return Response()


def error_body(error: MiiAzureError) -> dict[str, Any]:
    """Error in this interface's shape; the fields of ours stand beside its sentence."""
    told = error.to_dict()["error"]
    message = " ".join(part for part in (told.pop("message"), told.get("hint", "")) if part)
    return {"error": message, "error_type": _TYPES.get(error.http_status, "validation"), **told}


async def _ask(host: Host, headers: Mapping[str, str], asked: dict[str, Any]) -> Answer:
    """Answer of the script; raises the error that it stands for."""
    answer = await host.score(json.dumps(asked, ensure_ascii=False), headers)
    if answer.status >= 400:
        raise errors.failure_of(answer)
    return answer


async def whole(host: Host, headers: Mapping[str, str], asked: dict[str, Any]) -> list[dict[str, Any]]:
    answers: list[dict[str, Any]] = json.loads((await _ask(host, headers, asked)).body)["answer"]
    return answers


async def as_stream(host: Host, headers: Mapping[str, str], asked: dict[str, Any]) -> Response:
    answer = await _ask(host, headers, asked)
    return streamed(host, answer, _Tokens().told, lambda error: sse(error_body(error)))


class _Tokens:
    """Events of one stream, one a token; each waits for the next, since the last one carries the whole text."""

    def __init__(self) -> None:
        self._count = 0
        self._held: dict[str, Any] | None = None

    def told(self, event: Event) -> bytes:
        """Encode what an event lets be sent."""
        if "answer" in event:
            return self._last(event["answer"][0], event["usage"])
        details = event.get("details") or {"tokens": []}
        tops = details.get("top_tokens") or [None] * len(details["tokens"])
        sent = [self._next(token, others) for token, others in zip(details["tokens"], tops, strict=True)]
        return b"".join(sent)

    def _next(self, token: dict[str, Any], others: list[dict[str, Any]] | None) -> bytes:
        held, self._count = self._held, self._count + 1
        more = {} if others is None else {"top_tokens": others}
        self._held = {"index": self._count, "token": token, **more, "generated_text": None, "details": None}
        return b"" if held is None else sse(held)

    def _last(self, whole: dict[str, Any], used: dict[str, Any]) -> bytes:
        found = {name: whole["details"][name] for name in ("finish_reason", "generated_tokens", "seed")}
        held = self._held or {"index": 1, "token": _NO_TOKEN}
        details = {**found, "input_length": used["prompt_tokens"]}
        return sse({**held, "generated_text": whole["generated_text"], "details": details})
