"""The command line, run in the process of the test."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from mii_azure.cli import app


class Done(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def mii(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Done]:
    """Run the command line in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["mii-azure", *map(str, arguments)])
        # A wide terminal, so that no sentence is broken in two.
        monkeypatch.setattr(app.err, "width", 400, raising=False)
        code = 0
        try:
            app.main()
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return run
