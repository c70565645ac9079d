"""Signals that end a process, as exceptions: unfinished work is cleaned up first, as after Ctrl-C."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

#: Default of `kill`, and a closed terminal.
SIGNALS = (signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """Raised for a signal; `number` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextlib.contextmanager
def unwinding() -> Iterator[None]:
    """Raise Stopped inside the block if one of SIGNALS would end the process; after the block it does end it.

    A signal that is ignored, as under nohup, or that already has a handler is left alone, and so are threads other than
    the main one, which get no signals. Further signals are ignored while the block cleans up.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours = [number for number in SIGNALS if signal.getsignal(number) is signal.SIG_DFL]

    def stop(number: int, frame: FrameType | None) -> None:
        for each in ours:
            signal.signal(each, signal.SIG_IGN)
        raise Stopped(number)

    try:
        for each in ours:
            signal.signal(each, stop)
        yield
    except Stopped as stopped:
        _restore(ours)
        os.kill(os.getpid(), stopped.number)
        raise
    finally:
        _restore(ours)


def _restore(numbers: list[signal.Signals]) -> None:
    for each in numbers:
        signal.signal(each, signal.SIG_DFL)
