"""Inductor for encoders that have no kernels of ours, kept only where it beats the CUDA graph alone by measurement."""

from collections.abc import Callable, Sequence
from typing import Any

from scoring.passes import fused_encoder
from scoring.passes.base import Applicability, Applied, Facts, Hardware, Pass


class Compile(Pass):
    """Compiles the forward for a few shapes; the other shapes stay plain. Put `cuda_graph` on top."""

    name = "compile"
    public = True

    def __init__(self, shapes: Sequence[tuple[int, int]] = ((1, 128),)) -> None:
        self._shapes = tuple(shapes)

    def applies(self, facts: Facts, hardware: Hardware, objective: str) -> Applicability:
        if hardware.device != "cuda":
            return Applicability(False, "this pass compiles for GPUs; the cpu pass has its own")
        if facts.kind != "encoder":
            return Applicability(False, "decoders compile their step, not the forward")
        if hardware.capability < (7, 0):
            return Applicability(False, f"Inductor's kernels need compute capability 7.0; {hardware.name} is older")
        if fused_encoder.FusedEncoder().applies(facts, hardware, objective).take:
            return Applicability(False, "fused_encoder is faster for this family")
        return Applicability(True, "no kernels of ours for this family: kept if it beats the CUDA graph alone here")

    def apply(self, model: Any) -> Applied:
        from scoring.encoder.inductor import compile_forward

        detail, undo = compile_forward(model, self._shapes)
        return Applied(len(self._shapes), detail, undo)

    def verify(self, model: Any, reference: Callable[..., Any]) -> float:
        from scoring.encoder.verify import verify_encoder

        return verify_encoder(model, reference)
