"""How long a request's caller still waits: asked for by whatever works for it, from its arrival to its last byte."""

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

_STEPS = 256  # of Python between two looks at the clock


@dataclass(frozen=True)
class Deadline:
    """A moment, by the monotonic clock, and how many seconds after the request's arrival it is."""

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
        """What a request is answered that took longer."""
        return RequestTimeout(f"No answer within {self.seconds:g} s.", "Ask for less, or raise the timeout.")


_current: ContextVar[Deadline | None] = ContextVar("deadline", default=None)


@contextmanager
def within(deadline: Deadline) -> Iterator[None]:
    """What this thread does inside is for a request with this deadline."""
    token = _current.set(deadline)
    try:
        yield
    finally:
        _current.reset(token)


def left() -> float:
    """Seconds that this thread's request has; raises RequestTimeout where they are over, without a request for ever."""
    deadline = _current.get()
    return threading.TIMEOUT_MAX if deadline is None else deadline.left()


def check() -> None:
    """Raise RequestTimeout where nobody waits for this thread's request any more."""
    left()


@contextmanager
def held(lock: "threading.Lock | threading.Semaphore") -> Iterator[None]:
    """Hold a lock inside; raises RequestTimeout where it does not come free in time."""
    if not lock.acquire(timeout=left()):
        check()
        raise RequestTimeout("The server had no time for the request.", "Send it again.")
    try:
        yield
    finally:
        lock.release()


@contextmanager
def interrupting() -> Iterator[None]:
    """Raise RequestTimeout out of Python code of others that may loop for ever and never looks at the clock."""
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
