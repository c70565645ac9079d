"""Progress with elapsed times on standard error: one changing line on a terminal, a line an activity elsewhere."""

import copy
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.status import Status
from rich.text import Text

from mii_azure.cli.shared import opening

T = TypeVar("T")
_NOTABLE_S = 2.0  # less needs no telling


class Activity:
    """Line that tells the current activity and the seconds since it all began; call it with each new one."""

    def __init__(self, console: Console, line: Status | None) -> None:
        self._console, self._line, self._text, self._began = console, line, "", time.monotonic()

    def __call__(self, text: str) -> None:
        self._text = text
        opening.end()
        if self._line is not None:
            self._line.start()
        else:
            self._console.print(self.__rich__(), soft_wrap=True)

    def __rich__(self) -> Text:
        seconds = time.monotonic() - self._began
        return Text(f"{self._text} ({seconds:.0f} s)" if seconds >= _NOTABLE_S else self._text)

    def end(self) -> None:
        """Remove the line from the terminal, so that other things can be printed."""
        opening.end()
        if self._line is not None:
            self._line.stop()

    def over(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items; the line ends with the first."""
        for item in items:
            self.end()
            yield item


class Silence(Activity):
    """Activity that is not shown."""

    def __call__(self, text: str) -> None:
        return


@contextmanager
def status(console: Console, enabled: bool) -> Iterator[Activity]:
    """Show the current activity; yields the function to call with its text."""
    if not enabled:
        yield Silence(console, None)
    elif not console.is_terminal:
        yield Activity(console, None)
    else:
        there = copy.copy(console)
        there.file = console.file  # libraries are silenced by other streams in the place of standard error
        line = there.status("")
        shown = Activity(console, line)
        line.update(shown)
        try:
            yield shown
        finally:
            line.stop()


@contextmanager
def copying(console: Console, enabled: bool) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar over bytes; call the yielded function with (done, total)."""
    if not enabled or not console.is_terminal:
        yield lambda done, total: None
        return
    columns = (TextColumn("writing weights"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("copy", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
