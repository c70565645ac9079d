"""Clients that go away while their answer is computed: the call ends, and with it the model's work for it.

A gRPC call is cancelled by its server. Over HTTP the connection says so: it tells the request that is being answered.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from local_runner.errors import ClientGone


class WaitingClient:
    """Client that waits for one answer at the other end of a connection. Event loop only."""

    def __init__(self) -> None:
        self._gone = False
        self._call: asyncio.Future[Any] | None = None

    def leave(self) -> None:
        """Cancel the call under way, and any later one."""
        self._gone = True
        if self._call is not None:
            self._call.cancel()

    @contextmanager
    def waiting(self, call: "asyncio.Future[Any]") -> Iterator[None]:
        """Cancel the call if the client leaves inside the context; raises ClientGone in place of the cancellation."""
        self._call = call
        if self._gone:
            call.cancel()
        try:
            yield
        except asyncio.CancelledError:
            if not self._gone:
                raise
            raise ClientGone("The client went away before its answer.") from None
        finally:
            self._call = None


#: That of the request being answered; a server that knows when its clients leave sets it in the request's context.
client: ContextVar[WaitingClient | None] = ContextVar("client", default=None)


@contextmanager
def followed(call: "asyncio.Future[Any]") -> Iterator[None]:
    """Cancel a call whose client leaves inside the context; raises ClientGone."""
    if (waiting := client.get()) is None:
        yield
        return
    with waiting.waiting(call):
        yield


def expect() -> Any:
    """Notice of departure for the call about to begin in this context."""
    from scoring.host_api import Departure, departure

    notice = Departure()
    departure.set(notice)
    return notice
