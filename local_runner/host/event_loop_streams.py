"""Events of streams on an event loop: scoring tells once a step which streams have some, and no thread waits."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from typing import Any, TypeVar

from scoring.host_api import Event, EventStream

T = TypeVar("T")
Submit = Callable[[Callable[[], Event]], "asyncio.Future[Event]"]


class _Waiter:
    """The task that waits for a stream's next events, if it does."""

    __slots__ = ("future",)

    def __init__(self) -> None:
        self.future: asyncio.Future[None] | None = None


class EventLoopStreams:
    """Reads streams on one event loop; `submit` runs a blocking call on a thread."""

    def __init__(self, submit: Submit, changed: Callable[[], None] = lambda: None) -> None:
        self.waiting = 0  # streams that wait for the model, not for their clients; `changed` is called when it changes
        self._changed = changed
        self._submit = submit
        self._loop: asyncio.AbstractEventLoop

    async def read(self, stream: EventStream) -> AsyncGenerator[list[Event], None]:
        """Yield the events that have come since the last time; all that came meanwhile are one list."""
        self._loop = asyncio.get_running_loop()
        waiter = _Waiter()
        stream.listen(self._post, waiter)
        due = self._loop.call_later(max(0.0, stream.left()), _wake, [waiter])
        try:
            while True:
                if events := stream.take():
                    yield events
                elif stream.ended or stream.left() <= 0:
                    break
                else:
                    waiter.future = self._loop.create_future()
                    await self._wait(waiter.future)
        finally:
            due.cancel()
        yield [await self._wait(self._submit(stream.finish))]

    async def _wait(self, future: "asyncio.Future[T]") -> T:
        self.waiting += 1
        self._changed()
        try:
            return await future
        finally:
            self.waiting -= 1
            self._changed()

    def _post(self, waiters: list[Any]) -> None:
        """Wake the readers of streams; called on the inference thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(_wake, waiters)


def _wake(waiters: list[_Waiter]) -> None:
    for waiter in waiters:
        if waiter.future is not None and not waiter.future.done():
            waiter.future.set_result(None)
