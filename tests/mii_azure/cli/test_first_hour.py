"""The benchmark of a newcomer's first hour: what a command shows on a terminal, and when nothing new is shown."""

import sys
from pathlib import Path

import pytest

from benchmarks import first_hour
from benchmarks.first_hour import Typed, parts, row


def test_the_longest_silence_is_told_with_what_stood_there() -> None:
    shown = [(1.0, b"fetching\r\n"), (1.5, b"\x1b[2K\r"), (5.0, b"\x1b[32mdone\x1b[0m\r\n"), (6.0, b"")]
    assert row("a step", 0.0, shown) == {"step": "a step", "s": 6.0, "silent_s": 3.5, "where": "fetching"}


def test_a_silence_at_the_end_counts() -> None:
    assert row("a step", 0.0, [(1.0, b"answer\n"), (4.0, b"")])["where"] == "answer"


def test_a_command_is_split_where_its_parts_begin(tmp_path: Path) -> None:
    typed = Typed("true", tmp_path)
    typed.until(None)
    typed.began = 0.0
    typed.shown = [(1.0, b"$ make\n"), (2.0, b"Installing\n"), (5.0, b"9 s\r"), (6.0, b"Serving\n"), (6.5, b"")]
    rows = parts(typed, (("Installing", "installed"), ("Serving", "served"), ("Never", "never")))
    assert [(each["step"], each["s"], each["silent_s"]) for each in rows] == [
        ("true", 2.0, 1.0),
        ("installed", 4.0, 3.0),
        ("served", 0.5, 0.5),
    ]


def test_a_command_is_on_a_terminal_and_is_answered(tmp_path: Path) -> None:
    typed = first_hour.step(
        f"{sys.executable} -c 'import sys; print(input(\"who? \") + str(sys.stderr.isatty()))'",
        tmp_path,
        ((r"who\? ", "Ann\n"),),
    )
    assert "AnnTrue" in typed.text


def test_a_command_that_fails_ends_the_measurement(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="ended with 3: no such thing"):
        first_hour.step("echo no such thing; exit 3", tmp_path)


def test_a_newcomer_has_no_settings_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MII_AZURE_DTYPE", "float32")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    found = first_hour.newcomers(tmp_path)
    assert not {"MII_AZURE_DTYPE", "PYTHONPATH", "OMP_NUM_THREADS"} & found.keys()
    assert found["PATH"].startswith(f"{tmp_path}/.venv/bin:")
