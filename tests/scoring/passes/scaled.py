"""A pass that scales logits, ways in which it is at fault, and a service that runs such passes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from scoring.api.service import Service
from scoring.config import Deployment, Limits, Optimisation
from scoring.encoder.verify import verify_encoder
from scoring.model.info import facts_of
from scoring.model.loader import load
from scoring.passes.base import Applicability, Applied, Facts, Hardware, Pass, PassRefused
from scoring.passes.runner import choose
from scoring.schema.registry import task_class, task_schema

Tiny = Callable[[str, str], Path]
H100 = Hardware("cuda", "NVIDIA H100", (9, 0), 80 << 30, 1, nvcc=True)
T4 = Hardware("cuda", "NVIDIA T4", (7, 5), 16 << 30, 1, nvcc=True)
CPU = Hardware("cpu", "cpu", (0, 0), 0, 0, nvcc=False)
BERT = Facts("bert", "BertForMaskedLM", "encoder", 110_000_000, 220_000_000, 12, 12, 12, 768)


class Scaled(Pass):
    """Multiplies the logits: by 1 it is right, by anything else wrong."""

    name = "scaled"

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def applies(self, facts: Facts, hardware: Hardware, objective: str) -> Applicability:
        return Applicability(True, "always")

    def apply(self, model: Any) -> Applied:
        plain = model.forward

        def forward(**batch: Any) -> Any:
            output = plain(**batch)
            output.logits = output.logits * self.factor
            return output

        model.forward = forward
        return Applied(1, f"times {self.factor}", lambda: delattr(model, "forward"))

    def verify(self, model: Any, reference: Callable[..., Any]) -> float:
        return verify_encoder(model, reference)


class Refusing(Scaled):
    name = "refusing"

    def apply(self, model: Any) -> Applied:
        raise PassRefused("not this model")


class Crashing(Scaled):
    """Fails in apply, with the model changed by `factor`."""

    name = "crashing"

    def apply(self, model: Any) -> Applied:
        super().apply(model)
        raise RuntimeError("a defect")


class Breaking(Scaled):
    name = "breaking"

    def verify(self, model: Any, reference: Callable[..., Any]) -> float:
        raise ZeroDivisionError


def service(folder: Path, task: str, passes: list[Pass], hardware: Hardware = H100, **settings: Any) -> Service:
    deployment = Deployment("x", task, limits=Limits(), optimisation=Optimisation(**settings))
    loaded = load(deployment, folder)
    made = Service(deployment, loaded, task_class(task)(loaded, task), {})
    made.start(choose(passes, facts_of(loaded.model, task_schema(task).generative), hardware, deployment.optimisation))
    return made


ASK = '{"inputs": ["a fine day", "bad"], "parameters": {"top_k": null}}'
