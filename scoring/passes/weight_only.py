"""int8 weights for decode steps of one or two sequences, which are bound by the bytes of the weights."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from scoring.limits.memory_shares import WEIGHTS
from scoring.passes.base import GAIN, LATENCY, Applicability, Applied, Facts, Hardware, Pass, PassRefused
from scoring.passes.families import decoder_tier
from scoring.passes.static_decode import StaticDecode

if TYPE_CHECKING:
    from scoring.decoder.decoder import Decoder

_WORTH = 3e9  # bytes of weights below which launches and latencies, not bandwidth, take most of a step


class WeightOnly(Pass):
    """Adds int8 weights (symmetric, one scale a row) to a model's static decoder; prefill keeps the 16-bit ones.

    Kept only where a step is faster for it by measurement. Answers change by what eight bits lose, so `tolerance`, not
    the tolerance of exact passes, is its bound.
    """

    name: ClassVar[str] = "weight_only"
    tolerance: ClassVar[float] = 5e-2

    def __init__(self, decode: StaticDecode, timer: "Callable[[Decoder], float] | None" = None) -> None:
        self.decode = decode
        self._timer = timer  # milliseconds a step of one sequence

    def applies(self, facts: Facts, hardware: Hardware, objective: str) -> Applicability:
        """Take it for latency, on top of static_decode, for large models and with memory for half as much again."""
        below = self.decode.applies(facts, hardware, objective)
        if not below.take:
            return Applicability(False, f"it builds on static_decode: {below.reason}")
        if hardware.device != "cuda":
            return Applicability(False, "its kernels are for GPUs")
        if decoder_tier(facts.family, True).tier != "fused":
            return Applicability(False, f"the products of {facts.family} are transformers' own (generic tier)")
        if objective != LATENCY:
            return Applicability(False, "it serves one or two sequences at a time; larger batches read 16-bit weights")
        degree = self.decode.degree(facts, hardware, objective)
        shard, each = facts.weight_bytes / degree, f" on each of {degree} GPUs" if degree > 1 else ""
        if shard < _WORTH:
            return Applicability(False, f"{shard / 1e9:.1f} GB of weights{each} are read too fast for it to pay")
        if 1.5 * shard > WEIGHTS * hardware.memory_bytes:
            return Applicability(False, f"16-bit and int8 weights need {1.5 * shard / 2**30:.1f} GiB together{each}")
        self.decode.spare_bytes = int(shard / 2)
        shipped = " as shipped" if facts.shipped == "int8" else ""
        return Applicability(True, f"int8 weights{shipped} beside the 16-bit ones, one scale a row")

    def apply(self, model: Any) -> Applied:
        """Add int8 weights; raises PassRefused if memory is short, or, with both times, if they are no faster."""
        import torch

        from scoring.decoder.model import DecoderModel
        from scoring.decoder.verify import step_ms

        decoder = self.decode.decoder
        if decoder is None:
            raise PassRefused("the model has no static decoder")
        if not isinstance(decoder.form, DecoderModel):
            raise PassRefused("the model's products are transformers' own (generic tier)")
        timer = self._timer or step_ms
        alone = timer(decoder)
        try:
            decoder.use_int8()
            decoder.warm_up()
        except torch.OutOfMemoryError as error:
            decoder.use_int8(False)
            raise PassRefused("no memory for int8 weights beside the 16-bit ones") from error
        beside = timer(decoder)
        if alone < beside * GAIN:
            decoder.use_int8(False)
            decoder.warm_up()
            raise PassRefused(f"a step with int8 weights takes {beside:.2f} ms, with 16-bit ones {alone:.2f} ms")
        detail = f"a step of one sequence {alone:.2f} to {beside:.2f} ms"
        return Applied(len(decoder.form.products()), detail, lambda: decoder.use_int8(False))

    def verify(self, model: Any, reference: Callable[..., Any]) -> float:
        """Larger relative error of prefill and of cached steps against plain transformers in float32."""
        return self.decode.verify(model, reference)
