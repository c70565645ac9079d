"""What SIGHUP means: from an operator, or because the terminal that this process was started in has been closed."""

import asyncio
import os
import signal

_SETTLE_S = 1.0  # a shell that ends hangs up a moment before the terminal is taken away
_LOOK_S = 0.05
_TERMINAL = "/dev/tty"


class Terminal:
    """The controlling terminal of this process when it started; none in a service, a container or under nohup.

    Make it before SIGHUP is handled: nohup shows by SIGHUP being ignored.
    """

    def __init__(self) -> None:
        self._ours = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN and _controlled()
        self._shown = [descriptor for descriptor in (0, 1, 2) if os.isatty(descriptor)]

    def gone(self) -> bool:
        """Whether there was one, and it has been closed."""
        return self._ours and not _controlled()

    async def goes(self) -> bool:
        """Whether it is gone now or in a moment."""
        for _ in range(round(_SETTLE_S / _LOOK_S) if self._ours else 0):
            if self.gone():
                return True
            await asyncio.sleep(_LOOK_S)
        return self.gone()

    def leave(self) -> None:
        """Point what was shown there nowhere, so that writing fails nobody."""
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
