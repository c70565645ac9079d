"""text-embeddings-inference's HTTP interface for encoders, over the same scoring script as every other protocol.

Source of the forms: the OpenAPI document of that server.
"""

import json
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from local_runner.host.host import Host
from local_runner.http.retrieval import reranked
from local_runner.protocol import errors, tei_requests
from local_runner.protocol.openai_errors import in_callers_words


def add(app: FastAPI, host: Host, body: Callable[[Request], Any]) -> None:
    """Add the routes; `body` reads a request's JSON object within the limits."""

    async def answer(request: Request, asked: dict[str, Any]) -> Any:
        found = await host.score(json.dumps(asked, ensure_ascii=False), request.headers)
        if found.status >= 400:
            error = errors.failure_of(found)
            if request.url.path != "/similarity":  # which nests its parameters
                error.where = error.where.removeprefix("parameters.")
                error.message, error.hint = in_callers_words(error.message), in_callers_words(error.hint)
            raise error
        return json.loads(found.body)

    @app.post("/embed", summary="Turn texts into vectors, in text-embeddings-inference's form")
    async def embed(request: Request) -> Response:
        return JSONResponse(await answer(request, tei_requests.embed(await body(request), host.deployment)))

    @app.post("/embed_sparse", summary="Turn texts into sparse vectors, in text-embeddings-inference's form")
    async def embed_sparse(request: Request) -> Response:
        vectors = await answer(request, tei_requests.embed_sparse(await body(request), host.deployment))
        return JSONResponse([tei_requests.sparse_values(vector) for vector in vectors])

    @app.post("/rerank", summary="Order texts by how well they answer a query, in text-embeddings-inference's form")
    async def rerank(request: Request) -> Response:
        sent = await body(request)
        if "documents" in sent:  # vLLM's clients ask for a ranking in Cohere's form here too
            return await reranked(host, request, sent)
        return JSONResponse(await answer(request, tei_requests.rerank(sent, host.deployment)))

    @app.post("/predict", summary="Label texts, in text-embeddings-inference's form")
    async def predict(request: Request) -> Response:
        return JSONResponse(await answer(request, tei_requests.predict(await body(request), host.deployment)))

    @app.post("/similarity", summary="Compare sentences, in text-embeddings-inference's form")
    async def similarity(request: Request) -> Response:
        return JSONResponse(await answer(request, tei_requests.similarity(await body(request), host.deployment)))
