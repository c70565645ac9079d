"""OpenAI's HTTP interface, over the same scoring script as every other protocol.

/v1/models, /v1/completions, /v1/chat/completions and /v1/embeddings become canonical requests (`openai_requests`);
their answers become OpenAI's objects, streams server-sent events, and errors take OpenAI's shape.
"""

import json
import time
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from local_runner.bundle.script import Answer
from local_runner.errors import ModelNotServed, served_as
from local_runner.host.host import Host
from local_runner.http.event_responses import streamed
from local_runner.http.openai_events import StreamFormat, sse
from local_runner.protocol import errors, openai_errors, openai_logprobs, openai_requests
from scoring.errors import MiiAzureError
from scoring.host_api import Event

PREFIX = "/v1/"
_TYPES = {401: "authentication_error", 429: "rate_limit_error"}


def add(app: FastAPI, host: Host, body: Callable[[Request], Any]) -> None:
    """Add the routes; `body` reads a request's JSON object within the limits."""
    about = {"object": "model", "created": int(time.time()), "owned_by": "mii-azure"}

    def served() -> dict[str, dict[str, Any]]:
        deployment = host.deployment
        parent = {"parent": deployment.name}  # as other servers tell of an adapter's base
        adapters = {name: {"id": name, **about, **parent} for name in deployment.beside}
        return {name: {"id": name, **about} for name in deployment.names} | adapters

    @app.get("/v1/models", summary="Models, as OpenAI lists them")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": list(served().values())}

    @app.get("/v1/models/{wanted:path}", summary="One model")
    async def one_model(wanted: str) -> dict[str, Any]:
        known = served()
        if wanted not in known:
            raise ModelNotServed(f"No model {wanted[:80]!r} here.", served_as(tuple(known)), where="model")
        return known[wanted]

    @app.post("/v1/completions", summary="Continue a prompt")
    async def completions(request: Request) -> Response:
        sent = await body(request)
        with openai_errors.in_words_of(sent, "prompt"):
            canonical = openai_requests.completion(sent, host.deployment)
            key = openai_requests.TEXT_KEYS[host.deployment.task]
            return await _generate(host, request.headers, sent, canonical, _Form("cmpl", "text_completion", key, sent))

    @app.post("/v1/chat/completions", summary="Answer a conversation")
    async def chat(request: Request) -> Response:
        sent = await body(request)
        form = _Form("chatcmpl", "chat.completion", "generated_text", sent)
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
        name = openai_requests.answered_as(sent, host.deployment)
        return JSONResponse({"object": "list", "data": data, "model": name, "usage": usage})


def error_body(error: MiiAzureError) -> dict[str, Any]:
    """Error in OpenAI's shape; its code is ours, its param the place in the request."""
    status = error.http_status
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    message = f"{error.message} {error.hint}".strip()
    return {"error": {"message": message, "type": kind, "param": error.where or None, "code": error.code}}


def failed(error: MiiAzureError) -> bytes:
    """Event of an error that ends a stream."""
    return sse(error_body(error))


class _Form:
    """Response format of one of the two generating interfaces."""

    def __init__(self, prefix: str, kind: str, key: str, sent: dict[str, Any]) -> None:
        self.chat = prefix == "chatcmpl"
        self.key = key
        self._scored = sent.get("logprobs") is not None and sent["logprobs"] is not False  # 0 asks for them
        self._echo = sent.get("echo") is True
        self._only_repeats = not self.chat and openai_requests.only_repeats(sent)
        self._prompt_scored = sent.get("prompt_logprobs") is not None
        self.head = {"id": f"{prefix}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time())}

    def choice(self, index: int, entry: dict[str, Any], reason: str) -> dict[str, Any]:
        """Format one complete answer."""
        text = entry[self.key]
        if self._only_repeats:
            details = entry["details"]
            text = text.removesuffix("".join(token["text"] for token in details["tokens"]))
            none: dict[str, Any] = {name: [] for name in ("tokens", "top_tokens") if name in details}
            entry, reason = {**entry, "details": details | none}, "length"
        said = {"message": _message(entry, text)} if self.chat else {"text": text}
        logprobs = self._logprobs(entry["details"]) if self._scored else None
        more = {} if self.chat else self.of_prompt(entry)
        return {"index": index, **said, "logprobs": logprobs, "finish_reason": reason, **more, **self.ids(entry)}

    def counted(self, used: dict[str, Any]) -> dict[str, Any]:
        """Usage as the caller asked for it."""
        return {**used, "completion_tokens": 0} if self._only_repeats else used

    def ids(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Tokens of an answer if asked for, and of a completion its prompt's."""
        names = ("token_ids",) if self.chat else ("token_ids", "prompt_token_ids")
        return {name: entry[name] for name in names if name in entry}

    def of_prompt(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Log-probabilities of the prompt, if asked for: of a chat its own field, of a completion each choice's."""
        return {"prompt_logprobs": openai_logprobs.of_prompt(entry["details"])} if self._prompt_scored else {}

    def _logprobs(self, details: dict[str, Any]) -> dict[str, Any]:
        return openai_logprobs.chat(details) if self.chat else openai_logprobs.completion(details, echo=self._echo)


def _message(entry: dict[str, Any], text: str) -> dict[str, Any]:
    """An answer as a message; as at OpenAI, the content of one that only calls tools is null."""
    more: dict[str, Any] = {name: entry[name] for name in ("reasoning_content", "tool_calls") if name in entry}
    return {"role": "assistant", "content": text or (None if "tool_calls" in more else ""), **more}


async def _generate(
    host: Host, headers: Mapping[str, str], sent: dict[str, Any], canonical: dict[str, Any], form: _Form
) -> Response:
    form.head["model"] = openai_requests.answered_as(sent, host.deployment)
    if canonical.get("stream"):
        answer = await _ask(host, headers, canonical)
        several = canonical["parameters"].get("num_return_sequences") or 1
        begins = [openai_requests.repeated(canonical)] * several
        told = StreamFormat(form.head, form.chat, begins, openai_requests.wants_usage(sent))
        return streamed(host, answer, partial(_told, stream=told, form=form), failed, told.begin())
    answers, used = await _score(host, headers, canonical)
    entries = [entry for one in answers for entry in one]
    choices = [
        form.choice(index, entry, reason)
        for index, (entry, reason) in enumerate(zip(entries, used["finish_reasons"], strict=True))
    ]
    for choice, stop in zip(choices, used.get("stop_reasons", ()), strict=False):
        choice["stop_reason"] = stop
    more = form.of_prompt(entries[0]) | _prompt_ids(entries[0]) if form.chat else {}
    used = form.counted(used)
    return JSONResponse({**form.head, "choices": choices, "usage": _usage(used), **more})


def _prompt_ids(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: entry[name] for name in ("prompt_token_ids",) if name in entry}


def _told(event: Event, stream: StreamFormat, form: _Form) -> bytes:
    if "token" in event:
        return stream.text(event)
    used, entries = event["usage"], event["answer"]
    told = [form.ids(entry) for entry in entries]
    if stops := used.get("stop_reasons"):
        told = [own | {"stop_reason": stop} for own, stop in zip(told, stops, strict=True)]
    return stream.end(used["finish_reasons"], _usage(used), told, _prompt_ids(entries[0]) if form.chat else {})


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
