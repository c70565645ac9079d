"""Progress on a terminal; silent elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.text import Text


@contextmanager
def status(console: Console, enabled: bool) -> Iterator[Callable[[str], None]]:
    """Show the current activity on one line."""
    if not enabled:
        yield lambda text: None
    elif not console.is_terminal:
        yield lambda text: console.print(text, highlight=False)
    else:
        with console.status("") as line:
            yield lambda text: line.update(Text(text))


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
