"""Malformed messages: bytes that do not parse as a call's request are answered INVALID_ARGUMENT, with a sentence.

gRPC itself would answer INTERNAL and log a traceback. A message that arrives incomplete ends as such a body does.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import grpc

from local_runner.errors import RequestStalled
from local_runner.http import uvicorn_protocol
from local_runner.protocol import errors
from scoring.errors import InvalidInput, MiiAzureError

_MALFORMED = object()  # placeholder for a request that did not parse


class Registry:
    """Stand-in for the server, given to the generated `add_..._to_server` functions."""

    def __init__(self, server: Any) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Ignore these: the same methods are registered again by name."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        """Register the handlers of a service, each wrapped to tolerate malformed messages."""
        forgiving = {name: _forgiving(handler) for name, handler in handlers.items()}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, forgiving),))
        self._server.add_registered_method_handlers(service, forgiving)


def _forgiving(handler: Any) -> Any:
    """Wrap the handler of a unary request to read the message itself: gRPC would wait for the end if none came."""
    make = grpc.stream_stream_rpc_method_handler if handler.response_streaming else grpc.stream_unary_rpc_method_handler
    inner = handler.unary_stream if handler.response_streaming else handler.unary_unary
    return make(_checked(inner), _or_malformed(handler.request_deserializer), handler.response_serializer)


def _or_malformed(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def parsed(message: bytes) -> Any:
        try:
            return parse(message)
        except Exception:
            return _MALFORMED

    return parsed


def _checked(inner: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    async def call(requests: Any, context: Any) -> Any:
        try:
            async with asyncio.timeout(uvicorn_protocol.BODY_TOTAL_S):
                request = await context.read()
            if request is _MALFORMED or request is grpc.aio.EOF:
                raise InvalidInput(
                    "The message is not what this call takes.", "Build the client from the server's protos."
                )
        except TimeoutError:
            await _refuse(context, RequestStalled("The message stopped half-way.", "Send all of it."))
        except InvalidInput as error:
            await _refuse(context, error)
        return await inner(request, context)

    return call


async def _refuse(context: Any, error: MiiAzureError) -> None:
    sentence, trailing = errors.trailers(error.http_status, error.headers, errors.body_of(error))
    await context.abort(grpc.StatusCode[error.grpc_status], sentence, trailing)
