"""int8 or int4 weights for decode steps of one or two sequences, which are bound by the bytes of the weights."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from scoring.limits.memory_shares import WEIGHTS
from scoring.passes.base import GAIN, LATENCY, Applicability, Applied, Facts, Hardware, Pass, PassRefused
from scoring.passes.families import decoder_tier
from scoring.passes.static_decode import StaticDecode

if TYPE_CHECKING:
    from scoring.decoder.decoder import Decoder

_BESIDE = {"int4": 0.3, "int8": 0.5}  # bytes of the narrow weights, of those of the 16-bit ones
_WORTH = 3e9  # bytes of weights below which launches and latencies, not bandwidth, take most of a step


class WeightOnly(Pass):
    """Adds int8 weights, or a checkpoint's own int4 ones, to a static decoder; prefill keeps the 16-bit ones.

    int8 is symmetric, with one scale a row; int4 is as it is stored, not quantised again. Kept only where a step is
    faster for it by measurement. Answers change by what eight bits lose, so `tolerance`, not the tolerance of exact
    passes, is its bound.
    """

    name: ClassVar[str] = "weight_only"
    tolerance: ClassVar[float] = 5e-2

    def __init__(self, decode: StaticDecode, timer: "Callable[[Decoder], float] | None" = None) -> None:
        self.decode = decode
        self._timer = timer  # milliseconds a step of one sequence
        self._kind = "int8"

    def applies(self, facts: Facts, hardware: Hardware, objective: str) -> Applicability:
        """Take it for latency, on top of static_decode, for large models and with memory for half as much again."""
        below = self.decode.applies(facts, hardware, objective)
        if not below.take:
            return Applicability(False, f"it builds on static_decode: {below.reason}")
        if self.decode.invariant:
            return Applicability(False, "steps of one or two rows would read other weights than those of more")
        if hardware.device != "cuda":
            return Applicability(False, "its kernels are for GPUs")
        if decoder_tier(facts.family).tier != "fused":
            return Applicability(False, f"the products of {facts.family} are transformers' own (generic tier)")
        if objective != LATENCY:
            return Applicability(False, "it serves one or two sequences at a time; larger batches read 16-bit weights")
        degree = self.decode.degree(facts, hardware, objective)
        shard, each = facts.weight_bytes / degree, f" on each of {degree} GPUs" if degree > 1 else ""
        if shard < _WORTH:
            return Applicability(False, f"{shard / 1e9:.1f} GB of weights{each} are read too fast for it to pay")
        kind = "int4" if facts.shipped == "int4" and degree == 1 else "int8"
        needed = (1 + _BESIDE[kind]) * shard
        if needed > WEIGHTS * hardware.memory_bytes:
            return Applicability(False, f"16-bit and {kind} weights need {needed / 2**30:.1f} GiB together{each}")
        self.decode.spare_bytes = int(needed - shard)
        self._kind = kind
        shipped = " as shipped" if facts.shipped == kind else ""
        scale = "one scale a group" if kind == "int4" else "one scale a row"
        return Applicability(True, f"{kind} weights{shipped} beside the 16-bit ones, {scale}")

    def apply(self, model: Any) -> Applied:
        """Add narrow weights; raises PassRefused if memory is short, or, with both times, if they are no faster."""
        import torch

        from scoring.decoder.model import DecoderModel
        from scoring.decoder.verify import step_ms

        decoder = self.decode.decoder
        if decoder is None:
            raise PassRefused("the model has no static decoder")
        if not isinstance(decoder.model, DecoderModel):
            raise PassRefused("the model's products are transformers' own (generic tier)")
        timer = self._timer or step_ms
        alone = timer(decoder)
        count = 0
        try:
            if self._kind == "int4":
                count = decoder.use_int4(model)
            if not count:  # of a layout that the kernels do not read
                self._kind = "int8"
                decoder.use_int8()
            decoder.warm_up()
        except torch.OutOfMemoryError as error:
            decoder.use_int8(False)
            raise PassRefused(f"no memory for {self._kind} weights beside the 16-bit ones") from error
        beside = timer(decoder)
        if alone < beside * GAIN:
            decoder.use_int8(False)
            decoder.warm_up()
            raise PassRefused(
                f"a step with {self._kind} weights takes {beside:.2f} ms, with 16-bit ones {alone:.2f} ms"
            )
        detail = f"{self._kind}: a step of one sequence {alone:.2f} to {beside:.2f} ms"
        return Applied(count or len(decoder.model.products()), detail, lambda: decoder.use_int8(False))

    def verify(self, model: Any, reference: Callable[..., Any]) -> float:
        """Larger relative error of prefill and of cached steps against plain transformers in float32."""
        return self.decode.verify(model, reference)
