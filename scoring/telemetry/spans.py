"""What the stages of one request took, for a host that traces requests; nothing is kept where none does."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

#: Stage (parse, encode, queue, forward, decode), and `time.perf_counter()` at its begin and at its end.
Span = tuple[str, float, float]

#: The host sets it to a list of its own before it calls run(), in the context that run() is called in.
taken: ContextVar[list[Span] | None] = ContextVar("spans", default=None)


def note(stage: str, began: float, ended: float) -> None:
    """A stage of this context's request."""
    spans = taken.get()
    if spans is not None and 0.0 < began <= ended:
        spans.append((stage, began, ended))


@contextmanager
def noted(stage: str) -> Iterator[None]:
    """What happens inside is a stage, also when it fails."""
    began = time.perf_counter()
    try:
        yield
    finally:
        note(stage, began, time.perf_counter())
