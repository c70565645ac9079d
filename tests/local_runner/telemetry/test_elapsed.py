"""A terminal is told what goes on while nothing else is: by the runner, and by a command before its first words."""

import contextlib
import io

import pytest
from rich.console import Console

from local_runner.telemetry import elapsed as module
from local_runner.telemetry.elapsed import ElapsedLine, elapsed
from mii_azure.cli import progress
from mii_azure.cli.shared import Plain, opening, print_json, print_text, read_input
from tests.waiting import until


class Screen(io.StringIO):
    """A terminal, as far as a stream can be one; `lines` is what stands on it."""

    def __init__(self, is_one: bool = True) -> None:
        super().__init__()
        self._is_one = is_one

    def isatty(self) -> bool:
        return self._is_one

    @property
    def lines(self) -> list[str]:
        shown = []
        for line in self.getvalue().split("\n"):
            cells = ""
            for part in line.split("\r"):
                cells = part + cells[len(part) :]
            shown.append(cells.rstrip())
        return shown


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    monkeypatch.setattr(module, "_EVERY_S", 0.001)
    monkeypatch.setenv("TERM", "xterm")
    return Screen()


def test_a_line_tells_what_goes_on_and_is_gone_at_the_end(screen: Screen) -> None:
    with contextlib.redirect_stderr(screen), elapsed(lambda: "loading"):
        until(lambda: "loading (0 s)" in screen.getvalue())
    assert screen.lines == [""]


def test_what_is_logged_meanwhile_covers_the_line(screen: Screen) -> None:
    with contextlib.redirect_stderr(screen), elapsed(lambda: "loading"):
        until(lambda: "loading" in screen.getvalue())
        screen.write("12:00 INFO loaded the model\n")
    assert screen.lines == ["12:00 INFO loaded the model", ""]


@pytest.mark.parametrize("where", ["pipe", "dumb", "json"])
def test_none_is_drawn_where_lines_are_read_by_programs(
    where: str, screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    if where == "pipe":
        monkeypatch.setattr(screen, "_is_one", False)
    if where == "dumb":
        monkeypatch.setenv("TERM", "dumb")
    asked: list[str] = []
    monkeypatch.setattr(module.threading.Thread, "start", lambda thread: asked.append(thread.name))
    with contextlib.redirect_stderr(screen), elapsed(lambda: "loading", shown=where != "json"):
        pass
    assert not asked and not screen.getvalue()


def test_a_terminal_that_went_away_ends_nothing(screen: Screen) -> None:
    line = ElapsedLine(lambda: "loading", screen)
    until(lambda: "loading" in screen.getvalue())
    screen.close()
    line.end()


@pytest.mark.parametrize("words", ["console", "text", "json", "activity"])
def test_a_command_is_told_of_until_its_first_words(words: str, screen: Screen) -> None:
    with contextlib.redirect_stderr(screen):
        opening.begin("plan")
        until(lambda: "plan (0 s)" in screen.getvalue())
        if words == "console":
            Plain(stderr=True).print("fits")
        elif words == "text":
            print_text("fits")
        elif words == "json":
            print_json({})
        else:
            progress.Activity(Console(), None).end()
    assert screen.lines == (["fits", ""] if words == "console" else [""])
    assert opening._line is None


def test_a_person_who_types_a_request_is_told_no_seconds(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    class Typed(io.StringIO):
        def read(self, size: int | None = -1) -> str:
            assert screen.lines == [""]
            assert opening._line is None
            return super().read(size)

    monkeypatch.setattr("sys.stdin", Typed("{}"))
    with contextlib.redirect_stderr(screen):
        opening.begin("query")
        until(lambda: "query (0 s)" in screen.getvalue())
        assert read_input() == "{}"


def test_an_activity_is_shown_while_libraries_are_silenced(screen: Screen) -> None:
    with contextlib.redirect_stderr(screen):
        console = Plain(stderr=True)
        console._force_terminal = True
        with progress.status(console, enabled=True) as tell, contextlib.redirect_stderr(io.StringIO()):
            tell("checking")
            until(lambda: "checking" in screen.getvalue())
