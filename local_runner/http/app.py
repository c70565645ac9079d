"""HTTP application: /score as in the Azure inference server, health, Open Inference Protocol over REST, and schemas."""

import json
from importlib import metadata
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.exceptions import HTTPException

from local_runner.errors import NoSuchRoute, WrongMethod
from local_runner.host.host import Host, internal
from local_runner.http import (
    adapter_calls,
    audio,
    azure_paths,
    hub,
    messages,
    messages_events,
    oip_bodies,
    openai,
    openapi_bodies,
    responses,
    retrieval,
    tei,
    tgi,
    tokens,
)
from local_runner.http.bodies import read_body
from local_runner.protocol import messages_requests, oip, tei_requests
from local_runner.protocol.errors import body_of, failure_of
from scoring.errors import InvalidInput, InvalidJson, InvalidParameter, MiiAzureError
from scoring.host_api import read_json

_SWAGGER = {
    "2": "swagger2.json",
    "2.0": "swagger2.json",
    "3": "swagger3.json",
    "3.0": "swagger3.json",
    "3.1": "swagger3.1.json",
}


def build(host: Host) -> FastAPI:
    """Build the application over `host`."""
    app = FastAPI(title=host.deployment.name, docs_url=None, redoc_url=None)
    app.add_middleware(azure_paths.AzurePaths)
    app.add_exception_handler(MiiAzureError, _on_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(Exception, _on_crash)
    _add_scoring(app, host)
    _add_health(app, host)
    _add_protocol(app, host)
    for each in (openai, responses, messages, tgi, tei, retrieval, tokens, audio, adapter_calls):
        each.add(app, host, lambda request: _sent(request, host.max_body))
    _add_schemas(app, host)
    return app


def _add_scoring(app: FastAPI, host: Host) -> None:
    # Azure's scoring route is / if the container also serves other paths: a POST there is scored.
    @app.post("/", include_in_schema=False)
    async def root(request: Request) -> Response:
        sent = _text(audio.as_json(host, await read_body(request, host.max_body)))
        raw = hub.canonical(host, request.headers, sent)
        return await hub.answer_to_client(host, request.headers, raw) or await scored(raw, request)

    @app.post("/score", summary="Score one request")
    async def score(request: Request) -> Response:
        return await scored(await _body(request, host.max_body), request)

    async def scored(raw: str, request: Request) -> Response:
        answer = await host.score(raw, request.headers)
        if answer.chunks is not None:
            return StreamingResponse(host.chunks(answer), answer.status, answer.headers)
        return Response(answer.body, answer.status, answer.headers)


def _add_health(app: FastAPI, host: Host) -> None:
    def readiness() -> None:
        if not host.ready:
            raise host.unready()

    @app.head("/", include_in_schema=False)
    @app.get("/", summary="Ready to score, as the Azure inference server says it")
    async def root() -> PlainTextResponse:
        readiness()
        return PlainTextResponse("Healthy")

    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz", summary="The process answers, and need not be started again")
    async def healthz() -> dict[str, str]:
        if host.lost:
            raise host.unready()
        return {"state": host.state}

    @app.head("/readyz", include_in_schema=False)
    @app.get("/readyz", summary="Ready to score, and how far the start is")
    async def readyz() -> JSONResponse:
        told = host.statistics()
        where = {"state": host.condition, "phase": told["phase"], "seconds": told["phase_seconds"]}
        where |= {name: told[name] for name in ("replicas", "replica") if name in told}
        if host.ready:
            return JSONResponse(where)
        error = host.unready()
        return JSONResponse({**error.to_dict(), **where}, error.http_status, error.headers)

    @app.get("/metrics", summary="Prometheus metrics")
    async def metrics() -> Response:
        return Response(await host.exposed(), media_type=host.metrics.content_type)


def _add_protocol(app: FastAPI, host: Host) -> None:
    names = host.deployment.names

    @app.get("/v2", summary="Server metadata")
    async def server_metadata() -> dict[str, Any]:
        return {"name": "mii-azure", "version": _version(), "extensions": []}

    @app.head("/v2/health/live", include_in_schema=False)
    @app.get("/v2/health/live", summary="Server live")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @app.head("/v2/health/ready", include_in_schema=False)
    @app.get("/v2/health/ready", summary="Server ready")
    async def ready() -> JSONResponse:
        return JSONResponse({"ready": host.ready}, 200 if host.ready else 503)

    versioned = "/v2/models/{model}/versions/{version}"

    @app.get(versioned, include_in_schema=False)
    @app.get("/v2/models/{model}", summary="Model metadata")
    async def model_metadata(model: str, version: str = "") -> dict[str, Any]:
        oip.check_model(model, version, names)
        return oip.model_metadata(host.deployment, model)

    @app.get(versioned + "/ready", include_in_schema=False)
    @app.get("/v2/models/{model}/ready", summary="Model ready")
    async def model_ready(model: str, version: str = "") -> JSONResponse:
        oip.check_model(model, version, names)
        return JSONResponse({"name": model, "ready": host.ready}, 200 if host.ready else 503)

    @app.post(versioned + "/infer", include_in_schema=False)
    @app.post("/v2/models/{model}/infer", summary="Infer")
    async def infer(model: str, request: Request, version: str = "") -> Response:
        oip.check_model(model, version, names)
        body = await read_body(request, host.max_body)
        sent, call = oip_bodies.read_inference(body, request.headers.get(oip_bodies.JSON_BYTES))
        answer = await host.score(oip.to_raw(call, host.deployment.task), request.headers)
        if answer.status >= 400:
            raise failure_of(answer)
        if answer.chunks is not None:
            answer.close()
            raise InvalidParameter("Infer cannot stream its answer.", "Use /score.", "stream")
        return JSONResponse(oip_bodies.infer_response(model, sent, *oip.from_answer(call, answer.body)))


def _add_schemas(app: FastAPI, host: Host) -> None:
    code = host.code

    @app.get("/swagger.json", summary="The scoring schema, in the version asked for")
    async def swagger(version: str = "2") -> Response:
        path = code / _SWAGGER.get(version, "")
        if not path.is_file():
            raise HTTPException(404, f"No swagger of version {version!r}; there are {', '.join(_SWAGGER)}.")
        return Response(path.read_bytes(), media_type="application/json")

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=_version(), routes=app.routes)
            described = openapi_bodies.describe(schema)
            app.openapi_schema = _with_task(described, code / _SWAGGER["3.1"], host.deployment.task)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend the document


def _version() -> str:
    """Version of mii-azure; a container carries its files but not the installed package's metadata."""
    try:
        return metadata.version("mii-azure")
    except metadata.PackageNotFoundError:
        return "bundled"


def _with_task(schema: dict[str, Any], swagger: Path, name: str) -> dict[str, Any]:
    """Copy of `schema` with /score, its components, and what other paths hand on, as the bundle describes them."""
    if swagger.is_file():
        task = json.loads(swagger.read_text(encoding="utf-8"))
        schema["paths"]["/score"] = task["paths"]["/score"]
        for kind, parts in task.get("components", {}).items():
            schema.setdefault("components", {}).setdefault(kind, {}).update(parts)
        forms = task.get("components", {}).get("schemas", {}).get("ServiceInput", {}).get("anyOf", [])
        canonical: dict[str, Any] = next(
            (form["properties"] for form in forms if "inputs" in form.get("properties", {})), {}
        )
        openapi_bodies.add_parameters(schema, name, canonical.get("parameters", {}).get("properties", {}))
    return schema


async def _body(request: Request, limit: int) -> str:
    """Read the request's body as text."""
    return _text(await read_body(request, limit))


def _text(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise InvalidJson(f"The body is not UTF-8: {error}.") from error


async def _sent(request: Request, limit: int) -> dict[str, Any]:
    """Read the JSON object in the request's body."""
    return azure_paths.with_deployment(request.scope, _json_object(await _body(request, limit)))


def _json_object(raw: str) -> dict[str, Any]:
    sent = read_json(raw)
    if not isinstance(sent, dict):
        raise InvalidInput("The body is not a JSON object.", 'Send {"inputs": [...]}.')
    return sent


async def _on_error(request: Request, error: Exception) -> Response:
    """Turn one of our errors into its JSON body."""
    if not isinstance(error, MiiAzureError):
        raise error
    return error_response(request.url.path, azure_paths.in_words_of(request.scope, error))


def error_response(path: str, error: MiiAzureError) -> Response:
    """Response with the error's JSON body, in the shape that clients of `path` expect."""
    if path.startswith(messages_requests.PATH):
        return JSONResponse(messages_events.error_body(error), error.http_status, error.headers)
    if path.startswith((openai.PREFIX, azure_paths.PREFIX)):
        return JSONResponse(openai.error_body(error), error.http_status, error.headers)
    if path.startswith(oip.PREFIX):
        return JSONResponse(oip.error_body(error), error.http_status, error.headers)
    if path.startswith(tgi.PREFIX) or path in tei_requests.PATHS:
        return JSONResponse(tgi.error_body(error), error.http_status, error.headers)
    return Response(body_of(error), error.http_status, error.headers, "application/json")


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """Turn the framework's own errors (no such path, wrong method) into the shape that clients of the path expect."""
    if not isinstance(error, HTTPException):
        raise error
    refused = WrongMethod if error.status_code == 405 else NoSuchRoute
    response = error_response(request.url.path, refused(f"{error.detail}."))
    response.headers.update(error.headers or {})
    return response


async def _on_crash(request: Request, error: Exception) -> Response:
    return await _on_error(request, internal(error))
