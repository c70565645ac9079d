"""Server-sent events for generative tasks: one event per piece of text, a last one with the whole answer."""

import logging
import queue
import uuid
from collections.abc import Iterator
from typing import Any

from scoring.api.dialects import Call, render
from scoring.api.usage import usage
from scoring.engine.engine import Engine, Job
from scoring.engine.row import Row
from scoring.errors import InternalError, MiiAzureError, RequestTimeout
from scoring.limits.deadline import Deadline, within
from scoring.strict_json.body import dumps
from scoring.tasks.base import Task

logger = logging.getLogger("mii_azure.sse")
_END = object()

Pieces = queue.SimpleQueue[Any]  # events, then _END


class Events:
    """Iterator over the events of one stream; closing or dropping it frees the engine within a step.

    A plain generator would not do: one that was never started runs no `finally` when it is closed.
    """

    def __init__(self, events: Iterator[bytes], job: Job) -> None:
        self._events = events
        self._job = job

    def __iter__(self) -> "Events":
        return self

    def __next__(self) -> bytes:
        return next(self._events)

    def close(self) -> None:
        """Cancel the request: nobody listens any more."""
        self._job.cancel()

    def __del__(self) -> None:
        self.close()


def events(engine: Engine, task: Task, call: Call, rows: list[Row], deadline: Deadline) -> Events:
    """Submit the rows now, so that a full queue still gets a status code, and return the iterator of events.

    Events: `{"token": {"text": str}}` while text appears, with the `index` of the answer where there are several, and
    `details` of its tokens if asked for (without slots, of all tokens at the end); `{"answer": ...}` with
    the same answer as without streaming, then `[DONE]`; an error after the start is `{"error": {...}}`, and then the
    stream ends.
    """
    pieces: Pieces = queue.SimpleQueue()
    for row in rows:
        row.emit = pieces.put
    job = engine.submit(rows)
    job.future.add_done_callback(lambda _: pieces.put(_END))
    return Events(_events(task, call, job, pieces, deadline), job)


def _events(task: Task, call: Call, job: Job, pieces: Pieces, deadline: Deadline) -> Iterator[bytes]:
    try:
        while (piece := pieces.get(timeout=deadline.left())) is not _END:
            yield _event(piece)
        outputs = job.finished()
        with within(deadline):
            answer = task.decode(call.inputs[0], call.parameters, job.rows, outputs)
        last = {"answer": render(call, [answer], task.collect, task.table)}
        yield _event({**last, "usage": usage(task, job.rows, outputs)} if call.usage else last)
        yield b"data: [DONE]\n\n"
    except (queue.Empty, RequestTimeout):
        yield _event(RequestTimeout("The stream ran past the request timeout.", "Ask for fewer tokens.").to_dict())
    except MiiAzureError as error:
        yield _event(error.to_dict())
    except Exception:
        incident = uuid.uuid4().hex[:12]
        logger.exception("stream failed, incident %s", incident)
        yield _event(InternalError(f"Scoring failed; incident {incident}.").to_dict())
    finally:
        job.cancel()


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + dumps(value) + b"\n\n"
