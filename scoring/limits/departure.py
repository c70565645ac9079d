"""Departure of whoever asked: work whose answer nobody waits for any more is stopped."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class Departure:
    """Notice that a request's caller has gone, for the thread that works for it. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._gone = False
        self._stop: Callable[[], None] | None = None

    def leave(self) -> None:
        """Stop what is under way, and whatever is begun later."""
        with self._lock:
            self._gone, stop = True, self._stop
        if stop is not None:
            stop()

    @contextmanager
    def stopping(self, stop: Callable[[], None]) -> Iterator[None]:
        """Have `stop` called once the caller leaves, inside the context; at once if it has left."""
        with self._lock:
            self._stop, gone = stop, self._gone
        try:
            if gone:
                stop()
            yield
        finally:
            with self._lock:
                self._stop = None


#: That of the request being answered, if the host tells: it sets this before it calls run(), in that call's context.
departure: ContextVar[Departure | None] = ContextVar("departure", default=None)


@contextmanager
def stopping(stop: Callable[[], None]) -> Iterator[None]:
    """Have `stop` called once the caller of this context's request leaves."""
    noticed = departure.get()
    if noticed is None:
        yield
        return
    with noticed.stopping(stop):
        yield
