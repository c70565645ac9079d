"""Logs, as text for people or as one JSON object a line for machines; each with its request's id. Never a prompt.

The id comes with the request (`x-request-id`) or is generated; it is echoed, and the scoring threads of that
request log it too.
"""

import contextlib
import io
import json
import logging
import re
import sys
import uuid
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from local_runner.flags.serving import LOG_FORMAT
from local_runner.telemetry.terminal import escaped, escaped_json, write_lines_as

HEADER = "x-request-id"
FORMATS = LOG_FORMAT.choices
_SENSIBLE = re.compile(r"[\x21-\x7e]{1,128}")
_EXTRA = ("code", "ms", "bytes", "phase")
current: ContextVar[str] = ContextVar("request_id", default="")


def take(sent: str | None) -> str:
    """Set the current request id to `sent`, or to a fresh one if that is not valid; return it."""
    number = sent if sent and _SENSIBLE.fullmatch(sent) else uuid.uuid4().hex
    current.set(number)
    return number


def set_up(log_format: str, verbose: bool) -> None:
    """Log to standard error: text from WARNING on, or JSON with every request; for a process's own main."""
    _go_on_without_a_disk()
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_with_id)
    handler.setFormatter(_Json() if log_format == "json" else _Text(_TEXT))
    level = logging.DEBUG if verbose else logging.INFO if log_format == "json" else logging.WARNING
    logging.basicConfig(level=level, handlers=[handler])
    if log_format == "json":
        logging.captureWarnings(True)
        write_lines_as(_said)


def _said(text: str) -> str:
    """Line of the runner about itself, as the log's other lines are."""
    record = logging.LogRecord("mii_azure.runner", logging.INFO, __file__, 0, text, None, None)
    _with_id(record)
    return _Json().format(record)


class _Unfailing(io.FileIO):
    """Stream that survives a full disk or a closed reader: only the text being written is lost."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def _go_on_without_a_disk() -> None:
    """Let no write to standard output or error fail: even a library's stray print would fail its request."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
            buffer = io.BufferedWriter(_Unfailing(stream.fileno(), "wb", closefd=False))
            text = io.TextIOWrapper(buffer, stream.encoding, "backslashreplace", line_buffering=True)
            setattr(sys, name, text)


_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s%(shown_id)s"


def _with_id(record: logging.LogRecord) -> bool:
    number = current.get()
    vars(record).update(request_id=number, shown_id=f" [{number}]" if number else "")
    return True


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: getattr(record, name) for name in ("request_id", *_EXTRA) if getattr(record, name, "") != ""}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return escaped_json(json.dumps(line, ensure_ascii=False))


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return escaped(super().format(record))


class Middleware:
    """Middleware that gives every HTTP request an id and echoes it."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        number = take(headers.get(HEADER.encode(), b"").decode("latin-1"))

        async def echo(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (HEADER.encode(), number.encode())]
            await send(message)

        await self._app(scope, receive, echo)
