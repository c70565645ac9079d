"""Thread pool that runs blocking calls for an event loop."""

import asyncio
import contextlib
import contextvars
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class _Call:
    run: Callable[..., Any]
    arguments: tuple[Any, ...]
    context: contextvars.Context
    future: "asyncio.Future[Any]"
    abandoned: Callable[[Any], None]


class ThreadPool:
    """Pool of up to `limit` daemon threads, started on demand. Everything but the calls runs on the event loop.

    ThreadPoolExecutor would do, but has two futures with locks of their own and three callbacks a call: 14 µs more
    where this takes 22. Its threads are no daemons, and it hands no late result over.
    """

    def __init__(self, limit: int, name: str, changed: Callable[[], None] = lambda: None) -> None:
        self.busy = 0  # calls that occupy or await a thread; `changed` is called whenever that changes
        self._changed = changed
        self._limit = limit
        self._name = name
        self._threads = 0
        self._calls: queue.SimpleQueue[_Call] = queue.SimpleQueue()

    def submit(
        self, run: Callable[..., Any], *arguments: Any, abandoned: Callable[[Any], None] = lambda result: None
    ) -> "asyncio.Future[Any]":
        """Run a call on a thread, in the caller's context.

        A call that has begun runs to its end even if its future is cancelled; `abandoned` then gets its
        result, or None if there is none.
        """
        future = asyncio.get_running_loop().create_future()
        if self.busy == self._threads < self._limit:
            self._threads += 1
            threading.Thread(target=self._work, name=f"{self._name}-{self._threads}", daemon=True).start()
        self.busy += 1
        self._changed()
        # In the caller's context, so that log lines of the call carry the request's id.
        self._calls.put(_Call(run, arguments, contextvars.copy_context(), future, abandoned))
        return future

    def _work(self) -> None:
        while True:
            call = self._calls.get()
            result: Any = None
            error: BaseException | None = None
            if not call.future.cancelled():
                try:
                    result = call.context.run(call.run, *call.arguments)
                except BaseException as raised:
                    error = raised
            with contextlib.suppress(RuntimeError):  # the loop has ended
                call.future.get_loop().call_soon_threadsafe(self._ended, call, result, error)
            del call, result, error  # otherwise they would live until the next call

    def _ended(self, call: _Call, result: Any, error: BaseException | None) -> None:
        self.busy -= 1
        self._changed()
        if call.future.cancelled():
            call.abandoned(result)
        elif error is None:
            call.future.set_result(result)
        else:
            call.future.set_exception(error)


def in_thread(call: Callable[[], Any]) -> Future[Any]:
    """Run `call` on a daemon thread, which does not delay exit."""
    future: Future[Any] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future
