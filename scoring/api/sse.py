"""Streams of generative tasks: one event per piece of text, a last one with the whole answer."""

import logging
import queue
import uuid
from collections.abc import Iterator
from typing import Any

from scoring.api.dialects import Call, render
from scoring.api.events import Event, encode
from scoring.api.usage import usage
from scoring.engine.job import Job, RowQueue
from scoring.engine.outbox import END, Pieces, Post
from scoring.engine.row import Row
from scoring.errors import InternalError, MiiAzureError, RequestTimeout
from scoring.limits.deadline import Deadline, within
from scoring.tasks.base import Task

logger = logging.getLogger("mii_azure.sse")


class Events:
    """The events of one stream; closing or dropping it frees the engine within a step.

    A thread iterates over them as bytes. An event loop listens (`scoring.host_api.EventStream`). A plain generator
    would not do: one that was never started runs no `finally` when it is closed.
    """

    def __init__(self, source: "_Source") -> None:
        self._source = source
        self._encoded = source.encoded()  # holds the source only: a cycle would keep a dropped stream alive
        self.ended = False

    def __iter__(self) -> "Events":
        return self

    def __next__(self) -> bytes:
        return next(self._encoded)

    def listen(self, post: Post, mark: Any) -> None:
        """Have `post` called with a list that has `mark` in it whenever there are events to take."""
        self._source.pieces.listen(post, mark)

    def take(self) -> list[Event]:
        """The events that are there, without waiting; sets `ended` once `finish` has the rest."""
        pieces = self._source.pieces.take()
        if pieces and pieces[-1] is END:
            self.ended = True
            pieces.pop()
        return pieces

    def left(self) -> float:
        """Seconds until the stream has to `finish` even if it has not ended."""
        try:
            return self._source.deadline.left()
        except RequestTimeout:
            return 0.0

    def finish(self) -> Event:
        """The last event, the answer or an error; takes its time, so not for an event loop's own thread."""
        return self._source.finish()

    def close(self) -> None:
        """Cancel the request: nobody listens any more."""
        self._source.job.cancel()

    def __del__(self) -> None:
        self.close()


def events(engine: RowQueue, task: Task, call: Call, rows: list[Row], deadline: Deadline) -> Events:
    """Submit the rows now, so that a full queue still gets a status code, and return the stream of events.

    Events: `{"token": {"text": str}}` while text appears, with the `index` of the answer where there are several, and
    `details` of its tokens if asked for (without slots, of all tokens at the end); `{"answer": ...}` with
    the same answer as without streaming, then `[DONE]`; an error after the start is `{"error": {...}}`, and then the
    stream ends.
    """
    pieces = Pieces(engine.outbox)
    for row in rows:
        row.emit = pieces.put
    job = engine.submit(rows)
    job.future.add_done_callback(lambda _: pieces.end())
    return Events(_Source(task, call, job, pieces, deadline))


class _Source:
    """Source of a stream's events."""

    def __init__(self, task: Task, call: Call, job: Job, pieces: Pieces, deadline: Deadline) -> None:
        self._task = task
        self._call = call
        self.job = job
        self.pieces = pieces
        self.deadline = deadline

    def encoded(self) -> Iterator[bytes]:
        """Events as bytes, waited for."""
        try:
            while (piece := self.pieces.wait(self.deadline.left())) is not END:
                yield encode(piece)
        except (queue.Empty, RequestTimeout):
            pass
        finally:
            self.job.cancel()
        yield encode(self.finish())

    def finish(self) -> Event:
        """The answer, or the error that ends the stream; cancels what still runs."""
        try:
            if not self.job.future.done():
                raise self.deadline.passed()
            outputs = self.job.finished()
            with within(self.deadline):
                answer = self._task.decode(self._call.inputs[0], self._call.parameters, self.job.rows, outputs)
            last = {"answer": render(self._call, [answer], self._task.collect, self._task.table)}
            return {**last, "usage": usage(self._task, self.job.rows, outputs)} if self._call.usage else last
        except RequestTimeout:
            return RequestTimeout("The stream ran past the request timeout.", "Ask for fewer tokens.").to_dict()
        except MiiAzureError as error:
            return error.to_dict()
        except Exception:
            incident = uuid.uuid4().hex[:12]
            logger.exception("stream failed, incident %s", incident)
            return InternalError(f"Scoring failed; incident {incident}.").to_dict()
        finally:
            self.job.cancel()
