"""Salts of the prefix cache: only prompts with the same salt, and if the operator wishes of one caller, share it."""

from contextvars import ContextVar

#: The caller, if the host distinguishes callers: it sets this before it calls run(), in that call's context.
caller: ContextVar[str] = ContextVar("caller", default="")


def salt_of(given: str | None) -> str:
    """Salt of this context's request: its caller and its own `cache_salt`, if any."""
    return f"{caller.get()}\0{given or ''}"
