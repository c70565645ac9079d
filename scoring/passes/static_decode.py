"""Decoders over static memory, which sequences join and leave between steps.

On a GPU: one CUDA graph per batch size, fused kernels, sampling on the GPU, no wait per token. On a CPU: a step reads
the weights once for all sequences, where `generate` reads them once for each (`benchmarks/results/streams.json`).
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from scoring.config import Speculation
from scoring.errors import LoadError, RankLost
from scoring.limits.memory_shares import LEAST_CACHE_TOKENS, WEIGHTS_AND_SLOTS
from scoring.model.loaded import Runtime
from scoring.passes.base import FP8_CAPABILITY, Applicability, Applied, Facts, Hardware, Pass, PassRefused
from scoring.passes.draft_loading import cost_of, draft_decoder
from scoring.passes.families import LONGEST_HEAD, Tier, decoder_tier
from scoring.passes.speculation import decide
from scoring.passes.tensor_parallel import TensorParallel

if TYPE_CHECKING:
    from scoring.decoder.decoder import Decoder
    from scoring.tensor_parallel.workers import Workers

#: Largest relative error of logits against plain transformers that a cache in FP8 is served with: that of int8 weights.
FP8_CACHE_BOUND = 5e-2


class StaticDecode(Pass):
    """Makes a static decoder, which text generation uses; the model itself answers as before.

    On a GPU, up to `slots` sequences of up to `max_length` tokens share a cache of `tokens` (0: as many as a `share` of
    its memory has room for; 0: the default share). Of a model that `slicing` cuts, every rank has the decoder of its
    slice.
    """

    name: ClassVar[str] = "static_decode"
    serves_adapters: ClassVar[bool] = True

    def __init__(
        self,
        slots: int = 16,
        max_length: int = 2048,
        cpu_slots: int | None = None,
        slicing: TensorParallel | None = None,
        tokens: int = 0,
        share: float = 0.0,
        tier: Tier | None = None,
        speculation: Speculation = "off",
    ) -> None:
        self.slots = slots
        self.max_length = max_length
        self.cpu_slots = cpu_slots or slots  # on a CPU a slot takes memory only for the tokens that it holds
        self.tokens = tokens
        self.share = share or WEIGHTS_AND_SLOTS
        self.spare_bytes = 0  # that the cache leaves on each GPU to a pass that was decided on
        self._slicing = slicing
        self._tier = tier  # None: the one that the family is for
        self._speculation: Speculation = speculation
        self.draft_model = ""  # folder of a draft model within the model's
        self.narrow = False  # keys and values are to be kept in FP8
        self.invariant = False  # answers are to be the same bits alone and in company
        self.decoder: Decoder | None = None  # while it is applied
        self._taken: Tier | None = None  # the tier that was applied last

    def repays(self, facts: Facts, hardware: Hardware) -> bool:
        """Return False where a CPU would compare it for seconds, and nothing that was asked for builds on it."""
        return hardware.device != "cpu" or self.invariant or self.narrow or facts.adapters > 0

    def applies(self, facts: Facts, hardware: Hardware, objective: str) -> Applicability:
        """Take it by the family's tier: on GPUs with bf16 matrix units and memory for the slots, on CPUs in float32."""
        if facts.kind != "decoder":
            return Applicability(False, f"{facts.family} is not a decoder")
        tier, reason = decoder_tier(facts.family)
        if tier is None:
            return Applicability(False, reason)
        if self.narrow and (told := self._wide(facts, hardware, objective)):
            return Applicability(False, told)
        if self.invariant and (told := self._varies(tier, facts, hardware, objective)):
            return Applicability(False, f"{told}: with batch_invariant rows run one at a time")
        decision = self._fits(facts, hardware, objective)
        return replace(decision, reason=f"{reason}; {decision.reason}") if decision.take else decision

    def _wide(self, facts: Facts, hardware: Hardware, objective: str) -> str:
        """Reason why a cache cannot be in FP8; empty if it can."""
        if hardware.device == "cuda" and hardware.capability < FP8_CAPABILITY:
            (major, minor), (least, more) = hardware.capability, FP8_CAPABILITY
            return f"a cache in FP8 needs compute capability {least}.{more}; {hardware.name} has {major}.{minor}"
        return "slices over several GPUs keep no cache in FP8" if self.degree(facts, hardware, objective) > 1 else ""

    def _varies(self, tier: Tier, facts: Facts, hardware: Hardware, objective: str) -> str:
        """Reason why a decoder's answers would depend on the rest of their batch; empty if they need not."""
        if (self._tier or tier) == "generic":
            return (
                f"the products of {facts.family} are transformers' own (generic tier), whose sums depend on the batch"
            )
        if self.degree(facts, hardware, objective) > 1:
            return "sums over several GPUs are added up in an order that depends on the batch"
        return "products of adapters depend on who else uses them" if facts.adapters else ""

    def _fits(self, facts: Facts, hardware: Hardware, objective: str) -> Applicability:
        """Decide by hardware and memory, which do not depend on the tier."""
        if hardware.device != "cuda":
            return self._on_cpu(facts)
        if hardware.capability < (8, 0):
            major, minor = hardware.capability
            return Applicability(False, f"its kernels need compute capability 8.0; {hardware.name} has {major}.{minor}")
        if facts.head_dim > LONGEST_HEAD:
            return Applicability(False, f"heads of {facts.head_dim} exceed the attention kernel's {LONGEST_HEAD}")
        least = min(self.max_length, LEAST_CACHE_TOKENS)
        cache = (2 if self.narrow else 4) * facts.layers * facts.kv_heads * facts.head_dim * least
        degree = self.degree(facts, hardware, objective)
        needed = facts.weight_bytes / degree + cache / min(degree, facts.kv_heads or 1)
        each = f" on each of {degree} GPUs" if degree > 1 else ""
        if needed > self.share * hardware.memory_bytes:
            size = f"{needed / 2**30:.1f} GiB{each}"
            return Applicability(False, f"weights and a cache of {least:,} tokens need {size}; choose a larger GPU")
        return Applicability(True, f"up to {self.slots} sequences of {self.max_length} tokens in a paged cache{each}")

    def degree(self, facts: Facts, hardware: Hardware, objective: str) -> int:
        """Number of ranks over which weights and cache are divided."""
        if self._slicing is None or not self._slicing.applies(facts, hardware, objective).take:
            return 1
        return self._slicing.degree

    def _on_cpu(self, facts: Facts) -> Applicability:
        if facts.weight_bytes < 4 * facts.parameters:
            return Applicability(False, "on a CPU it is measured and taken in float32 only")
        slots = f"{self.cpu_slots} slots of {self.max_length} tokens"
        return Applicability(True, f"{slots}; one reading of the weights a step serves them all")

    def apply(self, model: Any) -> Applied:
        from scoring.decoder.adapters.parts import steady_rotary
        from scoring.decoder.verify import step_ms
        from scoring.engine.oom import is_out_of_memory

        self._taken = self._tier or decoder_tier(model.config.model_type).tier
        on_gpu, ranks = model.device.type == "cuda", self._slicing.ranks if self._slicing else None
        slots = self.slots if on_gpu else self.cpu_slots
        try:
            decoder = self._made(model, slots, ranks)
            for each in (decoder, decoder.draft):
                if each is not None:
                    each.warm_up()
            if on_gpu and decoder.draft is not None:  # a small model's step takes longer than its weights tell
                decoder.draft_cost = step_ms(decoder.draft) / step_ms(decoder)
        except LoadError as error:
            raise PassRefused(error.message) from error
        except (RuntimeError, MemoryError, OSError) as error:
            if not isinstance(error, OSError) and not is_out_of_memory(error):
                raise
            raise PassRefused(f"no memory for {slots} slots of {self.max_length} tokens") from error
        self._compare(decoder, model)
        self.decoder = decoder
        most = "up to " if model.device.type == "cpu" else ""
        detail = f"{slots} slots, {most}{decoder.state.bytes() / 2**20:.0f} MiB of keys and values"
        detail += f" for {decoder.capacity:,} tokens{' in FP8' if decoder.state.narrow else ''}"
        if decoder.recurrent is not None:
            detail += f"; {decoder.recurrent.told}"
        if decoder.max_length < decoder.full_length:
            detail += f"; the context is {decoder.max_length:,} tokens instead of {decoder.full_length:,}"
        if decoder.tier != decoder_tier(model.config.model_type).tier:
            detail += f"; in the {decoder.tier} tier after all"
            detail += f": {decoder.unfit}" if decoder.unfit else ""
        if steady := steady_rotary(model.config.get_text_config(decoder=True)):
            detail += f"; nothing is drafted: rotary positions differ beyond {steady:,} tokens"
            detail += ", and longer sequences are left to `generate`" if decoder.tier == "generic" else ""
        if self.invariant:
            detail += "; sums of one order: answers are the same bits alone and in company"
        if decoder.speculates:
            detail += f"; drafted by {'n-grams' if decoder.draft is None else 'a draft model'}"
        detail += "".join(f"; {note}" for note in decoder.notes)

        def undo() -> None:
            decoder.drop()
            self.decoder = None

        return Applied(len(decoder.model.layers), detail, undo, Runtime(decoder=decoder))

    def another(self) -> bool:
        """Take the generic tier after the fused one, of a whole model; its sums have no one order."""
        sliced = self._slicing is not None and self._slicing.ranks is not None
        if self._tier is not None or self._taken != "fused" or sliced or self.invariant:
            return False
        self._tier = "generic"
        return True

    def _compare(self, decoder: "Decoder", model: Any) -> None:
        """Raise PassRefused if answers, which are to be the same bits in any company, are not.

        At every start, whatever is known of the pass: which products are cuBLAS's is decided at every start too.
        """
        from scoring.decoder.company import difference

        if self.invariant and (told := difference(decoder, model.config)):
            decoder.drop()
            raise PassRefused(f"{told}: with batch_invariant rows run one at a time")

    def _made(self, model: Any, slots: int, ranks: "Workers | None") -> "Decoder":
        """Decoder of a model, whole or cut over ranks; raises PassRefused if another rank has no memory for it."""
        import torch

        from scoring.decoder.adapters.parts import steady_rotary
        from scoring.decoder.decoder import Decoder
        from scoring.decoder.generic.recurrent import keeps_states

        tokens, share = 0, 0.0
        if model.device.type == "cuda":
            tokens, share = self.tokens, self.share - self.spare_bytes / torch.cuda.mem_get_info(model.device)[1]
        if ranks is None:
            experts = bool(getattr(model.config.get_text_config(decoder=True), "num_experts_per_tok", None))
            steady = steady_rotary(model.config.get_text_config(decoder=True))
            drafted = self._speculation in ("auto", "draft") and not steady and not keeps_states(model.config)
            named = self.draft_model if drafted else ""
            drafts = decide(
                self._speculation, model.device.type, experts=experts, draft=bool(named), fixed=self.invariant
            ).take
            small = draft_decoder(model, named, self.max_length, share) if named else None
            decoder = Decoder(
                model, slots, self.max_length, None, tokens, share, self._tier, drafts, self.invariant, self.narrow
            )
            decoder.rounds = self._speculation in ("ngram", "draft")
            decoder.draft, decoder.draft_cost = small, cost_of(small, decoder) if small else 0.0
            return decoder
        from scoring.tensor_parallel.decoder import SlicedDecoder

        try:
            return SlicedDecoder(model, slots, self.max_length, ranks, tokens, share)
        except BaseException as error:
            if not ranks.lost:
                ranks.send(("drop", {}))
            if isinstance(error, RankLost) and not ranks.lost:
                raise PassRefused(str(error)) from error
            raise

    def warm(self, model: Any) -> None:
        """Capture what a pass that was dropped has left uncaptured, for it started the decoder's steps anew."""
        if self.decoder is not None:
            self.decoder.warm_up()

    def verify(self, model: Any, reference: Callable[..., Any]) -> float:
        """Largest relative error of prefill, of cached steps and of adapters against plain transformers' answers."""
        from scoring.decoder.verify import adapter_error, errors

        if self.decoder is None:
            return float("nan")
        found = [*errors(self.decoder, reference()).values(), adapter_error(self.decoder, model)]
        return max(found, key=lambda e: float("inf") if e != e else e)

    def bound(self, reference: Callable[..., Any]) -> float:
        own = self.own_bound(reference)
        return max(own, FP8_CACHE_BOUND) if self.narrow else own
