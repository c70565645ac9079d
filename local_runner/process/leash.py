"""Servers that end with whoever started them, however that ends. Standard library only: gunicorn reads this file too.

The child's standard input is a pipe whose other end only its parent holds. The system closes that end when the parent
is gone, also after SIGKILL, and on every POSIX system; the child then ends by SIGTERM, and at once where that takes
too long. As gunicorn's configuration file it holds Azure's server, arbiter and workers alike.
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
#: What a parent sets for a child whose standard input is such a pipe.
ENVIRONMENT = MappingProxyType({_NAME: "stdin"})
_LET_GO = b"\n"


def hold(patience_s: float = 0.0) -> None:
    """End this process once the other end of its standard input is gone, if by then it has not ended by itself."""
    threading.Thread(target=_hold, args=(patience_s,), name="leash", daemon=True).start()


def hold_if_asked() -> None:
    """The same where the environment says so, unless the parent lets go first; children are asked for themselves."""
    if os.environ.pop(_NAME, ""):
        threading.Thread(target=_hold_until_let_go, name="leash", daemon=True).start()


def let_go(process: "subprocess.Popen[bytes]") -> None:
    """Have a child that holds on if asked outlive this process."""
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
    """Until the other end is closed; what was written stays unread."""
    poll = select.poll()
    poll.register(0, 0)  # POLLHUP, POLLERR and POLLNVAL are told without being asked for
    poll.poll()


def _end() -> NoReturn:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os._exit(1)


def on_starting(server: Any) -> None:
    """Gunicorn's arbiter holds on; gunicorn calls this by its name."""
    hold()


def post_fork(server: Any, worker: Any) -> None:
    """Each of its workers does, since threads do not outlive a fork; gunicorn calls this by its name."""
    hold()
