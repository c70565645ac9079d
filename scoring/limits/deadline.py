"""Deadline of a request, checked by all code that works for it, from its arrival to its last byte."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import FrameType
from typing import Any

from scoring.errors import RequestTimeout

_STEPS = 256  # trace events between two looks at the clock


@dataclass(frozen=True)
class Deadline:
    """A moment by the monotonic clock, and its distance in seconds from the request's arrival."""

    at: float
    seconds: float

    @classmethod
    def after(cls, seconds: float) -> "Deadline":
        """The deadline of a request that arrives now."""
        return cls(time.monotonic() + seconds, seconds)

    def left(self) -> float:
        """Seconds until then; raises RequestTimeout once it has passed."""
        if (left := self.at - time.monotonic()) <= 0:
            raise self.passed()
        return left

    def passed(self) -> RequestTimeout:
        """Error that answers a request past its deadline."""
        return RequestTimeout(f"No answer within {self.seconds:g} s.", "Ask for less, or raise the timeout.")


_current: ContextVar[Deadline | None] = ContextVar("deadline", default=None)


@contextmanager
def within(deadline: Deadline) -> Iterator[None]:
    """Set the deadline of this thread's work inside the context."""
    token = _current.set(deadline)
    try:
        yield
    finally:
        _current.reset(token)


def left() -> float:
    """Seconds left to this thread's request, unlimited without one; raises RequestTimeout once they are over."""
    deadline = _current.get()
    return threading.TIMEOUT_MAX if deadline is None else deadline.left()


def check() -> None:
    """Raise RequestTimeout if the deadline of this thread's request has passed."""
    left()


@contextmanager
def held(lock: "threading.Lock | threading.Semaphore") -> Iterator[None]:
    """Hold a lock inside the context; raises RequestTimeout if it is not free in time."""
    if not lock.acquire(timeout=left()):
        check()
        raise RequestTimeout("The server had no time for the request.", "Send it again.")
    try:
        yield
    finally:
        lock.release()


@contextmanager
def interrupting() -> Iterator[None]:
    """Raise RequestTimeout from within third-party Python code that may loop forever without a look at the clock."""
    if _current.get() is None:
        yield
        return
    steps = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal steps
        steps += 1
        if not steps % _STEPS:
            check()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)
