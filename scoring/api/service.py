"""Service of one loaded model: its passes, engine and metadata."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

from scoring.api.adapter_changes import AdapterChanges
from scoring.api.answers import Answers
from scoring.api.usage import tells_cached_tokens
from scoring.config import AdapterRef, Deployment
from scoring.engine.batch_invariance import ALONE, Company
from scoring.engine.engine import Engine
from scoring.engine.oom import is_out_of_memory
from scoring.errors import LoadError, MiiAzureError, OutOfMemory
from scoring.lora.served import AdapterChange
from scoring.model.loaded import Loaded
from scoring.passes.base import Applicability
from scoring.passes.registry import reference_of
from scoring.passes.runner import FEW, Chosen, Record, is_brief, not_served, require_cache, run_passes, withdraw
from scoring.tasks.base import Task
from scoring.telemetry.statistics import phase

logger = logging.getLogger("mii_azure.service")


def _failed(error: Exception) -> LoadError:
    """The LoadError for a start that failed because the model itself raised `error`."""
    said = (str(error).strip().splitlines() or [""])[0][:300].rstrip(".")
    if is_out_of_memory(error):
        return OutOfMemory(f"Memory ran out before the first request: {said}.", "Serve it on hardware with more.")
    return LoadError(
        f"The model fails on the sample request: {type(error).__name__}: {said}.",
        "See that plain transformers of the bundle's version runs it; the log has the traceback.",
    )


class Service(Answers):
    """One loaded task behind the engine of this process."""

    def __init__(self, deployment: Deployment, loaded: Loaded, task: Task, environment: dict[str, Any]) -> None:
        self.engine = Engine(task, deployment.limits)
        super().__init__(deployment, task, self.engine)
        self.loaded = loaded
        self.environment = environment
        self.records: list[Record] = []
        self._chosen: Chosen = ()
        self._before: list[Record] = []  # records of passes withdrawn while a request is retried without them
        self._acquitted = False
        #: Told of the adapters that are served from now on, before who asked for them.
        self.on_adapters: Callable[[tuple[AdapterRef, ...]], None] = lambda adapters: None
        self._changes = AdapterChanges(loaded, self.engine, self._serve)

    def _serve(self, adapters: tuple[AdapterRef, ...]) -> None:
        self.deployment = self.deployment.serving(adapters)
        self.on_adapters(adapters)

    def change_adapters(self, change: AdapterChange) -> None:
        """Load or unload adapters; raises AdapterRefused, AdapterNotServed, or Overloaded while no place is free."""
        self._changes.make(change)

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
        if self.deployment.limits.batch_invariant:
            self.task.company = ALONE
        elif is_brief():
            self.task.company = Company("none", f"{FEW}, which do not repay finding out")
        elif not placed:
            self.task.examine()
        forced = self.deployment.optimisation.on
        self.records = run_passes(self.loaded.model, self.loaded.runtime, chosen, forced, reference, known)
        if self.deployment.limits.kv_cache_dtype == "fp8":
            require_cache(self.records)
        if placed:
            self._bring(chosen)
            if not (self.deployment.limits.batch_invariant or is_brief()):
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
        super().change(**limits)
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
            **({"handler": self.hooks.names} if self.hooks.names else {}),
            **({"quantisation": d.quantisation} if d.quantisation else {}),
            **({"adapters": [asdict(each) for each in d.adapters]} if d.adapters else {}),
            "optimisations": {record.name: record.state for record in self.records},
            "passes": [record.to_dict() for record in self.records],
            "statistics": {name: told for name, told in self.statistics().items() if tells or name != "cached_tokens"},
            **self.environment,
        }
