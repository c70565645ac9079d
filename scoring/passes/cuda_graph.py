"""The whole forward of an encoder as one CUDA graph a shape; `scoring.encoder.cuda_graphs` captures and replays."""

from collections.abc import Callable
from typing import Any

from scoring.encoder.buckets import BATCHES, LENGTHS
from scoring.model.loaded import Runtime
from scoring.passes.base import Applicability, Applied, Facts, Hardware, Pass

WARM_LENGTH = 128  # of the larger batches captured at the start


class CudaGraph(Pass):
    """Wraps the whole forward of an encoder; its graphs are captured by the first calls of the inference thread."""

    name = "cuda_graph"
    public = True

    def __init__(self, limit: int = 32) -> None:
        self._limit = limit

    def applies(self, facts: Facts, hardware: Hardware, objective: str) -> Applicability:
        if hardware.device != "cuda":
            return Applicability(False, "CUDA graphs need an NVIDIA GPU")
        if facts.kind != "encoder":
            return Applicability(False, "one graph per whole forward suits encoders; decoders graph their step")
        return Applicability(True, f"one launch per forward instead of hundreds; at most {self._limit} shapes are kept")

    def apply(self, model: Any) -> Applied:
        from scoring.encoder.cuda_graphs import GraphedForward

        graphed = GraphedForward(model, model.forward, limit=self._limit)
        had = "forward" in vars(model)
        before = model.forward
        model.forward = graphed

        def undo() -> None:
            if had:
                model.forward = before
            else:
                del model.forward

        shapes = f"batches {BATCHES[0]} to {BATCHES[-1]}, lengths {LENGTHS[0]} to {LENGTHS[-1]}"
        return Applied(
            1, f"forward graphed per bucket: {shapes}, at most {self._limit} graphs", undo, Runtime(host_inputs=True)
        )

    def warm(self, model: Any) -> None:
        """Capture single requests of every length, and full batches of one."""
        longest = model.forward.longest
        shapes = [(1, length) for length in LENGTHS if length <= longest]
        model.forward.warm([*shapes, *((batch, min(WARM_LENGTH, longest)) for batch in BATCHES[1:])])

    def verify(self, model: Any, reference: Callable[..., Any]) -> float:
        from scoring.encoder.verify import verify_encoder

        return verify_encoder(model, reference)
