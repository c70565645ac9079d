"""A server that forks Python processes which have imported torch, transformers and what else a model server needs.

`forking()` makes `subprocess.Popen` of this process ask it for `python -m MODULE ...` of this project's programs. What
comes is a real process: a child of this one with the command line, the environment, the working directory, the session
and the files that were asked for, and with nothing of this project imported. Only importing libraries is spared, two
thirds of what a tiny model's start takes, compiling this project's files, and taking modules apart at the end. Start a
process as it stands where its start or its end is what is tested.
"""

import _imp
import asyncio
import atexit
import ctypes
import fcntl
import gc
import importlib
import importlib.machinery
import json
import marshal
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

#: Programs that may be forked.
PROGRAMS = (
    "gunicorn",
    "local_runner",
    "local_runner.replicas.local.worker",
    "local_runner.targets.inprocess",
    "mii_azure.cli.app",
    "scoring.tensor_parallel.worker",
    "tests.scoring.tensor_parallel.many_ranks",
)
STAND_BY = "fork server"  # name of a server beside a program, by which tests tell it from what the program starts
_NAME = Path("/proc/self/comm")
#: What a process with one of these words starts is forked too.
STARTERS = {"mii_azure.cli.app", "--replicas", "--front-ends"}
#: Beginnings of the environment variables that libraries do not read while they are imported.
READ_LATER = (
    "AML_",
    "AZUREML_",
    "COLUMNS",
    "CUDA_VISIBLE_DEVICES",
    "GLOO_",
    "GRPC_ENABLE_FORK_SUPPORT",  # a front of replicas sets it for itself, and they use no gRPC
    "KMP_INIT_AT_FORK",
    "LOCAL_",
    "MASTER_",
    "MII_AZURE_",
    "NCCL_",
    "OLDPWD",
    "OTEL_",
    "PATH",
    "PWD",
    "PYTEST_",
    "PYTHONDONTWRITEBYTECODE",
    "PYTHONPATH",
    "PYTORCH_NVML_BASED_CUDA_CHECK",
    "RANK",
    "REQUESTS_CA_BUNDLE",
    "SHLVL",
    "STUB_",
    "TMPDIR",
    "TORCHINDUCTOR_CACHE_DIR",
    "WORLD_SIZE",
    "_",
)
#: Packages whose files are compiled once.
PACKAGES = ("local_runner", "mii_azure", "scoring", "templates")
LIBRARIES = """
    torch torch.distributed.tensor torch._dynamo safetensors.torch tokenizers accelerate huggingface_hub
    transformers transformers.modeling_utils transformers.modeling_layers transformers.core_model_loading
    transformers.conversion_mapping transformers.integrations.flash_attention transformers.masking_utils
    transformers.activations transformers.tokenization_utils_tokenizers transformers.models.auto.modeling_auto
    transformers.models.auto.tokenization_auto transformers.models.gpt2.modeling_gpt2
    transformers.models.bert.modeling_bert
    fastapi uvicorn uvicorn.protocols.http.httptools_impl uvicorn.lifespan.on uvloop httptools httpx flask gunicorn
    grpc grpc.aio grpc_health.v1.health grpc_reflection.v1alpha.reflection google.protobuf.json_format
    prometheus_client pydantic jinja2 yaml typer rich.console rich.table cryptography.x509
"""
_ROOM_FOR_COMMAND = 4000  # bytes; /proc shows a command line as long as the server's own at most
_UNFLUSHED = 120  # as Python ends whose streams cannot be flushed
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of Linux' prctl
_ARGUMENTS = 48, 49  # fields of /proc/self/stat: where the command line begins and ends


class ForkServer:
    """The server, as the process that asks it sees it."""

    def __init__(self, asked: socket.socket) -> None:
        self.environment = dict(os.environ)
        self._lock = threading.Lock()
        self._socket = asked

    def can(self, arguments: Any, environment: dict[str, str]) -> bool:
        """Whether a forked process would be the one that these arguments and environment start."""
        if not isinstance(arguments, list | tuple) or list(arguments[:2]) != [sys.executable, "-m"]:
            return False
        differing = {name for name, _ in set(environment.items()) ^ set(self.environment.items())}
        short = sum(map(len, map(str, arguments))) < _ROOM_FOR_COMMAND // 4
        return short and arguments[2] in PROGRAMS and all(name.startswith(READ_LATER) for name in differing)

    def fork(self, request: dict[str, Any], files: list[int]) -> int:
        """Fork a process with these files as those that `request["files"]` numbers; return its pid, a child's."""
        message = json.dumps(request).encode()
        with self._lock, _adopting():
            socket.send_fds(self._socket, [len(message).to_bytes(4, "big")], files)
            self._socket.sendall(message)
            return int.from_bytes(self._socket.recv(4, socket.MSG_WAITALL), "big")

    def close(self) -> None:
        """End the server; what it forked runs on."""
        self._socket.close()


class _Popen(subprocess.Popen[Any]):
    """`subprocess.Popen` that forks where it can."""

    _server: ForkServer

    def _execute_child(self, args: Any, executable: Any, preexec_fn: Any, *rest: Any) -> None:
        close_fds, kept, cwd, env, _, _, shell, *pipes, restore, gid, gids, uid, umask, session, group = rest
        environment = dict(os.environ if env is None else env)
        usual = preexec_fn is None and executable is None and not shell and close_fds and restore
        usual = usual and (gid, gids, uid, umask, group) == (None, None, None, -1, -1)
        if not usual or not self._server.can(args, environment):
            super()._execute_child(args, executable, preexec_fn, *rest)  # type: ignore[misc]
            return
        read, _, _, write, _, errors = pipes
        standard = [number if number >= 0 else usual for usual, number in enumerate((read, write, errors))]
        request = {
            "arguments": [str(each) for each in args],
            "environment": environment,
            "folder": str(cwd or Path.cwd()),
            "files": [0, 1, 2, *kept],
            "session": bool(session),
        }
        self.pid = self._server.fork(request, [*standard, *kept])
        self._child_created = True
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]


class _Process:
    """What `asyncio.create_subprocess_exec` gives, of a process that `subprocess.Popen` started.

    uvloop starts processes itself, and would not ask a server.
    """

    def __init__(self, started: subprocess.Popen[Any]) -> None:
        self._started = started

    def __getattr__(self, name: str) -> Any:
        return getattr(self._started, name)

    async def wait(self) -> int:
        """Wait for its end; return the exit code."""
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()

        def wait() -> None:
            self._started.wait()
            with suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(ended.set)

        threading.Thread(target=wait, daemon=True).start()
        await ended.wait()
        return self._started.wait()


async def _create(*command: str, **options: Any) -> _Process:
    return _Process(subprocess.Popen(command, **options))


@contextmanager
def fork_server() -> Iterator[ForkServer]:
    """Start a server; it ends with the block."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "tests.fork_server", str(theirs.fileno()), "." * _ROOM_FOR_COMMAND]
    root = Path(__file__).resolve().parent.parent
    with ours, subprocess.Popen(command, pass_fds=(theirs.fileno(),), cwd=root, stdin=subprocess.DEVNULL) as process:
        theirs.close()
        try:
            yield ForkServer(ours)
        finally:
            ours.close()
            process.wait()


@contextmanager
def forking(server: ForkServer) -> Iterator[None]:
    """Fork what `subprocess.Popen` starts in this block and can be forked."""
    with mock.patch("subprocess.Popen", type("Popen", (_Popen,), {"_server": server})):
        yield


@contextmanager
def _adopting() -> Iterator[None]:
    """Become the parent of processes below whose own parent ends."""
    libc = ctypes.CDLL(None)
    libc.prctl(_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        libc.prctl(_SUBREAPER, 0, 0, 0, 0)


def main() -> None:
    """Import, then fork a process for every request until nobody asks any more."""
    asked = socket.socket(fileno=int(sys.argv[1]))
    gc.disable()  # it would take a sixth of the time
    for name in LIBRARIES.split():
        importlib.import_module(name)
    _compile()
    gc.freeze()
    gc.enable()
    _serve(asked)


def _compile() -> None:
    """Compile the packages, for processes to load as from a cache of bytecode, bundles' copies of the files too."""
    root = Path(__file__).resolve().parent.parent
    contents = {path.read_bytes() for package in PACKAGES for path in (root / package).rglob("*.py")}
    compiled = {content: marshal.dumps(compile(content, "", "exec", dont_inherit=True)) for content in contents}
    usual = importlib.machinery.SourceFileLoader.source_to_code

    def source_to_code(self: Any, data: Any, path: str, **options: Any) -> Any:
        found = compiled.get(bytes(data))
        if found is None:
            return usual(self, data, path, **options)
        code = marshal.loads(found)
        _imp._fix_co_filename(code, path)
        return code

    importlib.machinery.SourceFileLoader.source_to_code = source_to_code  # type: ignore[method-assign]


def _serve(asked: socket.socket) -> None:
    """Answer requests with pids; what is forked returns from here when its program has ended."""
    while True:
        length, files, _, _ = socket.recv_fds(asked, 4, 64)
        if not length:
            os._exit(0)
        request = json.loads(asked.recv(int.from_bytes(length, "big"), socket.MSG_WAITALL))
        told, tell = os.pipe()
        middle = os.fork()
        if not middle:
            if os.fork():
                os._exit(0)  # so that whoever asked adopts the child
            asked.close()
            os.close(told)
            _become(request, files, tell)
            return
        os.waitpid(middle, 0)
        asked.sendall(os.read(told, 4))
        for number in (told, tell, *files):
            os.close(number)


def _become(request: dict[str, Any], files: list[int], tell: int) -> None:
    """Be the process that was asked for, tell its pid once it is, and run its program."""
    _NAME.write_text("python")
    if request["session"]:
        os.setsid()
    os.chdir(request["folder"])
    above = max(*request["files"], *files, tell) + 1
    *moved, telling = [fcntl.fcntl(number, fcntl.F_DUPFD, above) for number in (*files, tell)]
    for number in (*files, tell):
        os.close(number)
    for number, place in zip(moved, request["files"], strict=True):
        os.dup2(number, place)
        os.close(number)
    os.environ.clear()
    os.environ.update(request["environment"])
    arguments = request["arguments"]
    _show(arguments)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.dont_write_bytecode = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))
    listed = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:1] = [request["folder"], *(path for path in listed if path and path not in sys.path)]
    sys.orig_argv, sys.argv = arguments, arguments[2:]
    sys.modules.pop("tests", None)
    tempfile.tempdir = None
    importlib.invalidate_caches()
    if STARTERS & set(arguments):
        _stand_by(telling)
    os.write(telling, os.getpid().to_bytes(4, "big"))
    os.close(telling)
    _run(arguments[2])


def _run(program: str) -> None:
    """Run a program and end as Python does, but for taking modules apart, which costs more than a short program."""
    try:
        runpy.run_module(program, run_name="__main__", alter_sys=True)
        code: Any = 0
    except SystemExit as end:
        code = 0 if end.code is None else end.code
    if not isinstance(code, int):
        sys.exit(code)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # nobody reads it any more
            code = code or _UNFLUSHED
    os._exit(code)


def _show(arguments: list[str]) -> None:
    """Write the command line where /proc shows it from."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = (int(fields[field - 3]) for field in _ARGUMENTS)
    ctypes.memmove(start, "\0".join(arguments).encode().ljust(end - start, b"\0"), end - start)


def _stand_by(telling: int) -> None:
    """Leave a server beside this process, which forks what this process starts."""
    ours, theirs = socket.socketpair()
    beside = os.fork()
    if not beside:
        ours.close()
        os.close(telling)
        os.setsid()
        _NAME.write_text(STAND_BY)
        _serve(theirs)  # what it forks comes back from here, and ends
        sys.exit(0)
    theirs.close()
    subprocess.Popen = type("Popen", (_Popen,), {"_server": ForkServer(ours)})  # type: ignore[misc]
    asyncio.create_subprocess_exec = _create  # type: ignore[assignment]


if __name__ == "__main__":
    main()
