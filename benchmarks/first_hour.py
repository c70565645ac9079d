"""A newcomer's first hour: README.md's commands on a terminal, from the clone on, with the silences of each.

`python -m benchmarks.first_hour FOLDER` clones this repository's HEAD into an empty folder and types what README.md
shows, each command on a pseudo-terminal. Of each step it tells the seconds, and the longest time in which the terminal
showed nothing new, with what stood there. `--part NAME`, which may be given more than once, does some of it in a clone
that an earlier part installed, and replaces their rows of results/first_hour.json.
"""

import argparse
import datetime
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.command_line import RESULTS
from benchmarks.common import ROOT, table, write

SILENT_S = 2.0  # that nobody has to wait without being told of what
_STEP_S = 900
_LOOK_S = 0.25
_SIGNS = re.compile(rb"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[=>78]|\r")  # control sequences
Command = tuple[str, tuple[tuple[str, str], ...]]  # and what is typed where a text is seen
FIRST_TEXT = "make demo: query, to the first streamed text"
#: What `make demo` prints where each of its parts begins, and what that part is.
DEMO = (
    (r"Making \.venv", "make demo: .venv"),
    (r"Upgrading pip", "make demo: pip"),
    (r"Installing torch", "make demo: torch"),
    (r"Installing the project", "make demo: the project and its tools"),
    (r"1\. A small open model", "make demo: the model's package"),
    (r"2\. From a model", "make demo: generate and check"),
    (r"3\. The same folder", "make demo: serve, until it is ready"),
    (r"\$ mii-azure query", FIRST_TEXT),
    (r"\n\S*[A-Z][a-z]+ ", "make demo: the rest of the answer"),
    (r"4\. Parity", "make demo: parity of four hosts"),
)
_NAME = "hour"
_MODEL = '"$(mii-azure models smollm2)"'
_SPEC = f"--task conversational --model {_MODEL} --instance-type Standard_F8s_v2"
_CHAT = ((r"> ", "Say hello.\n"), (r"\n> ", "\x04"))
TRIED: tuple[Command, ...] = (
    ("mii-azure try", _CHAT),
    ("mii-azure --help", ()),
    ("mii-azure models", ()),
    ("mii-azure tasks", ()),
    ("mii-azure skus", ()),
    ("mii-azure init --force", ()),
)
_ASKED = '"What is bread?" max_new_tokens=16'
BUNDLE: tuple[Command, ...] = (
    (f"mii-azure plan {_SPEC} --report plan.html", ()),
    (f"mii-azure plan {_SPEC} --rank", ()),
    (f"mii-azure generate {_SPEC} --name {_NAME} --force", ()),
    (f"mii-azure check {_NAME}", ()),
    (f"mii-azure query {_NAME} {_ASKED}", ()),
    (f"mii-azure query {_NAME} {_ASKED} --stream", ()),
)
SERVED: tuple[Command, ...] = (
    ("mii-azure ps", ()),
    (f"mii-azure query 127.0.0.1:50051 {_ASKED}", ()),
    (f"mii-azure query http://127.0.0.1:5001/score {_ASKED}", ()),
    ("mii-azure chat 127.0.0.1:50051 max_new_tokens=16", _CHAT),
    (f"mii-azure stop {_NAME}", ()),
)
PARITY: tuple[Command, ...] = (
    (f"mii-azure parity {_NAME} --targets in-process,http --report parity.html --output verdict.json", ()),
    (f"mii-azure parity {_NAME} --targets http --tokens 160", ()),
)
BENCH: tuple[Command, ...] = (
    (f"mii-azure bench {_NAME} --targets in-process,http --count 20", ()),
    (f"mii-azure bench {_NAME} --targets http --count 20 --sweep --concurrency 1,4 --report bench.html", ()),
)


@dataclass
class Typed:
    """A command on a pseudo-terminal, and when it showed what."""

    command: str
    folder: Path
    began: float = field(default_factory=time.monotonic)
    shown: list[tuple[float, bytes]] = field(default_factory=list)
    stopped: float = 0.0

    def __post_init__(self) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        self.process = subprocess.Popen(
            ["/bin/bash", "-c", self.command],
            cwd=self.folder,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            env=newcomers(self.folder),
        )
        os.close(theirs)

    @property
    def text(self) -> str:
        """All that was shown, without control sequences."""
        return _SIGNS.sub(b"", b"".join(piece for _, piece in self.shown)).decode(errors="replace")

    def until(self, pattern: str | None, seen: int = 0) -> bool:
        """Read until a text is shown after the first `seen` characters, or to the command's end; True if it was."""
        ends = time.monotonic() + _STEP_S
        while time.monotonic() < ends:
            if pattern is not None and re.search(pattern, self.text[seen:]):
                return True
            if not self._read():
                self.process.wait()
                return False
        self.process.kill()
        raise TimeoutError(f"{self.command} took more than {_STEP_S} s; it showed: {self.text[-500:]}")

    def type(self, answers: Sequence[tuple[str, str]]) -> None:
        """Type each answer where its text is shown, then read to the end."""
        seen = 0
        for pattern, answer in answers:
            if not self.until(pattern, seen):
                break
            seen = len(self.text)
            os.write(self._ours, answer.encode())
        self.until(None)
        self.shown.append((time.monotonic(), b""))  # the prompt of the shell

    def _read(self) -> bool:
        asked = time.monotonic()
        ready = select.select([self._ours], [], [], _LOOK_S)[0]
        if (late := time.monotonic() - asked - _LOOK_S) > _LOOK_S:
            self.stopped += late  # nobody let this process look, nor perhaps the command run
        if not ready:
            return True
        try:
            piece = os.read(self._ours, 65536)
        except OSError:  # the other end is closed
            return False
        self.shown.append((time.monotonic(), piece))
        return bool(piece)


def newcomers(folder: Path) -> dict[str, str]:
    """Environment of a newcomer: the clone's .venv first on the path, caches that are empty, nothing of ours."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MII_AZURE", "PYTHON"))}
    own = {"PATH": f"{folder / '.venv' / 'bin'}:{kept['PATH']}", "TERM": "xterm"}
    own |= {"MII_AZURE_MODEL_CACHE": str(folder / ".cache" / "models"), "PIP_CACHE_DIR": str(folder / ".cache" / "pip")}
    return {name: value for name, value in kept.items() if name != "OMP_NUM_THREADS"} | own


def row(step: str, began: float, shown: Sequence[tuple[float, bytes]]) -> dict[str, Any]:
    """Seconds of a step, and the longest silence in it, with the line that stood there."""
    longest, stood, last, line = 0.0, "", began, ""
    for when, piece in shown:
        if when - last > longest:
            longest, stood = when - last, line
        told = [part for part in _SIGNS.sub(b"\n", piece).decode(errors="replace").split("\n") if part.strip()]
        last, line = when, told[-1].strip()[:100] if told else line
    return {"step": step, "s": round(last - began, 1), "silent_s": round(longest, 2), "where": stood}


def parts(typed: Typed, marks: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Rows of a command's parts, each from its mark to the next."""
    rows, first, began, name = [], 0, typed.began, typed.command
    left = list(marks)
    text = ""
    for place, (when, piece) in enumerate(typed.shown):
        text += _SIGNS.sub(b"", piece).decode(errors="replace")
        while left and (found := re.search(left[0][0], text)):
            if place > first:
                rows.append(row(name, began, typed.shown[first : place + 1]))
            first, began, name, text = place + 1, when, left[0][1], text[found.end() :]
            left.pop(0)
    return [*rows, row(name, began, typed.shown[first:])]


def step(command: str, folder: Path, answers: Sequence[tuple[str, str]] = ()) -> Typed:
    """Type a command, and what it asks for; ends the process where the command fails."""
    typed = Typed(command, folder)
    typed.type(answers)
    if typed.process.returncode:
        sys.exit(f"{command} ended with {typed.process.returncode}: {typed.text[-2000:]}")
    return typed


def told(typed: Typed) -> dict[str, Any]:
    """Row of a whole command, printed."""
    name = typed.command.replace(_SPEC, "...").replace(str(ROOT), "URL")
    made = row(name, typed.began, typed.shown)
    if typed.stopped > _LOOK_S:
        made["stopped_s"] = round(typed.stopped, 1)
    print(made, flush=True)
    return made


def served(folder: Path) -> list[dict[str, Any]]:
    """Rows of a server, from its start to its readiness, and of what is asked of it."""
    server = Typed(f"mii-azure serve {_NAME}", folder)
    try:
        if not server.until(r"serving|ready"):
            sys.exit(f"{server.command} ended: {server.text[-2000:]}")
        rows = [told(server)]
        rows += typed_all(SERVED, folder)
        server.until(None)
    finally:
        if server.process.poll() is None:
            os.killpg(server.process.pid, signal.SIGTERM)
    return rows


def cloned(folder: Path) -> list[dict[str, Any]]:
    """Rows from the clone to the end of `make demo`; the row of the first streamed text tells the seconds since."""
    began = time.monotonic()
    rows = [told(step(f"git clone -q {ROOT} {folder.name}", folder.parent))]
    typed = step("make demo", folder)
    demo = parts(typed, DEMO)
    print(*demo, sep="\n", flush=True)
    first = [each["step"] for each in demo].index(FIRST_TEXT) + 1
    demo[first - 1]["since the clone, s"] = round(typed.began - began + sum(each["s"] for each in demo[:first]), 1)
    return rows + demo


def typed_all(commands: Sequence[Command], folder: Path) -> list[dict[str, Any]]:
    """Rows of commands, one after the other."""
    return [told(step(command, folder, answers)) for command, answers in commands]


PARTS: dict[str, Callable[[Path], list[dict[str, Any]]]] = {
    "clone": cloned,
    "try": lambda folder: typed_all(TRIED, folder),
    "bundle": lambda folder: typed_all(BUNDLE, folder),
    "serve": served,
    "parity": lambda folder: typed_all(PARITY, folder),
    "bench": lambda folder: typed_all(BENCH, folder),
}


def revision(folder: Path) -> str:
    """Commit that was cloned."""
    head = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=folder, capture_output=True, text=True, check=True
    )
    return head.stdout.strip()


def main(folder: Path, chosen: Sequence[str]) -> None:
    """Measure, write and print."""
    file = RESULTS / "first_hour.json"
    found = json.loads(file.read_text(encoding="utf-8")).get("parts", {}) if file.is_file() else {}
    stamp = {"cores": len(os.sched_getaffinity(0)), "date": datetime.date.today().isoformat()}
    for name in chosen:
        load = round(os.getloadavg()[0], 1)
        steps = PARTS[name](folder)
        found[name] = {"steps": steps, "revision": revision(folder), "load before": load} | stamp
        rows = [each for part in PARTS if part in found for each in found[part]["steps"]]
        silent = [each for each in rows if each["silent_s"] > SILENT_S]
        most = max(each["silent_s"] for each in rows)
        write("first_hour", {"parts": found, "longest silence, s": most, "silences over 2 s": len(silent)})
    print(table(("step", "s", "silent_s", "where"), silent))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the clone is, or is to be")
    parser.add_argument("--part", action="append", choices=list(PARTS), metavar="NAME", help=", ".join(PARTS))
    options = parser.parse_args()
    main(options.folder.resolve(), options.part or list(PARTS))
