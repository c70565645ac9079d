"""Encoder products in eight bits on the fused stack, kept only if they are measured to be faster."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from scoring.passes.base import COST, GAIN, Applicability, Applied, Facts, Hardware, Pass, PassRefused
from scoring.passes.families import PRE_NORM
from scoring.passes.fused_encoder import FusedEncoder

if TYPE_CHECKING:
    from torch import nn

SHAPE = (32, 128)  # batch and length of the race: throughput is what the pass is for
_CALIBRATION = 7  # seed of the calibration batches, which differ from those of the verification
_DEPTH = 32  # numbers that an eight-bit matrix unit multiplies at once

#: (model, forward, shape) -> milliseconds
Timer = Callable[["nn.Module", Callable[..., Any], tuple[int, int]], float]


class W8A8(Pass):
    """Query, key, value and up in int8: one scale a token for activations, one a row for weights.

    Answers change by what eight bits lose, so `tolerance`, not the tolerance of exact passes, is its bound.
    """

    name: ClassVar[str] = "w8a8"
    tolerance: ClassVar[float] = 5e-2

    def __init__(self, fused: FusedEncoder, forced: bool = False, timer: Timer | None = None) -> None:
        self.fused = fused
        self._forced = forced
        self._timer = timer

    def applies(self, facts: Facts, hardware: Hardware, objective: str) -> Applicability:
        """Take it for cost, on top of fused_encoder; for latency only if it is forced."""
        below = self.fused.applies(facts, hardware, objective)
        if not below.take:
            return Applicability(False, f"it builds on fused_encoder: {below.reason}")
        if facts.family in PRE_NORM:
            return Applicability(False, f"{facts.family} has its norms before its products, which it does not quantise")
        if facts.hidden_size % _DEPTH:
            return Applicability(
                False, f"a hidden size of {facts.hidden_size} does not fit the eight-bit units' {_DEPTH}"
            )
        if objective != COST and not self._forced:
            return Applicability(False, "it changes answers a little and pays in large batches: for the objective cost")
        return Applicability(True, "products that follow a norm in int8, if that is faster here")

    def apply(self, model: Any) -> Applied:
        """Quantize the stack; raises PassRefused, with both times, if eight bits are no faster."""
        from scoring.encoder.inductor import milliseconds
        from scoring.encoder.smoothquant import narrow_layers
        from scoring.encoder.verify import probes

        stack, timer = self.fused.stack, self._timer or milliseconds
        if stack is None:
            raise PassRefused("the model has no fused encoder")
        wide = stack.layers
        alone = timer(model, model.forward, SHAPE)
        stack.layers = narrow_layers(stack, probes(model, seed=_CALIBRATION))
        beside = timer(model, model.forward, SHAPE)

        def undo() -> None:
            stack.layers = wide

        if alone < beside * GAIN:
            undo()
            raise PassRefused(f"int8 takes {beside:.2f} ms against {alone:.2f} ms in 16 bits")
        rows, length = SHAPE
        detail = f"{alone:.2f} to {beside:.2f} ms for {rows} sequences of {length} tokens"
        return Applied(2 * len(wide), detail, undo)

    def verify(self, model: Any, reference: Callable[..., Any]) -> float:
        from scoring.encoder.verify import verify_encoder

        return verify_encoder(model, reference)
