"""Path from a raw body to a reply: parse, encode, queue, decode; an error becomes a status and a JSON body."""

import logging
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from scoring.api.dialects import Call, parse, render
from scoring.api.hooks import Hooks
from scoring.api.tokens import answer as answer_tokens
from scoring.api.usage import usage
from scoring.config import AdapterRef, Deployment
from scoring.engine.job import Job, RowQueue
from scoring.engine.row import Row
from scoring.errors import (
    HandlerFailed,
    InternalError,
    InvalidInput,
    MiiAzureError,
    NotReady,
    PayloadTooLarge,
    PromptTooLong,
    RequestTimeout,
)
from scoring.limits.deadline import Deadline, check, held, left, within
from scoring.limits.departure import stopping
from scoring.lora.served import AdapterChange
from scoring.schema import token_requests
from scoring.strict_json.body import dumps, read_json
from scoring.tasks.base import Task
from scoring.telemetry.spans import note

logger = logging.getLogger("mii_azure.service")

#: Requests that are encoded or decoded at once: each may take the memory that the largest takes.
_SEATS = 4
#: Header of an answer to inputs of which truncation left tokens out: how many there are.
TRUNCATED = "X-Truncated-Inputs"
METADATA_REQUEST = {"mii_azure": "metadata"}


@dataclass(frozen=True)
class Reply:
    """An answer before any host has touched it; `body` is bytes, or an iterator of server-sent events."""

    status: int
    body: bytes | Iterator[bytes]
    headers: dict[str, str] = field(default_factory=dict)


def error_reply(error: MiiAzureError) -> Reply:
    """The reply that an error maps to."""
    return Reply(error.http_status, dumps(error.to_dict()), error.headers)


class Answers(ABC):
    """Answers requests by a task's rows in a queue; the model behind the queue may be in another process."""

    def __init__(self, deployment: Deployment, task: Task, queue: RowQueue) -> None:
        self.deployment = deployment
        self.task = task
        self.ready = False
        self.hooks = Hooks()  # of the deployment's handler.py
        self._queue = queue
        self._seats = threading.BoundedSemaphore(_SEATS)

    @property
    @abstractmethod
    def lost(self) -> str:
        """Reason why the model can no longer answer (one of its ranks is gone); empty while it can."""

    @abstractmethod
    def metadata(self) -> dict[str, Any]:
        """Metadata of this deployment and of what it runs on."""

    @abstractmethod
    def statistics(self) -> dict[str, Any]:
        """Counts of the engine, with queue depth, rows waiting or running, and the reason if the model is lost."""

    @abstractmethod
    def change_adapters(self, change: AdapterChange) -> None:
        """Load or unload adapters; raises AdapterRefused, AdapterNotServed, or Overloaded while no place is free."""

    @property
    def adapters(self) -> tuple[AdapterRef, ...]:
        """Adapters beside the model that requests may name now; the same tuple until they change."""
        refs: tuple[AdapterRef, ...] = self.task.loaded.served.refs
        return refs

    @abstractmethod
    def drain(self, timeout_s: float) -> bool:
        """Stop taking requests, finish those accepted; False when the time ran out."""

    def change(self, **limits: Any) -> None:
        """Change `queue_size` and `request_timeout_s` for later requests."""
        self.deployment = replace(self.deployment, limits=replace(self.deployment.limits, **limits))

    def answer(self, raw: str) -> Reply:
        """Answer one body; never raises."""
        deadline = Deadline.after(self.deployment.limits.request_timeout_s)
        try:
            with within(deadline):
                return self._answer(raw, deadline)
        except MiiAzureError as error:
            return error_reply(error)
        except Exception:
            incident = uuid.uuid4().hex[:12]
            logger.exception("request failed, incident %s", incident)
            return error_reply(
                InternalError(f"Scoring failed; incident {incident}.", "The log of the server has the details.")
            )

    def _answer(self, raw: str, deadline: Deadline) -> Reply:
        limit = self.deployment.limits.max_payload_bytes
        if len(raw) > limit or len(raw.encode("utf-8", "surrogatepass")) > limit:
            raise PayloadTooLarge(f"The body is larger than {limit:,} bytes.", "Send fewer or shorter inputs at once.")
        with self._stage("parse"):
            payload = read_json(raw)
        if payload == METADATA_REQUEST:
            return Reply(200, dumps(self.metadata()))
        if not self.ready:
            raise NotReady("The model is not ready.", "Try again shortly.")
        if isinstance(payload, dict) and (asked := token_requests.read(payload)):
            with held(self._seats), self._stage("encode"):
                body = self._serialise(answer_tokens(self.task, asked))
                self._check_answer(len(body), "Send a shorter text, or fewer tokens.")
                return Reply(200, body)
        call = parse(payload, self.task.schema, self.hooks)
        if call.stream:
            self.hooks.refuse_stream()
        check()
        with held(self._seats), self._stage("encode"):
            rows = self._encode(call)
        if call.stream:
            return self._stream(call, rows, deadline)
        flat = [row for group in rows for row in group]
        results = self._results(flat)
        with held(self._seats):
            cut = len({row.item for row in flat if row.cut})
            return Reply(200, self._body(call, rows, results), {TRUNCATED: str(cut)} if cut else {})

    def _results(self, rows: list[Row]) -> list[Any]:
        """Outputs of a request's rows; more than the queue holds pass it in parts, one after the other."""
        size = max(1, self.deployment.limits.queue_size)
        results: list[Any] = []
        answers = 0
        for at in range(0, len(rows), size):
            part = rows[at : at + size]
            found = self._wait(self._queue.submit(part, left()) if at else self._queue.submit(part))
            answers += sum(map(self.task.output_bytes, part, found))
            self._check_answer(answers)
            results += found
        return results

    def _body(self, call: Call, rows: list[list[Row]], results: list[Any]) -> bytes:
        outputs = iter(results)
        answers = []
        with self._stage("decode"):
            for value, group in zip(call.inputs, rows, strict=True):
                check()
                answers.append(self.task.decode(value, call.parameters, group, [next(outputs) for _ in group]))
        answer = render(call, answers, self.task.collect, self.task.table)
        answer = self.hooks.finish(answer)
        if call.usage:
            answer = {"answer": answer, "usage": usage(self.task, [row for group in rows for row in group], results)}
        check()
        return self._serialise(answer)

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        began = time.perf_counter()  # one context instead of three: they are entered for every request
        try:
            yield
        finally:
            ended = time.perf_counter()
            self._queue.statistics.took(name, ended - began)
            note(name, began, ended)

    def _encode(self, call: Call) -> list[list[Row]]:
        rows: list[list[Row]] = []
        left_over = budget = self.task.most_rows(self.deployment.limits)
        answers = 0
        for item, value in enumerate(call.inputs):
            check()
            rows.append(self._encode_one(value, call.parameters, item))
            self.task.check_together(rows)
            answers += self.task.answer_bytes(value, call.parameters, rows[-1])
            self._check_answer(answers)
            left_over -= len(rows[-1])
            if left_over < 0:  # checked early: one long context may be a thousand windows
                raise InvalidInput(
                    f"The request needs more sequences than the {budget:,} that one may have.",
                    "Send it in smaller parts.",
                    where="inputs",
                )
        return rows

    def _encode_one(self, value: Any, parameters: Any, item: int) -> list[Row]:
        try:
            return self.task.encode(value, parameters, item)
        except PromptTooLong as error:
            error.where = error.where or f"inputs[{item}]"
            raise

    def _check_answer(self, answers: int, smaller: str = "") -> None:
        most = self.task.most_bytes(self.deployment.limits)
        if answers > most:
            raise PayloadTooLarge(
                f"The answer may take {answers:,} bytes, and a reply has at most {most:,}.",
                smaller or self.task.smaller,
            )

    def _wait(self, job: Job) -> list[Any]:
        try:
            with stopping(job.cancel):
                return job.finished(left())
        except (FutureTimeout, CancelledError, RequestTimeout):
            job.cancel()
            limit = self.deployment.limits.request_timeout_s
            raise RequestTimeout(
                f"No answer within {limit:g} s.", "Ask for fewer tokens, or raise the timeout."
            ) from None

    def _serialise(self, answer: Any) -> bytes:
        try:
            return dumps(answer)
        except TypeError as error:  # only a handler puts anything else into an answer
            raise HandlerFailed("The handler's postprocess gives what is no JSON.", "Give plain values.") from error
        except ValueError:
            raise InternalError(
                "The model computed a number that is not finite.",
                "Serve it in a wider precision: generate with --dtype float32 or bfloat16.",
            ) from None

    def _stream(self, call: Call, rows: list[list[Row]], deadline: Deadline) -> Reply:
        from scoring.api.sse import events

        body = events(self._queue, self.task, call, rows[0], deadline)
        return Reply(200, body, {"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
