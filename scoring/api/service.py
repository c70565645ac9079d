"""Service from a raw body to a reply: parse, encode, queue, decode; an error becomes a status and a JSON body."""

import logging
import threading
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from scoring.api.dialects import Call, parse, render
from scoring.api.usage import tells_cached_tokens, usage
from scoring.config import Deployment
from scoring.engine.engine import Engine, Job
from scoring.engine.oom import is_out_of_memory
from scoring.engine.row import Row
from scoring.errors import (
    InternalError,
    InvalidInput,
    LoadError,
    MiiAzureError,
    NotReady,
    OutOfMemory,
    PayloadTooLarge,
    PromptTooLong,
    RequestTimeout,
)
from scoring.limits.deadline import Deadline, check, held, left, within
from scoring.model.loaded import Loaded
from scoring.passes.base import Applicability
from scoring.passes.registry import reference_of
from scoring.passes.runner import Chosen, Record, not_served, run_passes, withdraw
from scoring.strict_json.body import dumps, read_json
from scoring.tasks.base import Task
from scoring.telemetry.spans import noted
from scoring.telemetry.statistics import phase

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


def _failed(error: Exception) -> LoadError:
    """The LoadError for a start that failed because the model itself raised `error`."""
    said = (str(error).strip().splitlines() or [""])[0][:300].rstrip(".")
    if is_out_of_memory(error):
        return OutOfMemory(f"Memory ran out before the first request: {said}.", "Serve it on hardware with more.")
    return LoadError(
        f"The model fails on the sample request: {type(error).__name__}: {said}.",
        "See that plain transformers of the bundle's version runs it; the log has the traceback.",
    )


class Service:
    """One loaded task behind one engine."""

    def __init__(self, deployment: Deployment, loaded: Loaded, task: Task, environment: dict[str, Any]) -> None:
        self.deployment = deployment
        self.task = task
        self.loaded = loaded
        self.engine = Engine(task, deployment.limits)
        self.environment = environment
        self.records: list[Record] = []
        self.ready = False
        self._seats = threading.BoundedSemaphore(_SEATS)
        self._chosen: Chosen = ()
        self._before: list[Record] = []  # records of passes withdrawn while a request is retried without them
        self._acquitted = False

    def start(self, chosen: Chosen = (), known: Mapping[str, float] = MappingProxyType({})) -> None:
        """Apply the passes that were taken, warm up, and take requests; raises LoadError and its kinds.

        `known` holds the relative errors of passes that need no verification here.
        """
        phase.enter("optimising")
        try:
            self.engine.start(lambda: self._optimise(chosen, known), self)
        except MiiAzureError:
            raise
        except Exception as error:
            logger.exception("the model fails before its first request")
            raise _failed(error) from error
        self.ready = True
        phase.enter("ready")

    def _optimise(self, chosen: Chosen, known: Mapping[str, float]) -> None:
        self._chosen = chosen
        # On the inference thread: CUDA graphs belong to the thread that captures them.
        reference = reference_of(self.deployment.task)
        # A model that a pass places is examined only once it is placed: nothing else can run it.
        placed = any(each.places for each, decision in chosen if decision.take)
        if not placed:
            self.task.examine()
        forced = self.deployment.optimisation.on
        self.records = run_passes(self.loaded.model, self.loaded.runtime, chosen, forced, reference, known)
        if placed:
            self._bring(chosen)
            self.task.examine()
        if self.loaded.device.type == "cuda":
            import torch

            torch.cuda.empty_cache()  # memory used by verification becomes free for requests
        phase.enter("warming")

    def _bring(self, chosen: Chosen) -> None:
        """Move a model that was loaded for a pass to place to its device, if no such pass is served."""
        placing = {each.name for each, _ in chosen if each.places}
        if any(record.state == "applied" and record.name in placing for record in self.records):
            return
        try:
            self.loaded.model.to(self.loaded.device)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            told = "; ".join(record.reason for record in self.records if record.name in placing)
            raise OutOfMemory(
                f"The model does not fit the device, and no pass places it elsewhere: {told}.",
                "Serve it on hardware with more memory.",
            ) from error

    def withdraw(self, failure: Exception, again: bool = False) -> bool:
        """Undo the pass that was applied last; False if none is left, or if no pass can be to blame.

        Inference thread only. Raises PassNotServed during start-up for a pass that was forced on.
        """
        placed = any(each.places for each, decision in self._chosen if decision.take)
        if isinstance(failure, MiiAzureError) or self._acquitted or (self.ready and placed):
            return False
        said = (str(failure).strip().splitlines() or [""])[0][:200].rstrip(".")
        reason = f"the model failed on it: {type(failure).__name__}: {said}"
        records = withdraw(self.loaded.model, self.loaded.runtime, self.records, reason)
        if records is None:
            return False
        forced = () if self.ready else self.deployment.optimisation.on
        for before, after in zip(self.records, records, strict=True):
            if before.state != after.state and after.name in forced:
                raise not_served(after.name, after.reason)
        self._before = self._before if again else self.records
        self.records = records
        return True

    def reinstate(self) -> None:
        """Reapply passes withdrawn for a request that failed without them too, and stop blaming passes."""
        self._acquitted = True
        known = {each.name: each.error or 0.0 for each in self._before if each.state == "applied"}
        chosen = [
            (each, decision if each.name in known else Applicability(False, "")) for each, decision in self._chosen
        ]
        anew = run_passes(self.loaded.model, self.loaded.runtime, chosen, (), lambda _: lambda: None, known)
        self.records = [old if old.state != "applied" else new for old, new in zip(self._before, anew, strict=True)]

    @property
    def lost(self) -> str:
        """Reason why the model can no longer answer (one of its ranks is gone); empty while it can."""
        ranks = self.loaded.runtime.ranks
        return ranks.lost if ranks else ""

    def change(self, **limits: Any) -> None:
        """Change `queue_size` and `request_timeout_s` for later requests."""
        self.deployment = replace(self.deployment, limits=replace(self.deployment.limits, **limits))
        self.engine.change(self.deployment.limits)

    def drain(self, timeout_s: float) -> bool:
        """Stop taking requests, finish those accepted; False when the time ran out."""
        self.ready = False
        phase.enter("draining")
        return self.engine.drain(timeout_s)

    def statistics(self) -> dict[str, Any]:
        """Counts of the engine, with queue depth, rows waiting or running, and the reason if the model is lost."""
        lost = {"lost": self.lost} if self.lost else {}
        counts = {"waiting": self.engine.waiting(), "active": self.engine.depth(), **lost}
        return {**self.engine.statistics.to_dict(), **counts}

    def metadata(self) -> dict[str, Any]:
        """Metadata of this deployment and of what it runs on."""
        d, tells = self.deployment, tells_cached_tokens()
        return {
            "name": d.name,
            "task": d.task,
            "model": d.model.id,
            "revision": d.model.revision,
            "architecture": type(self.loaded.model).__name__,
            "context_length": self.loaded.context_length,
            "ready": self.ready and not self.lost,
            "limits": vars(d.limits),
            "precision": self.loaded.precision,
            "batching": self.task.company.to_dict(),
            **self.task.abilities(),
            **({"quantisation": d.quantisation} if d.quantisation else {}),
            "optimisations": {record.name: record.state for record in self.records},
            "passes": [record.to_dict() for record in self.records],
            "statistics": {name: told for name, told in self.statistics().items() if tells or name != "cached_tokens"},
            **self.environment,
        }

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
        call = parse(payload, self.task.schema)
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
        results = self._wait(self.engine.submit(rows[:size]))
        for at in range(size, len(rows), size):
            results += self._wait(self.engine.submit(rows[at : at + size], left()))
        return results

    def _body(self, call: Call, rows: list[list[Row]], results: list[Any]) -> bytes:
        outputs = iter(results)
        answers = []
        with self._stage("decode"):
            for value, group in zip(call.inputs, rows, strict=True):
                check()
                answers.append(self.task.decode(value, call.parameters, group, [next(outputs) for _ in group]))
        answer = render(call, answers, self.task.collect, self.task.table)
        if call.usage:
            answer = {"answer": answer, "usage": usage(self.task, [row for group in rows for row in group], results)}
        check()
        return self._serialise(answer)

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        with self.engine.statistics.timed(name), noted(name):
            yield

    def _encode(self, call: Call) -> list[list[Row]]:
        rows: list[list[Row]] = []
        left_over = budget = self.task.most_rows(self.deployment.limits)
        answers = 0
        for item, value in enumerate(call.inputs):
            check()
            rows.append(self._encode_one(value, call.parameters, item))
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

    def _check_answer(self, answers: int) -> None:
        most = self.task.most_bytes(self.deployment.limits)
        if answers > most:
            raise PayloadTooLarge(
                f"The answer may take {answers:,} bytes, and a reply has at most {most:,}.", self.task.smaller
            )

    def _wait(self, job: Job) -> list[Any]:
        try:
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
        except ValueError:
            raise InternalError(
                "The model computed a number that is not finite.",
                "Serve it in a wider precision: generate with --dtype float32 or bfloat16.",
            ) from None

    def _stream(self, call: Call, rows: list[list[Row]], deadline: Deadline) -> Reply:
        from scoring.api.sse import events

        body = events(self.engine, self.task, call, rows[0], deadline)
        return Reply(200, body, {"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
