"""Page at `/` for browsers, before the application: it knows nothing of a deployment and asks with the user's key.

Probes and curl, which do not ask for HTML, still reach the application. Every file is the package's own, and the
content security policy allows no other source, no inline script and no inline style.
"""

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

_TYPES = {
    ".html": b"text/html; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".svg": b"image/svg+xml",
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; media-src data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = (
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-cache"),
    (b"vary", b"accept"),
)
FOLDER = Path(__file__).parent / "static"
PREFIX = "/page/"
_INDEX = "index.html"

App = Callable[[Any, Any, Any], Awaitable[None]]


class Page:
    """ASGI middleware that answers browsers' `GET /` and `GET /page/FILE`; everything else goes to `app`."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._files = {path.name: path.read_bytes() for path in sorted(FOLDER.iterdir()) if path.suffix in _TYPES}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        name = _name(scope) if scope["type"] == "http" and scope["method"] in ("GET", "HEAD") else None
        if name is None or name not in self._files:
            await self._app(scope, receive, send)
            return
        content = self._files[name]
        kind = (b"content-type", _TYPES[Path(name).suffix])
        length = (b"content-length", str(len(content)).encode())
        await send({"type": "http.response.start", "status": 200, "headers": [kind, length, *_HEADERS]})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else content})


def _name(scope: Mapping[str, Any]) -> str | None:
    """Name of the file that a request asks for; None if it is no business of the page."""
    path: str = scope["path"]
    if path == "/":
        accepted = b",".join(value for name, value in scope["headers"] if name.lower() == b"accept")
        return _INDEX if b"text/html" in accepted.lower() else None
    return path.removeprefix(PREFIX) if path.startswith(PREFIX) else None
