"""Commands for a shell that are forked processes of `tests.fork_server`."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread

from tests.fork_server import ForkServer, forking

# What a command is: it hands its arguments, environment, folder and files over, and ends as the forked process does.
_SCRIPT = """#!{python} -SEI
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as asked:
    asked.connect({address!r})
    request = [[sys.executable, "-m", {module!r}, *sys.argv[1:]], dict(os.environ), os.getcwd()]
    socket.send_fds(asked, [json.dumps(request).encode()], [0, 1, 2])
    asked.shutdown(socket.SHUT_WR)
    sys.exit(int(asked.recv(16)))
"""


@contextmanager
def commands(server: ForkServer, folder: Path, modules: Mapping[str, str]) -> Iterator[Path]:
    """Write a command for each name into a folder, which runs the module of that name; they work within the block."""
    address = str(folder / "socket")
    for name, module in modules.items():
        command = folder / name
        command.write_text(_SCRIPT.format(python=sys.executable, address=address, module=module))
        command.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listener, forking(server):
        listener.bind(address)
        listener.listen()
        answering = Thread(target=_answer_all, args=(listener,))
        answering.start()
        try:
            yield folder
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            answering.join()


def _answer_all(listener: socket.socket) -> None:
    with suppress(OSError):  # the block has ended
        while True:
            Thread(target=_answer, args=(listener.accept()[0],)).start()


def _answer(asked: socket.socket) -> None:
    """Run what one command asks for, and tell it the exit code."""
    with asked:
        message, files, _, _ = socket.recv_fds(asked, 1 << 20, 3)
        while more := asked.recv(1 << 20):
            message += more
        arguments, environment, folder = json.loads(message)
        with subprocess.Popen(
            arguments, env=environment, cwd=folder, stdin=files[0], stdout=files[1], stderr=files[2]
        ) as process:
            for number in files:
                os.close(number)
        asked.sendall(str(process.returncode).encode())
