"""Messages that are none: bytes that do not parse as a call's request are answered INVALID_ARGUMENT, with a sentence.

gRPC itself would answer INTERNAL, and write a traceback into the log. One that does not come whole ends like a body.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import grpc

from local_runner.errors import RequestStalled
from local_runner.http import uvicorn_protocol
from local_runner.protocol import errors
from scoring.errors import InvalidInput, MiiAzureError

_MALFORMED = object()  # stands for a request that did not parse


class Registry:
    """What the generated `add_..._to_server` functions are given in the server's place."""

    def __init__(self, server: Any) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Left out: the same methods come once more, by their names."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        """Register the handlers of a service, each forgiving."""
        forgiving = {name: _forgiving(handler) for name, handler in handlers.items()}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, forgiving),))
        self._server.add_registered_method_handlers(service, forgiving)


def _forgiving(handler: Any) -> Any:
    """The handler of a call of one message, which reads it itself: gRPC would wait for its end without one."""
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
