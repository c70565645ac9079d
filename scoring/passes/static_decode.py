"""Decoders over static memory: one CUDA graph a batch size, fused kernels, sampling on the GPU, no wait per token."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from scoring.decode import Decoder
from scoring.decoder_families import FAMILIES, unsupported
from scoring.passes.base import Applied, Decision, Facts, Hardware, Pass, PassRefused

_LONGEST_HEAD = 256
_MEMORY_SHARE = 0.9  # of the card, for weights and cache; the rest is activations, graphs and the context
_PROBES = (48, 30, 17)  # tokens of the sequences decoded at once, so that steps of 3, 2 and 1 slots are verified
_PREFILLED = 12  # of each, in two pieces; the rest goes through cached steps


@dataclass(frozen=True)
class Told:
    """What plain transformers answers: token ids and float32 logits [T, vocabulary] of each probe, on the CPU."""

    ids: list[list[int]]
    logits: list[Tensor]


class StaticDecode(Pass):
    """Gives the model a `static_decoder`, which text generation uses; the model itself answers as before."""

    name: ClassVar[str] = "static_decode"

    def __init__(self, slots: int = 16, max_length: int = 2048) -> None:
        self.slots = slots
        self.max_length = max_length

    def applies(self, facts: Facts, hardware: Hardware, objective: str) -> Decision:
        """Taken for the ten families on GPUs with bf16 matrix units and memory for the slots."""
        if facts.kind != "decoder":
            return Decision(False, f"{facts.family} is not a decoder")
        if facts.family not in FAMILIES:
            return Decision(False, f"{facts.family} is none of {', '.join(FAMILIES)}")
        if hardware.device != "cuda":
            return Decision(
                False, "its gain is in GPU kernels and graphs; a CPU would run the same operations as before"
            )
        if hardware.capability < (8, 0):
            major, minor = hardware.capability
            return Decision(False, f"its kernels need compute capability 8.0; {hardware.name} has {major}.{minor}")
        if facts.head_dim > _LONGEST_HEAD:
            return Decision(False, f"heads of {facts.head_dim} exceed the attention kernel's {_LONGEST_HEAD}")
        cache = 4 * facts.layers * facts.kv_heads * facts.head_dim * self.slots * self.max_length
        if facts.weight_bytes + cache > _MEMORY_SHARE * hardware.memory_bytes:
            needed = (facts.weight_bytes + cache) / 2**30
            return Decision(
                False, f"weights and {self.slots} slots need {needed:.1f} GiB; choose fewer or shorter slots"
            )
        return Decision(True, f"{self.slots} slots of {self.max_length} tokens, one graph a batch size")

    def apply(self, model: Any) -> Applied:
        reason = unsupported(model.config)
        if reason:
            raise PassRefused(reason)
        try:
            decoder = Decoder(model, self.slots, self.max_length)
            decoder.warm_up()
        except torch.OutOfMemoryError as error:
            raise PassRefused(f"no memory for {self.slots} slots of {self.max_length} tokens") from error
        model.static_decoder = decoder
        detail = f"{self.slots} slots, {decoder.state.bytes() / 2**20:.0f} MiB of keys and values"
        return Applied(len(decoder.form.layers), detail, lambda: delattr(model, "static_decoder"))

    def verify(self, model: Any, reference: Callable[..., Any]) -> float:
        """Larger relative error of prefill and of cached steps against `reference(model)` taken before."""
        return max(errors(model.static_decoder, reference()).values(), key=lambda e: float("inf") if e != e else e)


def reference(model: Any) -> Callable[[], Told]:
    """What plain transformers answers in float32, computed now; in the model's own type where memory is short."""
    generator = torch.Generator().manual_seed(0)
    vocabulary, bound = model.config.vocab_size, getattr(model.config, "max_position_embeddings", None) or _PROBES[0]
    lengths = [min(length, bound) for length in _PROBES]
    ids = [torch.randint(min(5, vocabulary - 1), vocabulary, (n,), generator=generator).tolist() for n in lengths]
    plain = model
    if model.dtype != torch.float32:
        needed = 4 * sum(parameter.numel() for parameter in model.parameters())
        if model.device.type != "cuda" or torch.cuda.mem_get_info(model.device)[0] > 1.2 * needed:
            plain = deepcopy(model).float()
    with torch.inference_mode():
        logits = [plain(torch.tensor([row], device=model.device)).logits[0].float().cpu() for row in ids]
    told = Told(ids, logits)
    return lambda: told


def errors(decoder: Decoder, told: Told) -> dict[str, float]:
    """Relative errors (2-norms over all positions) of "prefill" and "decode", sequences fed as they are."""
    slots = list(range(min(decoder.slots, len(told.ids))))
    prefill, found, wanted = [], [], []
    for slot in slots:
        decoder.open(slot)
        decoder.prefill(slot, told.ids[slot][: _PREFILLED // 2])
        logits = decoder.prefill(slot, told.ids[slot][_PREFILLED // 2 : _PREFILLED])
        prefill.append((logits.float().cpu(), told.logits[slot][_PREFILLED - 1]))
    for position in range(_PREFILLED, max(map(len, told.ids))):
        live = [slot for slot in slots if position < len(told.ids[slot])]
        for slot in live:
            decoder.feed(slot, told.ids[slot][position])
        decoder.step(live)
        found += list(decoder.last_logits(len(live)).float().cpu())
        wanted += [told.logits[slot][position] for slot in live]
    return {
        "prefill": _relative(torch.stack([a for a, _ in prefill]), torch.stack([b for _, b in prefill])),
        "decode": _relative(torch.stack(found), torch.stack(wanted)),
    }


def _relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm().clamp_min(1e-12))
