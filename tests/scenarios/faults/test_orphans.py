"""Whoever started a server goes, by SIGKILL or with its terminal: nothing that it started stays."""

import os
import pty
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import mii_azure
from tests.processes import Seen, alive, below, command, none_left
from tests.scenarios.faults.conftest import until

HOLDER = """
import sys, time
from pathlib import Path
from local_runner.process.launch import Azmlinfsrv, Container, Runner
from local_runner.targets.targets import InProcess
kind, bundle = sys.argv[1], Path(sys.argv[2])
if kind == "replicas":
    host = Runner(bundle, arguments=("--replicas", "2"))
else:
    host = {"runner": Runner, "azmlinfsrv": Azmlinfsrv, "container": Container, "in-process": InProcess}[kind](bundle)
with host:
    print("up", flush=True)
    time.sleep(600)
"""
# The program of a terminal's session: it runs its arguments in front, as a shell does, and ends when it is hung up.
SESSION = """
import fcntl, os, signal, subprocess, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGHUP, lambda *_: os._exit(0))
child = subprocess.Popen(sys.argv[1:])
child.wait()
"""


@contextmanager
def holder(kind: str, bundle: Path, **env: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that holds a host; it is killed at the end, with all that it started."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, kind, str(bundle)], stdout=subprocess.PIPE, env={**os.environ, **env}
    )
    with none_left() as noted:
        try:
            yield process
        finally:
            noted += below(process.pid)
            process.kill()
            process.communicate()


def ended(processes: list[Seen]) -> bool:
    return not any(map(alive, processes))


@pytest.fixture(scope="module")
def with_server(tiny: Callable[[str, str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = str(tiny("bert", "fill-mask"))
    return mii_azure.generate(
        "fill-mask", model, "orphan", output=tmp_path_factory.mktemp("bundle") / "b", server="http"
    )


@pytest.mark.parametrize("kind", ["runner", "replicas", "azmlinfsrv", "container", "in-process"])
def test_a_server_ends_with_the_killed_process_that_started_it(
    kind: str, bundle: Path, request: pytest.FixtureRequest
) -> None:
    served = request.getfixturevalue("with_server") if kind == "container" else bundle
    with holder(kind, served) as process, none_left() as noted:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        started = below(process.pid)
        noted += started
        assert len(started) >= {"replicas": 3, "azmlinfsrv": 2}.get(kind, 1)
        assert not ended(started)
        process.kill()
        until(lambda: ended(started))


@pytest.mark.parametrize("kind", ["runner", "replicas", "azmlinfsrv", "in-process"])
def test_so_does_one_that_is_still_loading(kind: str, bundle: Path, tmp_path: Path) -> None:
    busy = tmp_path / "busy"
    env = {"STUB_LOAD": "until:/never", "STUB_BUSY": str(busy)}
    with holder(kind, bundle, **env) as process, none_left() as noted:
        until(busy.exists)
        started = below(process.pid)
        noted += started
        assert started
        process.kill()
        until(lambda: ended(started))


@contextmanager
def terminal(arguments: list[str], output: Path, *before: str) -> Iterator[tuple[Callable[[], None], Seen]]:
    """A session in a terminal of its own that runs a command; gives what closes the terminal, and the command."""
    master, slave = pty.openpty()
    closed = False

    def close() -> None:
        nonlocal closed
        if not closed:
            closed = True
            os.close(master)

    with output.open("wb") as log, none_left() as noted:
        session = subprocess.Popen(
            [sys.executable, "-c", SESSION, *before, sys.executable, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=log,
            start_new_session=True,
            cwd=output.parent,  # where nohup writes
        )
        os.close(slave)
        try:
            (found,) = until(lambda: below(session.pid)[:1])
            noted.append(found)
            yield close, found
        finally:
            noted += below(session.pid)
            close()
            session.kill()
            session.wait()


def serving(bundle: Path) -> list[str]:
    return ["-m", "mii_azure.cli.app", "serve", str(bundle), "--grpc-port", "0", "--http-port", "0"]


def said(log: Path, word: str) -> Callable[[], bool]:
    return lambda: word in log.read_text(errors="replace")


def up(server: Seen) -> Callable[[], bool]:
    """Whether it has come so far that it handles SIGHUP."""

    def caught() -> bool:
        if "-m local_runner" not in command(server[0]):
            return False
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{server[0]}/status").read_text().splitlines())
        return bool(int(status["SigCgt"], 16) >> (signal.SIGHUP - 1) & 1)

    return caught


def test_sighup_reloads_in_a_terminal_and_its_closing_ends(bundle: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with terminal(serving(bundle), log) as (close, server):
        until(up(server), 60)
        os.kill(server[0], signal.SIGHUP)
        until(said(log, "reloaded:"))
        assert alive(server)
        close()
        until(lambda: not alive(server))
    assert "Traceback" not in log.read_text()


def test_a_front_whose_terminal_is_closed_takes_its_replicas_along(bundle: Path, tmp_path: Path) -> None:
    with (
        terminal([*serving(bundle), "--replicas", "2"], tmp_path / "log") as (close, server),
        none_left() as noted,
    ):
        until(up(server), 60)
        replicas = until(lambda: found if len(found := below(server[0])) == 2 else None)
        noted += replicas
        close()
        until(lambda: ended([server, *replicas]))


def test_nohup_outlives_its_terminal_and_reloads(bundle: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with terminal(serving(bundle), log, "nohup") as (close, server):
        until(up(server), 60)
        close()
        os.kill(server[0], signal.SIGHUP)
        until(said(log, "reloaded:"))
        time.sleep(1.5)  # longer than a terminal that goes is waited for
        assert alive(server)


@pytest.mark.parametrize("verb", ["bench", "parity"])
def test_closing_the_terminal_of_a_verb_ends_its_servers(verb: str, bundle: Path, tmp_path: Path) -> None:
    arguments = ["-m", "mii_azure.cli.app", verb, str(bundle), "--targets", "grpc,http"]
    with pytest.MonkeyPatch.context() as patch, none_left() as noted:
        patch.setenv("STUB_LOAD", "until:/never")
        with terminal(arguments, tmp_path / "log") as (close, parent):
            servers = until(lambda: [each for each in below(parent[0]) if "-m local_runner" in command(each[0])], 60)
            noted += servers
            until(up(servers[0]), 60)
            close()
            until(lambda: ended([parent, *servers]))


def test_what_a_killed_front_left_is_removed_by_the_next(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "t"
    place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.setattr(tempfile, "tempdir", None)
    arguments = [sys.executable, "-m", "local_runner", str(bundle), "--grpc-port", "0", "--http-port", "0"]

    def start() -> tuple["subprocess.Popen[bytes]", set[Path]]:
        before = set(place.iterdir())
        process = subprocess.Popen([*arguments, "--replicas", "2"], stderr=subprocess.DEVNULL)
        stack.callback(process.wait)
        stack.callback(process.kill)
        until(lambda: any((folder / "0").exists() for folder in set(place.iterdir()) - before), 60)
        return process, set(place.iterdir()) - before

    with ExitStack() as stack:
        living, first = start()
        killed, second = start()
        assert all(folder.stat().st_mode & 0o077 == 0 for folder in first | second)
        killed.kill()
        killed.wait()
        assert second <= set(place.iterdir())
        third, _ = start()
        assert not second & set(place.iterdir())
        assert first <= set(place.iterdir())  # its front lives
        for process in (living, third):
            process.terminate()
            assert process.wait(30) == 0
        assert not list(place.iterdir())
