"""Whose prompts may share what a decoder's slots hold: those with the same salt, and by the operator's wish one key."""

from contextvars import ContextVar

#: Who asks, where the host tells callers apart: it sets this before it calls run(), in the context of that call.
caller: ContextVar[str] = ContextVar("caller", default="")


def salt_of(given: str | None) -> str:
    """The salt of this context's request, of which a part may be its own `cache_salt`."""
    return f"{caller.get()}\0{given or ''}"
