"""int8 or int4 weights for decode steps, which are bound by the bytes of the weights."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from scoring.limits.control_groups import left
from scoring.limits.memory_shares import WEIGHTS
from scoring.passes.base import GAIN, LATENCY, Applicability, Applied, Facts, Hardware, Pass, PassRefused
from scoring.passes.families import MIXTURES, NATIVE_STEP, WORTH_ON_CPU, decoder_tier, text_family
from scoring.passes.static_decode import StaticDecode

if TYPE_CHECKING:
    from scoring.decoder.decoder import Decoder

_BESIDE = {"int4": 0.3, "int8": 0.5}  # bytes of the narrow weights, of those of the 16-bit ones
_WORTH = 3e9  # bytes of weights below which launches and latencies, not bandwidth, take most of a step
_SCALES = {"int4": "one scale a group", "int8": "one scale a row"}
_BESIDE_ON_CPU = 0.3  # of the float32 ones: a byte and a scale a row, and a product in both layouts


def _require(decoder: "Decoder") -> None:
    """Raise PassRefused where a CPU's step does not serve a decoder, or memory is short for its weights."""
    from scoring.decoder.model import DecoderModel
    from scoring.decoder.native_step import unfit
    from scoring.decoder.verify import free_bytes

    if reason := unfit(decoder.model, decoder.state):
        raise PassRefused(reason)
    assert isinstance(decoder.model, DecoderModel)
    wide = sum(product.full.nbytes for product in decoder.model.products())
    needed, free = int(_BESIDE_ON_CPU * wide), min(free_bytes(decoder.model.device), left())
    if needed > free:
        raise PassRefused(f"narrow weights need {needed / 2**20:.0f} MiB, and {free / 2**20:.0f} MiB are free")


def fastest(decoder: "Decoder", timer: "Callable[[Decoder], float]") -> float:
    """Milliseconds a step of one sequence; on a CPU by all threads or one, whichever is faster here.

    Steps of several sequences are bound by arithmetic, and keep all threads.
    """
    from scoring.decoder.torch_backend import TorchBackend

    several, plain = timer(decoder), decoder.plain
    if not isinstance(plain, TorchBackend) or plain.narrow is None or plain.narrow.threads == 1:
        return several
    threads = plain.narrow.threads
    plain.narrow.use_threads(threads, alone=True)
    if (one := timer(decoder)) <= several:
        return one
    plain.narrow.use_threads(threads)
    return several


def _named(kind: str, shipped: bool) -> str:
    return f"{kind} weights as shipped, where their layout is read," if shipped else f"{kind} weights"


class WeightOnly(Pass):
    """Adds int8 weights, or a checkpoint's own, to a static decoder, whose prompts keep the wide ones.

    int8 is symmetric, with one scale a row; a checkpoint's int4 and int8 are as stored, not quantised again, but for
    layouts that the kernels do not read and for slices over several GPUs. On a GPU steps of one and two sequences read
    them; on a CPU all steps, in C that is compiled for the machine at start, with inputs rounded to int8 in groups of
    64. Kept only where a step is faster for it by measurement. Answers change by what eight bits lose, so `tolerance`,
    not the tolerance of exact passes, is its bound.
    """

    name: ClassVar[str] = "weight_only"
    timed: ClassVar[bool] = True
    serves_adapters: ClassVar[bool] = True
    tolerance: ClassVar[float] = 5e-2

    def __init__(self, decode: StaticDecode, timer: "Callable[[Decoder], float] | None" = None) -> None:
        self.decode = decode
        self._timer = timer  # milliseconds a step of one sequence
        self._kind = "int8"
        self._shipped = False  # of a checkpoint that stores its products so
        self._natively = False  # on a CPU

    def applies(self, facts: Facts, hardware: Hardware, objective: str) -> Applicability:
        """Take it for latency, on top of static_decode, for large models and with memory for half as much again."""
        below = self.decode.applies(facts, hardware, objective)
        if not below.take:
            return Applicability(False, f"it builds on static_decode: {below.reason}")
        if self.decode.invariant:
            return Applicability(
                False, "its steps read other weights than prompts do, and on a GPU than steps of more rows"
            )
        if decoder_tier(facts.family).tier != "fused":
            return Applicability(False, f"the products of {facts.family} are transformers' own (generic tier)")
        if text_family(facts.family) in MIXTURES and hardware.device == "cuda":
            return Applicability(False, "most of its weights are of experts, which are not narrowed")
        if objective != LATENCY:
            return Applicability(False, "it serves few sequences at a time; larger batches read the wide weights")
        self._natively = hardware.device == "cpu"
        if self._natively:
            return self._on_cpu(facts, hardware)
        if facts.adapters:
            return Applicability(False, "on a GPU it serves no adapters beside the model")
        degree = self.decode.degree(facts, hardware, objective)
        shard, each = facts.weight_bytes / degree, f" on each of {degree} GPUs" if degree > 1 else ""
        if shard < _WORTH:
            return Applicability(False, f"{shard / 1e9:.1f} GB of weights{each} are read too fast for it to pay")
        kind = "int4" if facts.shipped == "int4" and degree == 1 else "int8"
        needed = (1 + _BESIDE[kind]) * shard
        if needed > WEIGHTS * hardware.memory_bytes:
            return Applicability(False, f"16-bit and {kind} weights need {needed / 2**30:.1f} GiB together{each}")
        self.decode.spare_bytes = int(needed - shard)
        self._kind, self._shipped = kind, facts.shipped == kind and degree == 1
        return Applicability(True, f"{_named(kind, self._shipped)} beside the 16-bit ones, {_SCALES[kind]}")

    def _on_cpu(self, facts: Facts, hardware: Hardware) -> Applicability:
        if why := NATIVE_STEP.refused.get(text_family(facts.family)):
            return Applicability(False, f"its step on a CPU does not cover {facts.family}: {why}")
        if self.decode.narrow:
            return Applicability(False, "its step on a CPU reads keys and values in float32 only, and they are in FP8")
        if facts.weight_bytes < WORTH_ON_CPU:
            size = f"{facts.weight_bytes / 1e6:.1f} MB"
            return Applicability(False, f"{size} of weights are read too fast for it to pay")
        self._kind = kind = "int4" if facts.shipped == "int4" else "int8"
        needed = (1 + _BESIDE_ON_CPU) * facts.weight_bytes
        if hardware.memory_bytes and needed > hardware.memory_bytes:  # at start `_require` asks the machine
            room = f"{needed / 2**30:.1f} GiB together, and {hardware.memory_bytes / 2**30:.1f} GiB are left for them"
            return Applicability(False, f"float32 and {kind} weights need {room}")
        self._shipped = facts.shipped == kind
        steps = "in all steps, compiled and timed at start"
        return Applicability(True, f"{_named(kind, self._shipped)} beside the float32 ones, {_SCALES[kind]}, {steps}")

    def apply(self, model: Any) -> Applied:
        """Add narrow weights; raises PassRefused if memory is short, or, with both times, if they are no faster."""
        import torch

        from scoring.decoder.model import DecoderModel
        from scoring.decoder.native_build import NoNativeStep
        from scoring.decoder.verify import step_ms

        decoder = self.decode.decoder
        if decoder is None:
            raise PassRefused("the model has no static decoder")
        if not isinstance(decoder.model, DecoderModel):
            raise PassRefused("the model's products are transformers' own (generic tier)")
        if self._natively:
            _require(decoder)
        timer = self._timer or step_ms
        alone = timer(decoder)
        try:
            count = self._narrow(decoder, model)
            beside, wide = fastest(decoder, timer), "float32" if self._natively else "16-bit"
        except NoNativeStep as error:
            self._widen(decoder)
            raise PassRefused(str(error)) from error
        except (torch.OutOfMemoryError, MemoryError, OSError, RuntimeError) as error:
            self._widen(decoder)
            if not (self._natively or isinstance(error, (torch.OutOfMemoryError, MemoryError))):
                raise
            first = (str(error).splitlines() or [""])[0][:200]
            told = f"no memory for {self._kind} weights beside the wide ones"
            raise PassRefused(f"{told}: {first}" if self._natively else told) from error
        if alone < beside * GAIN:
            self._widen(decoder)
            raise PassRefused(
                f"a step with {self._kind} weights takes {beside:.2f} ms, with {wide} ones {alone:.2f} ms"
            )
        total = len(decoder.model.products())
        whence = f"of {total} products {count} as shipped" if count else "quantised at start"
        detail = f"{self._kind}, {whence}: a step of one sequence {alone:.2f} to {beside:.2f} ms"
        return Applied(count or total, detail, lambda: self._widen(decoder))

    def _narrow(self, decoder: "Decoder", model: Any) -> int:
        """Add narrow weights; how many products have those of the model's folder."""
        from scoring.decoder.torch_backend import TorchBackend

        count = 0
        if self._shipped or self._natively:
            count = decoder.use_shipped(model, rest=self._natively or self._kind == "int8")
        if not count:  # of a layout that the kernels do not read, or of wide weights
            self._kind = "int8"
            decoder.use_int8()
        if self._natively and isinstance(decoder.plain, TorchBackend):
            decoder.plain.use_narrow()
        decoder.warm_up()
        return count

    def _widen(self, decoder: "Decoder") -> None:
        from scoring.decoder.torch_backend import TorchBackend

        if isinstance(decoder.plain, TorchBackend):
            decoder.plain.use_wide()
        decoder.use_int8(False)

    def verify(self, model: Any, reference: Callable[..., Any]) -> float:
        """Larger relative error of prefill and of cached steps against plain transformers in float32."""
        return self.decode.verify(model, reference)
