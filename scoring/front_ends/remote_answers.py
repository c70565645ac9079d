"""Answers of a front end: everything that a request needs but the model, which another process has."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scoring.api.answers import Answers, Reply
from scoring.config import Deployment
from scoring.engine.row import Row
from scoring.front_ends.messages import EngineFacts, State, read_facts
from scoring.front_ends.remote_engine import RemoteEngine
from scoring.generation.streaming import SequenceStreamer, show_end
from scoring.lora.served import AdapterChange
from scoring.model.loaded import Loaded, Runtime
from scoring.model.loader import load_without_weights
from scoring.schema.registry import task_class
from scoring.tasks.base import Task

logger = logging.getLogger("mii_azure.front_ends")


class RemoteAnswers(Answers):
    """One task over the engine of another process."""

    def __init__(self, deployment: Deployment, task: Task, engine: RemoteEngine) -> None:
        super().__init__(deployment, task, engine)
        self._engine = engine
        engine.on_state = self._in_state
        self._in_state(engine.state)

    def _in_state(self, state: State) -> None:
        self.ready = state.ready or bool(state.lost)

    @property
    def lost(self) -> str:
        return self._engine.state.lost

    def answer(self, raw: str) -> Reply:
        """Answer one body; never raises."""
        try:
            return super().answer(raw)
        finally:
            self._engine.flush()  # times of stages: who asks for metrics next finds this request among them

    def metadata(self) -> dict[str, Any]:
        told: dict[str, Any] = self._engine.ask("metadata")
        return told

    def change_adapters(self, change: AdapterChange) -> None:
        self._engine.change_adapters(change)

    def statistics(self) -> dict[str, Any]:
        return {"lost": self.lost} if self.lost else {}

    def drain(self, timeout_s: float) -> bool:
        """Take no more requests; those accepted are the engine's to finish."""
        self.ready = False
        return True


def build(deployment: Deployment, folder: Path, engine: RemoteEngine) -> RemoteAnswers:
    """Load what the model folder says but its weights, and wait until the engine is ready; raises LoadError."""
    loaded = replace(load_without_weights(deployment, folder), served=engine.adapters)
    facts = read_facts(engine.facts.result())
    deployment = replace(deployment, limits=facts.limits)
    task = _task(deployment, loaded, facts)
    engine.texts = _Texts(task)
    return RemoteAnswers(deployment, task, engine)


def _task(deployment: Deployment, loaded: Loaded, facts: EngineFacts) -> Task:
    """The task as the engine's process has it, by its facts."""
    decoder: Any = SlotFacts(*facts.slots) if facts.slots else None
    runtime = Runtime(decoder=decoder, precision=facts.precision)
    loaded = replace(loaded, context_length=facts.context_length, runtime=runtime)
    if facts.generation_config is not None:
        loaded.model.generation_config = facts.generation_config
    task: Task = task_class(deployment.task)(loaded, deployment.task)
    task.company = facts.company
    if facts.side:
        vars(task)["side"] = facts.side
    return task


class _Texts:
    """Texts of a task's tokens."""

    def __init__(self, task: Any) -> None:
        self._task = task

    def stream(self, row: Row) -> SequenceStreamer:
        return SequenceStreamer(self._task, row)

    def end(self, row: Row, output: Any) -> None:
        show_end(self._task, row, output)


@dataclass(frozen=True)
class SlotFacts:
    """Facts about a decoder that a front end needs."""

    max_length: int  # most tokens of a slot
    full_length: int  # the same as the model takes
