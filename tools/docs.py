"""Writes docs/cli.md from the command line itself; a test compares the two."""

import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent / "docs" / "cli.md"


def render() -> str:
    """The reference of every verb as Markdown, by typer's own documentation command."""
    command = [sys.executable, "-m", "typer", "mii_azure.cli", "utils", "docs", "--name", "mii-azure"]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=_environment()).stdout


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(render(), encoding="utf-8")
    print(f"wrote {PAGE}")
