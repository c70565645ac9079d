"""Hands the pieces of streams from the inference thread to their hosts, at the end of each step.

A thread waits for the pieces of one stream. An event loop is told once a step which of its streams have pieces, however
many they are: waking a thread per token would take most of the interpreter's time.
"""

import logging
import queue
from collections.abc import Callable
from typing import Any

logger = logging.getLogger("mii_azure.outbox")
END = object()

#: Takes the marks of streams that have pieces; called on the inference thread, and must not wait.
Post = Callable[[list[Any]], None]


class Outbox:
    """Streams that have had pieces since the last step; inference thread only."""

    def __init__(self) -> None:
        self._due: dict[Pieces, None] = {}
        self._calls: tuple[Callable[[], None], ...] = ()

    def add(self, pieces: "Pieces") -> None:
        """Note that a stream whose reader listens has pieces."""
        self._due[pieces] = None

    def attach(self, call: Callable[[], None]) -> None:
        """Have `call` called, on the inference thread, after each step; any thread. It must not wait or raise."""
        self._calls += (call,)

    def detach(self, call: Callable[[], None]) -> None:
        """Undo `attach`."""
        self._calls = tuple(each for each in self._calls if each != call)

    def hand_over(self) -> None:
        """Tell each reader, once, which of its streams have pieces."""
        for call in self._calls:
            call()
        if not self._due:
            return
        due, self._due = self._due, {}
        by_post: dict[Post, list[Any]] = {}
        for pieces in due:
            if pieces.post is not None:
                by_post.setdefault(pieces.post, []).append(pieces.mark)
        for post, marks in by_post.items():
            _tell(post, marks)


class Pieces:
    """Pieces of one stream, in order, and END after the last; one reader."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.post: Post | None = None  # of a reader that listens
        self.mark: Any = None  # by which it knows the stream

    def put(self, piece: Any) -> None:
        """Append a piece; inference thread only."""
        self._queue.put(piece)
        if self.post is not None:  # looked at after the piece is there: see `listen`
            self._outbox.add(self)

    def end(self) -> None:
        """Append END, and tell a reader that listens at once; any thread."""
        self._queue.put(END)
        if self.post is not None:
            _tell(self.post, [self.mark])

    def listen(self, post: Post, mark: Any) -> None:
        """Have `post` called whenever there are pieces; those that came before are only there to take."""
        self.mark, self.post = mark, post

    def take(self) -> list[Any]:
        """The pieces that are there."""
        return [self._queue.get_nowait() for _ in range(self._queue.qsize())]

    def wait(self, seconds: float) -> Any:
        """The next piece; raises `queue.Empty` if none comes in that time."""
        return self._queue.get(timeout=seconds)


def _tell(post: Post, marks: list[Any]) -> None:
    try:
        post(marks)
    except Exception:  # a reader's failure must not end the thread that serves all others
        logger.exception("a reader of streams could not be told")
