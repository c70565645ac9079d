"""The threads behind the event loop: results, errors, context, limits, and calls that nobody waits for any more."""

import asyncio
import threading
from contextvars import ContextVar
from typing import Any

import pytest

from local_runner.host.thread_pool import ThreadPool
from tests.waiting import until_async

NUMBER: ContextVar[str] = ContextVar("number", default="")


async def settled(workers: ThreadPool) -> None:
    await until_async(lambda: not workers.busy)


async def test_a_call_has_its_result_its_error_and_its_context() -> None:
    workers = ThreadPool(1, "test")
    NUMBER.set("7")
    assert await workers.submit(NUMBER.get) == "7"
    NUMBER.set("8")
    assert await workers.submit(NUMBER.get) == "8"
    with pytest.raises(ZeroDivisionError):
        await workers.submit(lambda: 1 / 0)
    assert workers.busy == 0


async def test_no_more_threads_than_the_limit_and_none_that_is_not_needed() -> None:
    workers = ThreadPool(2, "test")
    seen = set()

    def work() -> None:
        seen.add(threading.get_ident())

    for _ in range(5):
        await workers.submit(work)
    assert len(seen) == 1
    both = threading.Barrier(2)
    await asyncio.gather(*(workers.submit(both.wait, 5) for _ in range(8)))
    await asyncio.gather(*(workers.submit(work) for _ in range(20)))
    assert len(seen) <= 2


async def test_what_a_cancelled_call_answers_is_handed_to_whoever_cleans_up() -> None:
    workers = ThreadPool(1, "test")
    begun, go = threading.Event(), threading.Event()
    left: list[Any] = []

    def work() -> str:
        begun.set()
        go.wait(5)
        return "late"

    running = workers.submit(work, abandoned=left.append)
    waiting = workers.submit(lambda: left.append("ran"), abandoned=left.append)
    await asyncio.to_thread(begun.wait, 5)
    running.cancel()
    waiting.cancel()
    assert workers.busy == 2  # the thread is still in there
    go.set()
    await settled(workers)
    assert left == ["late", None]
