"""Pages of other origins: whether browsers let them call a server, by the operator's word alone."""

from typing import Any

from starlette.middleware.cors import CORSMiddleware

#: Headers of answers that a page may read beside the usual ones.
_SHOWN = ("Retry-After", "X-Request-Id", "X-Truncated-Inputs")


def allowing(app: Any, origins: str) -> Any:
    """Wrap an ASGI application so that pages of these comma-separated origins, `*` for all, may call it.

    A browser asks beforehand, without a key; keys are still asked of the calls themselves.
    """
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=origins.split(","),
        allow_methods=("GET", "POST"),
        allow_headers=("*",),
        expose_headers=_SHOWN,
    )
