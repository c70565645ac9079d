"""Rankings over HTTP: /v1/rerank as Cohere's and Jina's clients ask for it, /v1/score as vLLM's do."""

import json
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from local_runner.host.host import Host
from local_runner.protocol import errors, retrieval_requests
from local_runner.protocol.retrieval_requests import in_order, in_words_of

_CUT = "Documents were cut at the context length"


def add(app: FastAPI, host: Host, body: Callable[[Request], Any]) -> None:
    """Add the routes; `body` reads a request's JSON object within the limits."""

    @app.post("/v2/rerank", include_in_schema=False)
    @app.post("/v1/rerank", summary="Order documents by how well they answer a query")
    async def rerank(request: Request) -> Response:
        return await reranked(host, request, await body(request))

    @app.post("/v1/score", summary="Score pairs of texts")
    async def score(request: Request) -> Response:
        sent = await body(request)
        first, second = retrieval_requests.sides(sent)
        paired = isinstance(sent.get(first), list) and len(sent[first]) > 1
        with in_words_of(first, second, paired):
            answer, used = await score_of(host, request.headers, retrieval_requests.score(sent, host.deployment))
        data = [{"index": at, "object": "score", "score": each} for at, each in enumerate(in_order(answer))]
        head = {"id": f"score-{uuid.uuid4().hex}", "object": "list", "created": int(time.time())}
        tokens = used["prompt_tokens"]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0}
        return JSONResponse({**head, "model": host.deployment.name, "data": data, "usage": usage})


async def reranked(host: Host, request: Request, sent: dict[str, Any]) -> Response:
    """Answer to a body of /v1/rerank."""
    with in_words_of("query", "documents"):
        answer, used = await score_of(host, request.headers, retrieval_requests.rerank(sent, host.deployment))
    version = request.url.path[2:3] if request.url.path.startswith("/v") else "1"
    return JSONResponse(_ranking(sent, answer, used, host.deployment.name, version))


async def score_of(
    host: Host, headers: Mapping[str, str], canonical: dict[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """Answer and usage of the script for a canonical request; raises the error that it stands for."""
    answer = await host.score(json.dumps(canonical, ensure_ascii=False), headers)
    if answer.status >= 400:
        raise errors.failure_of(answer)
    told = json.loads(answer.body)
    return told["answer"], told["usage"]


def _ranking(sent: dict[str, Any], answer: list[Any], used: dict[str, Any], model: str, version: str) -> dict[str, Any]:
    tokens, ranked = used["prompt_tokens"], retrieval_requests.ranked(answer, sent)
    returned = sent.get("return_documents") is True
    results = [
        {
            "index": entry["index"],
            "relevance_score": entry["score"],
            **({"document": retrieval_requests.document(sent, entry["index"])} if returned else {}),
        }
        for entry in ranked
    ]
    cut = sorted(entry["index"] for entry in ranked if entry.get("truncated"))
    told = f"{_CUT}: {', '.join(map(str, cut))}." if cut else f"{_CUT}."
    warnings = {"warnings": [told]} if "truncated" in used else {}
    meta = {"api_version": {"version": version}, "tokens": {"input_tokens": tokens}, **warnings}
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"id": f"rerank-{uuid.uuid4().hex}", "model": model, "results": results, "usage": usage, "meta": meta}
