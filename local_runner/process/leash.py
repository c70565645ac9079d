"""Leash of a server: it ends with its parent, however that ends. Standard library only: gunicorn reads this file too.

The child's standard input is a pipe whose other end only its parent holds. The system closes that end when the parent
dies, even by SIGKILL, on every POSIX system; the child then sends itself SIGTERM, and exits at once if that takes
too long. As a gunicorn configuration file it covers Azure's server, both arbiter and workers.
"""

import contextlib
import os
import select
import signal
import subprocess
import threading
import time
from types import MappingProxyType
from typing import Any, NoReturn

GRACE_S = 5.0  # to drain after SIGTERM: nobody waits for the answers any more
_NAME = "MII_AZURE_LEASH"
#: Environment variable that a parent sets for a child whose standard input is such a pipe.
ENVIRONMENT = MappingProxyType({_NAME: "stdin"})
_LET_GO = b"\n"


def hold(patience_s: float = 0.0) -> None:
    """End this process `patience_s` after the other end of its standard input closes, if it still runs then."""
    threading.Thread(target=_hold, args=(patience_s,), name="leash", daemon=True).start()


def hold_if_asked() -> None:
    """Hold the leash if the environment asks for it, until the parent lets go; children do not inherit the request."""
    if os.environ.pop(_NAME, ""):
        threading.Thread(target=_hold_until_let_go, name="leash", daemon=True).start()


def let_go(process: "subprocess.Popen[bytes]") -> None:
    """Let a child that called `hold_if_asked` outlive this process."""
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(_LET_GO)
            process.stdin.close()


def _hold(patience_s: float) -> None:
    _wait()
    time.sleep(patience_s)
    _end()


def _hold_until_let_go() -> None:
    _wait()
    if os.read(0, 1) != _LET_GO:
        _end()


def _wait() -> None:
    """Block until the other end is closed; data written to it stays unread."""
    poll = select.poll()
    poll.register(0, 0)  # POLLHUP, POLLERR and POLLNVAL are reported without being requested
    poll.poll()


def _end() -> NoReturn:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os._exit(1)


def on_starting(server: Any) -> None:
    """Put gunicorn's arbiter on the leash; gunicorn calls this hook by name."""
    hold()


def post_fork(server: Any, worker: Any) -> None:
    """Put a worker on the leash, since threads do not survive a fork; gunicorn calls this hook by name."""
    hold()
