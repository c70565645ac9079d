"""OpenAI's HTTP interface, over the same scoring script as every other protocol.

/v1/models, /v1/completions, /v1/chat/completions and /v1/embeddings become canonical requests (`openai_requests`);
their answers become OpenAI's objects, streams server-sent events, and errors take OpenAI's shape.
"""

import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from local_runner.bundle.script import Answer
from local_runner.errors import ModelNotServed
from local_runner.host.host import Host, internal
from local_runner.protocol import errors, openai_errors, openai_logprobs, openai_requests
from scoring.errors import InternalError, MiiAzureError

PREFIX = "/v1/"
_TYPES = {401: "authentication_error", 429: "rate_limit_error"}


def add(app: FastAPI, host: Host, body: Callable[[Request], Any]) -> None:
    """Add the routes; `body` reads a request's JSON object within the limits."""
    name = host.deployment.name
    model = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "mii-azure"}

    @app.get("/v1/models", summary="Models, as OpenAI lists them")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model]}

    @app.get("/v1/models/{wanted:path}", summary="One model")
    async def one_model(wanted: str) -> dict[str, Any]:
        if wanted != name:
            raise ModelNotServed(f"No model {wanted[:80]!r} here.", f"This runner serves {name!r}.", where="model")
        return model

    @app.post("/v1/completions", summary="Continue a prompt")
    async def completions(request: Request) -> Response:
        sent = await body(request)
        with openai_errors.in_words_of(sent, "prompt"):
            canonical = openai_requests.completion(sent, host.deployment)
            key = openai_requests.TEXT_KEYS[host.deployment.task]
            return await _generate(host, request.headers, sent, canonical, _Form("cmpl", "text_completion", key))

    @app.post("/v1/chat/completions", summary="Answer a conversation")
    async def chat(request: Request) -> Response:
        sent = await body(request)
        form = _Form("chatcmpl", "chat.completion", "generated_text")
        with openai_errors.in_words_of(sent, "messages"):
            return await _generate(host, request.headers, sent, openai_requests.chat(sent, host.deployment), form)

    @app.post("/v1/embeddings", summary="Turn texts into vectors")
    async def embeddings(request: Request) -> Response:
        sent = await body(request)
        with openai_errors.in_words_of(sent, "input"):
            answer, used = await _score(host, request.headers, openai_requests.embeddings(sent, host.deployment))
        data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(answer)]
        cut = {name: value for name, value in used.items() if name == "truncated"}
        usage = {"prompt_tokens": used["prompt_tokens"], "total_tokens": used["prompt_tokens"], **cut}
        return JSONResponse({"object": "list", "data": data, "model": name, "usage": usage})


def error_body(error: MiiAzureError) -> dict[str, Any]:
    """Error in OpenAI's shape; its code is ours, its param the place in the request."""
    status = error.http_status
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    message = f"{error.message} {error.hint}".strip()
    return {"error": {"message": message, "type": kind, "param": error.where or None, "code": error.code}}


class _Form:
    """Response format of one of the two generating interfaces."""

    def __init__(self, prefix: str, kind: str, key: str) -> None:
        self.chat = prefix == "chatcmpl"
        self.key = key
        self.head = {"id": f"{prefix}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time())}

    def choice(self, index: int, entry: dict[str, Any], reason: str) -> dict[str, Any]:
        """Format one complete answer."""
        text = entry[self.key]
        said = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        return {"index": index, **said, "logprobs": self._logprobs(entry.get("details")), "finish_reason": reason}

    def piece(self, token: dict[str, Any], details: dict[str, Any] | None, offset: int) -> dict[str, Any]:
        """Format one event's part of an answer, `offset` characters of reported tokens after its start."""
        said = {"delta": {"content": token["text"]}} if self.chat else {"text": token["text"]}
        logprobs = self._logprobs(details, offset)
        return {"index": token.get("index", 0), **said, "logprobs": logprobs, "finish_reason": None}

    def end(self, index: int, reason: str) -> dict[str, Any]:
        """Format the last part of an answer."""
        said: dict[str, Any] = {"delta": {}} if self.chat else {"text": ""}
        return {"index": index, **said, "logprobs": None, "finish_reason": reason}

    def _logprobs(self, details: dict[str, Any] | None, offset: int = 0) -> dict[str, Any] | None:
        if details is None:
            return None
        return openai_logprobs.chat(details) if self.chat else openai_logprobs.completion(details, offset)


async def _generate(
    host: Host, headers: Mapping[str, str], sent: dict[str, Any], canonical: dict[str, Any], form: _Form
) -> Response:
    form.head["model"] = host.deployment.name
    if canonical.get("stream"):
        answer = await _ask(host, headers, canonical)
        if answer.chunks is None:
            raise InternalError("The scoring script did not stream.")
        with_usage = openai_requests.wants_usage(sent)
        several = canonical["parameters"].get("num_return_sequences") or 1
        events = _events(host, answer, form, with_usage, [openai_requests.repeated(canonical)] * several)
        return StreamingResponse(events, 200, {"Cache-Control": "no-cache"}, "text/event-stream")
    answers, used = await _score(host, headers, canonical)
    entries = [entry for one in answers for entry in one]
    choices = [
        form.choice(index, entry, reason)
        for index, (entry, reason) in enumerate(zip(entries, used["finish_reasons"], strict=True))
    ]
    return JSONResponse({**form.head, "choices": choices, "usage": _usage(used)})


async def _events(host: Host, answer: Answer, form: _Form, with_usage: bool, begins: list[str]) -> AsyncIterator[bytes]:
    """Stream the events of a script's answer as OpenAI's; `begins` is what each of its answers begins with."""
    head = {**form.head, "object": "chat.completion.chunk"} if form.chat else form.head
    extra: dict[str, Any] = {"usage": None} if with_usage else {}
    parser = errors.EventParser()
    offsets = [0] * len(begins)  # characters of each answer's tokens reported so far
    try:
        for index, begin in enumerate(begins):
            if form.chat:
                said = {"delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
                yield _event({**head, "choices": [{"index": index, **said}], **extra})
            elif begin:
                yield _event({**head, "choices": [form.piece({"text": begin, "index": index}, None, 0)], **extra})
        async with aclosing(host.chunks(answer)) as chunks:
            async for chunk in chunks:
                for text in parser.feed(chunk):
                    event = json.loads(text)
                    if "token" in event:
                        token, details = event["token"], event.get("details")
                        index = token.get("index", 0)
                        yield _event({**head, "choices": [form.piece(token, details, offsets[index])], **extra})
                        offsets[index] += openai_logprobs.length(details)
                        continue
                    used = event["usage"]
                    for index, reason in enumerate(used["finish_reasons"]):
                        yield _event({**head, "choices": [form.end(index, reason)], **extra})
                    if with_usage:
                        yield _event({**head, "choices": [], "usage": _usage(used)})
        yield b"data: [DONE]\n\n"
    except Exception as error:
        known = error if isinstance(error, MiiAzureError) else internal(error)
        yield _event(error_body(known))


async def _ask(host: Host, headers: Mapping[str, str], canonical: dict[str, Any]) -> Answer:
    """Answer of the script to a canonical request; raises the error that it stands for."""
    answer = await host.score(json.dumps(canonical, ensure_ascii=False), headers)
    if answer.status >= 400:
        raise errors.failure_of(answer)
    return answer


async def _score(host: Host, headers: Mapping[str, str], canonical: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    body = json.loads((await _ask(host, headers, canonical)).body)
    return body["answer"], body["usage"]


def _usage(used: dict[str, Any]) -> dict[str, Any]:
    given, made = used["prompt_tokens"], used["completion_tokens"]
    cached = {"prompt_tokens_details": {"cached_tokens": used["cached_tokens"]}} if "cached_tokens" in used else {}
    return {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made, **cached}


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
