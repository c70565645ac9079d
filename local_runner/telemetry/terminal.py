"""Text of other people on its way to a terminal: names, errors, logs and answers say what they hold, and do nothing."""

import contextlib
import re
import sys
from typing import TextIO

#: What a terminal obeys: C0 but for tab and line feed, DEL, C1, what turns the direction of text; and half surrogates,
#: which have no form in any encoding.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def escaped(text: str) -> str:
    """The text with every character that a terminal would obey written as Python writes it, e.g. `\\x1b`."""
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def escaped_json(text: str) -> str:
    """The same of a JSON text, whose strings may have such characters: as JSON escapes them, e.g. `\\u001b`."""
    return _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def say(text: str, stream: TextIO | None = None) -> None:
    """Write a line to standard error, or to `stream`, escaped."""
    stream = stream or sys.stderr
    with contextlib.suppress(OSError):  # whoever would read it may have closed the terminal
        stream.write(escaped(text) + "\n")
        stream.flush()
