"""Escaping of untrusted text for a terminal: names, errors, logs and answers are shown, and control nothing."""

import contextlib
import re
import sys
from collections.abc import Callable
from typing import TextIO

#: Characters that control a terminal: C0 except tab and line feed, DEL, C1, text-direction marks; and lone surrogates,
#: which no encoding can represent.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def escaped(text: str) -> str:
    """Escape every character that controls a terminal as Python writes it, e.g. `\\x1b`."""
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def escaped_json(text: str) -> str:
    """Escape a JSON text, whose strings may hold such characters, as JSON does, e.g. `\\u001b`."""
    return _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def write_lines_as(form: Callable[[str], str]) -> None:
    """Have `say` write lines in another form than plain text, as the log does."""
    global _form
    _form = form


_form: Callable[[str], str] = escaped


def say(text: str, stream: TextIO | None = None) -> None:
    """Write a line to standard error, or to `stream`, escaped, in the form that the log has."""
    stream = stream or sys.stderr
    with contextlib.suppress(OSError):  # the reader may have closed the terminal
        stream.write(_form(text) + "\n")
        stream.flush()
