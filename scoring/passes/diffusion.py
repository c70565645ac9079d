"""Denoising loop of a diffusion model entirely on the device; `scoring.diffusion.cuda_graphs` has the arithmetic."""

from collections.abc import Callable
from typing import Any

from scoring.passes.base import Applicability, Applied, Facts, Hardware, Pass

_SLACK = 1.5  # times plain half precision's own distance from float32


class Diffusion(Pass):
    """One CUDA graph per step: channels last, fused projections, whatever a step does not change computed before."""

    name = "diffusion"

    def __init__(self, compiled: bool = True) -> None:
        self._compiled = compiled

    def applies(self, facts: Facts, hardware: Hardware, objective: str) -> Applicability:
        if facts.kind != "diffusion":
            return Applicability(False, "it replaces the loop of diffusion models; this model is not one")
        if hardware.device != "cuda":
            return Applicability(
                False, "its gain is in CUDA graphs and tensor cores; a CPU would run the same sums as before"
            )
        if hardware.capability < (7, 0):
            major, minor = hardware.capability
            return Applicability(
                False, f"tensor cores start at compute capability 7.0; {hardware.name} has {major}.{minor}"
            )
        return Applicability(True, "one launch a step, guidance in the same batch, nothing waits for the host")

    def apply(self, model: Any) -> Applied:
        """Replace the loop; raises PassRefused for a UNet with unknown parts, or a scheduler that is not linear."""
        from scoring.diffusion.cuda_graphs import Fast

        fast = Fast(model)
        try:
            if self._compiled and model.device.type == "cuda":
                fast.choose()
        except BaseException:
            fast.undo()
            raise
        return Applied(fast.replaced, fast.detail, fast.undo)

    def warm(self, model: Any) -> None:
        """Do nothing: the task's own first image captures the graphs of the model's size."""

    def verify(self, model: Any, reference: Callable[..., Any]) -> float:
        from scoring.diffusion.verify import verify_images

        return verify_images(model, reference())

    def bound(self, reference: Callable[..., Any]) -> float:
        """Error bound: 1.5 times plain diffusers' own error in half precision against float32."""
        return max(self.tolerance, _SLACK * float(reference().plain_error))
