"""Streams of a scoring script as server-sent events, in whatever form a protocol gives them."""

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing

from fastapi.responses import StreamingResponse

from local_runner.bundle.script import Answer
from local_runner.host.host import Host, internal
from scoring.errors import InternalError, MiiAzureError
from scoring.host_api import Event


def streamed(
    host: Host,
    answer: Answer,
    told: Callable[[Event], bytes],
    failed: Callable[[MiiAzureError], bytes],
    begin: bytes = b"",
    end: bytes = b"",
) -> StreamingResponse:
    """Response that sends each event as `told` has it, after `begin` and before `end`, or an error and no more.

    Raises InternalError for an answer that is no stream.
    """
    if answer.chunks is None:
        raise InternalError("The scoring script did not stream.")
    sent = _sent(host, answer, told, failed, begin, end)
    return StreamingResponse(sent, 200, {"Cache-Control": "no-cache"}, "text/event-stream")


async def _sent(
    host: Host,
    answer: Answer,
    told: Callable[[Event], bytes],
    failed: Callable[[MiiAzureError], bytes],
    begin: bytes,
    end: bytes,
) -> AsyncIterator[bytes]:
    try:
        if begin:
            yield begin
        async with aclosing(host.events(answer)) as lists:
            async for events in lists:
                if pieces := b"".join(map(told, events)):
                    yield pieces
        if end:
            yield end
    except Exception as error:
        yield failed(error if isinstance(error, MiiAzureError) else internal(error))
