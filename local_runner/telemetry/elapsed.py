"""Line of a terminal that tells what goes on and for how long, while nothing else is told."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from local_runner.telemetry.terminal import escaped

_EVERY_S = 1.0  # a second of silence is no silence yet


class ElapsedLine:
    """Line that is drawn again every second until it is ended, on a terminal alone.

    It is short and leaves the cursor where it begins, so that a line of a log that is written meanwhile covers it.
    """

    def __init__(self, what: Callable[[], str], stream: TextIO) -> None:
        self._what, self._stream = what, stream
        self._began = time.monotonic()
        self._over, self._lock, self._width = threading.Event(), threading.Lock(), 0
        if stream.isatty() and os.environ.get("TERM") != "dumb":
            threading.Thread(target=self._draw, name="elapsed", daemon=True).start()

    def end(self) -> None:
        """Draw it no more, and remove what is left of it."""
        with self._lock:
            self._over.set()
            if self._width:
                self._write("")

    def _draw(self) -> None:
        while not self._over.wait(_EVERY_S):
            with self._lock:
                if not self._over.is_set():
                    self._write(f"{escaped(self._what())} ({time.monotonic() - self._began:.0f} s)")

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # the terminal may be gone, or closed by who ends the process
            self._stream.write("\r" + text.ljust(self._width) + "\r")
            self._stream.flush()
        self._width = len(text)


@contextmanager
def elapsed(what: Callable[[], str], shown: bool = True) -> Iterator[None]:
    """Tell on standard error what goes on within the block, and for how long."""
    line = ElapsedLine(what, sys.stderr) if shown else None
    try:
        yield
    finally:
        if line is not None:
            line.end()
