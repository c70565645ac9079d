"""Our own encoder stack in the place of BERT's and its kin's; the arithmetic is in `scoring.encoder.fused_model`."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from scoring.passes.base import Applicability, Applied, Facts, Hardware, Pass
from scoring.passes.families import FUSED_ENCODER

if TYPE_CHECKING:
    from scoring.encoder.ops import EncoderOps
    from scoring.encoder.stack import FusedStack

_HEAD_DIMS = (16, 32, 64, 128)


class FusedEncoder(Pass):
    """Our own kernels in place of embeddings and layers, over tokens without padding; the heads stay as they are."""

    name = "fused_encoder"
    supersedes = ("deepspeed_kernels",)

    def __init__(self, ops: "EncoderOps | None" = None) -> None:
        self._ops = ops
        self.stack: FusedStack | None = None  # while it is applied

    def applies(self, facts: Facts, hardware: Hardware, objective: str) -> Applicability:
        if facts.kind != "encoder":
            return Applicability(False, "it replaces encoders; this model is not one")
        if facts.family in FUSED_ENCODER.refused:
            return Applicability(False, f"{facts.family} is not covered: {FUSED_ENCODER.refused[facts.family]}")
        if facts.family not in FUSED_ENCODER.served:
            return Applicability(False, f"{facts.family} is not covered; covered are {', '.join(FUSED_ENCODER.served)}")
        if facts.head_dim not in _HEAD_DIMS or facts.hidden_size % 16:
            return Applicability(False, f"heads of {facts.head_dim} do not fit the matrix units' tiles")
        if hardware.device != "cuda":
            return Applicability(False, "its kernels need an NVIDIA GPU")
        if hardware.capability < (8, 0):
            return Applicability(
                False, f"its kernels need compute capability 8.0; {hardware.name} has {_dotted(hardware)}"
            )
        how = "with programmatic launch" if hardware.capability >= (9, 0) else "without programmatic launch"
        return Applicability(True, f"seven kernels a layer instead of about twenty, no work on padding, {how}")

    def apply(self, model: Any) -> Applied:
        from scoring.encoder.fused_model import replace

        stack, put_back = replace(model, self._ops)
        self.stack = stack

        def undo() -> None:
            put_back()
            self.stack = None

        return Applied(stack.depth, f"embeddings and {stack.depth} layers", undo)

    def verify(self, model: Any, reference: Callable[..., Any]) -> float:
        from scoring.encoder.verify import verify_encoder

        return verify_encoder(model, reference)


def _dotted(hardware: Hardware) -> str:
    return ".".join(map(str, hardware.capability))
