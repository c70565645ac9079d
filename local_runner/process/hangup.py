"""Meaning of a SIGHUP: a message from an operator, or the closing of the terminal that this process was started in."""

import asyncio
import os
import signal

_SETTLE_S = 1.0  # a shell that exits sends SIGHUP a moment before the terminal is gone
_LOOK_S = 0.05
_TERMINAL = "/dev/tty"


class Terminal:
    """Controlling terminal of this process when it started; none in a service, a container or under nohup.

    Create it before SIGHUP is handled: nohup is recognised by SIGHUP being ignored.
    """

    def __init__(self) -> None:
        self._ours = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN and _controlled()
        self._shown = [descriptor for descriptor in (0, 1, 2) if os.isatty(descriptor)]

    def gone(self) -> bool:
        """Return True if there was a terminal and it has been closed."""
        return self._ours and not _controlled()

    async def goes(self) -> bool:
        """Return True if the terminal is gone now or in a moment."""
        for _ in range(round(_SETTLE_S / _LOOK_S) if self._ours else 0):
            if self.gone():
                return True
            await asyncio.sleep(_LOOK_S)
        return self.gone()

    def leave(self) -> None:
        """Redirect the terminal's output to nowhere, so that writing does not fail."""
        nowhere = os.open(os.devnull, os.O_RDWR)
        for descriptor in self._shown:
            os.dup2(nowhere, descriptor)
        os.close(nowhere)


def _controlled() -> bool:
    try:
        os.close(os.open(_TERMINAL, os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True
