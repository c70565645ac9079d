"""Spans of the stages of one request, for a host that traces requests; nothing is kept if none does."""

from contextvars import ContextVar

#: Stage (parse, encode, queue, forward, decode), and `time.perf_counter()` at its begin and at its end.
Span = tuple[str, float, float]

#: The host sets it to a list of its own before it calls run(), in the context that run() is called in.
taken: ContextVar[list[Span] | None] = ContextVar("spans", default=None)


def note(stage: str, began: float, ended: float) -> None:
    """Record a stage of this context's request."""
    spans = taken.get()
    if spans is not None and 0.0 < began <= ended:
        spans.append((stage, began, ended))
