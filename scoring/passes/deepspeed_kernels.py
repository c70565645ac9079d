"""DeepSpeed's own transformer kernels, injected into transformers 5 models that they compute correctly."""

from collections.abc import Callable
from typing import Any

from scoring.passes.base import Applicability, Applied, Facts, Hardware, Pass
from scoring.passes.families import DEEPSPEED_KERNELS


class DeepSpeedKernels(Pass):
    """`deepspeed.init_inference(replace_with_kernel_inject=True)`, adapted: tensors returned, additive 4-D masks."""

    name = "deepspeed_kernels"
    public = True
    supersedes = ("compile",)

    def applies(self, facts: Facts, hardware: Hardware, objective: str) -> Applicability:
        if facts.family in DEEPSPEED_KERNELS.refused:
            return Applicability(False, f"{facts.family} stays wrong: {DEEPSPEED_KERNELS.refused[facts.family]}")
        if facts.family not in DEEPSPEED_KERNELS.served:
            return Applicability(False, f"DeepSpeed has no kernels for {facts.family}")
        if hardware.device != "cuda":
            return Applicability(False, "DeepSpeed's kernels need an NVIDIA GPU")
        if hardware.capability < (7, 0):
            return Applicability(False, f"DeepSpeed's kernels need compute capability 7.0; {hardware.name} is older")
        if not hardware.nvcc:
            return Applicability(False, "DeepSpeed builds its kernels with nvcc, which is not installed")
        return Applicability(True, "fused fp16 kernels for each layer")

    def apply(self, model: Any) -> Applied:
        from scoring.encoder.deepspeed import inject

        count, undo = inject(model)
        return Applied(count, f"{count} layers", undo)

    def verify(self, model: Any, reference: Callable[..., Any]) -> float:
        from scoring.encoder.verify import verify_encoder

        return verify_encoder(model, reference)
