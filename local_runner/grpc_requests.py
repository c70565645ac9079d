"""Messages that are none: bytes that do not parse as a call's request are answered INVALID_ARGUMENT, with a sentence.

gRPC itself would answer INTERNAL, and write a traceback into the log.
"""

from collections.abc import Callable
from typing import Any

import grpc

from local_runner import wire
from scoring.errors import InvalidInput

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
    handler = handler._replace(request_deserializer=_or_malformed(handler.request_deserializer))
    kind = "unary_stream" if handler.response_streaming else "unary_unary"
    return handler._replace(**{kind: _checked(getattr(handler, kind))})


def _or_malformed(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def parsed(message: bytes) -> Any:
        try:
            return parse(message)
        except Exception:
            return _MALFORMED

    return parsed


def _checked(inner: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    async def call(request: Any, context: Any) -> Any:
        if request is _MALFORMED:
            error = InvalidInput(
                "The message is not what this call takes.", "Build the client from the server's protos."
            )
            sentence, trailing = wire.trailers(error.http_status, error.headers, wire.body_of(error))
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, sentence, trailing)
        return await inner(request, context)

    return call
