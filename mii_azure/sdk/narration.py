"""Progress of a call from Python with elapsed times: to the given listener, else to a terminal or notebook."""

import sys
import time
from collections.abc import Callable

Progress = Callable[[str], None]


def narrated(progress: Progress | None) -> Progress:
    """`progress` itself; without one, lines on standard error in a terminal or a notebook, and nothing elsewhere."""
    if progress is not None:
        return progress
    began = time.monotonic()

    def say(text: str) -> None:
        if _watched():
            sys.stderr.write(f"{text} ({time.monotonic() - began:.0f} s)\n")
            sys.stderr.flush()

    return say


def _watched() -> bool:
    notebook = sys.modules.get("IPython")
    return sys.stderr.isatty() or bool(notebook and notebook.get_ipython())
