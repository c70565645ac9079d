"""A forked process is the one that was asked for."""

import json
import os
import signal
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType

import pytest

from scoring import errors
from tests.fork_server import ForkServer, _compile, forking
from tests.forked_commands import commands
from tests.processes import command


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def scoring(bundle: Path) -> list[str]:
    """A command whose process scores standard input until it ends."""
    return [sys.executable, "-m", "local_runner.targets.inprocess", str(bundle)]


def test_it_is_a_child_with_its_own_command_line_folder_session_and_files(
    fork_server: ForkServer, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forked: list[int] = []
    fork = fork_server.fork
    monkeypatch.setattr(fork_server, "fork", lambda *request: forked.append(fork(*request)) or forked[-1])
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with (
        forking(fork_server),
        subprocess.Popen(scoring(bundle), cwd=tmp_path, text=True, start_new_session=True, **pipes) as process,
    ):
        assert forked == [process.pid]
        assert parent(process.pid) == os.getpid()
        assert os.getsid(process.pid) == process.pid
        assert command(process.pid).rstrip() == " ".join(scoring(bundle))
        assert Path(f"/proc/{process.pid}/cwd").resolve() == tmp_path
        told, _ = process.communicate(json.dumps({"body": json.dumps({"inputs": "a"})}))
    assert json.loads(told.splitlines()[-1])["status"] == 200
    assert process.returncode == 0


def test_signals_reach_it(fork_server: ForkServer, bundle: Path) -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL}
    with forking(fork_server), subprocess.Popen(scoring(bundle), **pipes) as process:
        process.kill()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("change", [{"OMP_NUM_THREADS": "3"}, {"PYTHONWARNINGS": "ignore"}])
def test_what_libraries_read_while_they_are_imported_starts_a_process_as_it_stands(
    change: dict[str, str], fork_server: ForkServer
) -> None:
    assert fork_server.can(scoring(Path()), {**os.environ, "MII_AZURE_VERBOSE": "true"})
    assert not fork_server.can(scoring(Path()), {**os.environ, **change})
    assert not fork_server.can([sys.executable, "-m", "another"], dict(os.environ))


def test_a_shell_sees_the_output_and_the_exit_code_of_its_commands(fork_server: ForkServer, tmp_path: Path) -> None:
    with commands(fork_server, tmp_path, {"told": "mii_azure.cli.app"}) as place:
        script = "told check no-bundle || code=$?; echo code $code; echo | told --help | grep -c Usage"
        environment = {**os.environ, "PATH": f"{place}:{os.environ['PATH']}"}
        done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, cwd=tmp_path)
    code, _, usages = done.stdout.partition("\n")
    assert int(code.removeprefix("code ")) > 0
    assert usages == "1\n"
    assert "no-bundle" in done.stderr


def test_files_of_the_packages_and_copies_of_them_are_compiled_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[str] = []
    monkeypatch.setattr(SourceFileLoader, "source_to_code", lambda self, data, path: compiled.append(path))
    _compile()
    copy, changed = tmp_path / "copy.py", tmp_path / "changed.py"
    copy.write_bytes(Path(errors.__file__).read_bytes())
    changed.write_text(copy.read_text() + "# a line more\n")
    code = SourceFileLoader("copy", str(copy)).get_code("copy")
    assert code is not None
    assert {each.co_filename for each in (code, *code.co_consts) if isinstance(each, CodeType)} == {str(copy)}
    SourceFileLoader("changed", str(changed)).get_code("changed")
    assert compiled == [str(changed)]


def test_output_that_nobody_reads_ends_it_as_python_ends() -> None:
    read, write = os.pipe()
    os.close(read)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    program = "from tests.fork_server import _run; _run('this')"  # whose lines wait in a buffer
    try:
        done, plain = (
            subprocess.run([sys.executable, *arguments], env=environment, stdout=write, stderr=subprocess.PIPE)
            for arguments in (("-c", program), ("-m", "this"))
        )
    finally:
        os.close(write)
    assert done.returncode == plain.returncode
    assert b"Traceback" not in done.stderr
