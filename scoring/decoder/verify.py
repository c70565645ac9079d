"""Comparison of a decoder with plain transformers: chunked prefill, and cached steps of one slot and several.

Where prompts must not come in pieces, prefill is not chunked.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoring.decoder.decoder import Decoder
from scoring.decoder.generic.plain import plain_logits
from scoring.decoder.generic.recurrent import in_pieces
from scoring.lora.bank import AdapterBank
from scoring.lora.loading import trial_pairs

_PROBES = (48, 30, 17)  # tokens of the sequences decoded at once, so that steps of 3, 2 and 1 slots are verified
_PREFILLED = 12  # least tokens of each, in two chunks; the rest goes through cached steps
_TRIAL = "trial"  # name of an adapter that is none
_ON_CPU = (6, 4, 2)  # steps of each: on a CPU one takes as long as dozens on a GPU


@dataclass(frozen=True)
class DecoderReference:
    """Answers of plain transformers: token ids and float32 logits [T, vocabulary] of each probe, on the CPU."""

    ids: list[list[int]]
    logits: list[Tensor]
    own_error: float  # of the model in its own dtype against float32: the error that 16 bits cause by themselves


def reference(model: Any) -> Callable[[], DecoderReference]:
    """Answers of plain transformers in float32, computed now; in the model's own dtype if memory is short."""
    ids = probes(model.config)
    plain = model
    if model.dtype != torch.float32:
        needed = 4 * sum(parameter.numel() for parameter in model.parameters())
        if free_bytes(model.device) > 1.2 * needed:
            plain = deepcopy(model).float()
    starts = [len(row) - steps for row, steps in zip(ids, _steps(ids, model.device), strict=True)]
    logits = _logits(plain, ids, starts)
    own = 0.0 if plain is model else _relative(torch.cat(_logits(model, ids, starts)), torch.cat(logits))
    told = DecoderReference(ids, logits, own)
    return lambda: told


def probes(config: Any) -> list[list[int]]:
    """Random token ids for a model, the longest first."""
    config, generator = config.get_text_config(decoder=True), torch.Generator().manual_seed(0)
    vocabulary, bound = config.vocab_size, getattr(config, "max_position_embeddings", None) or 0
    lengths = [min(length, bound) if bound > 0 else length for length in _PROBES]  # XLNet's is -1: none
    return [torch.randint(min(5, vocabulary - 1), vocabulary, (n,), generator=generator).tolist() for n in lengths]


def free_bytes(device: torch.device) -> int:
    """Free memory of a device, bytes; of the host as Linux estimates it, unbounded on other systems."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return sys.maxsize
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), sys.maxsize)


@torch.inference_mode()
def _logits(model: Any, ids: list[list[int]], starts: list[int]) -> list[Tensor]:
    """Plain logits after each token; where it makes a difference, of steps from `starts` on."""
    return [plain_logits(model, row, start).float().cpu() for row, start in zip(ids, starts, strict=True)]


def _steps(ids: list[list[int]], device: torch.device) -> list[int]:
    """Tokens at the end of each probe that steps take."""
    most = _ON_CPU if device.type == "cpu" else [len(row) for row in ids]
    return [min(max(1, len(row) - _PREFILLED), steps) for row, steps in zip(ids, most, strict=True)]


def errors(decoder: Decoder, told: DecoderReference) -> dict[str, float]:
    """Relative errors (2-norms over all positions) of "prefill" and "decode", with teacher forcing."""
    slots = list(range(min(decoder.slots, len(told.ids))))
    probes = [ids[: decoder.max_length] for ids in told.ids]
    steps = _steps(probes, decoder.model.device)
    starts = [len(ids) - count for ids, count in zip(probes, steps, strict=True)]
    prefill, found, wanted = [], [], []
    for slot in slots:
        start = starts[slot]
        decoder.open(slot)
        for piece in (slice(start // 2), slice(start // 2, start)) if in_pieces(decoder.recurrent) else (slice(start),):
            logits = decoder.prefill(slot, told.ids[slot][piece])
        prefill.append((logits.float().cpu(), told.logits[slot][start - 1]))
    for number in range(max(steps[: len(slots)])):
        live = [slot for slot in slots if number < steps[slot]]
        for slot in live:
            decoder.feed(slot, told.ids[slot][starts[slot] + number])
        decoder.step(live)
        found += list(decoder.last_logits(len(live)).float().cpu())
        wanted += [told.logits[slot][starts[slot] + number] for slot in live]
    for slot in slots:  # else their blocks would be lost to sequences on other slots
        decoder.release(slot)
    return {
        "prefill": _relative(torch.stack([a for a, _ in prefill]), torch.stack([b for _, b in prefill])),
        "decode": _relative(torch.stack(found), torch.stack(wanted)),
    }


@torch.inference_mode()
def adapter_error(decoder: Decoder, hf_model: Any) -> float:
    """Largest relative error of adapters in one prefill together, as many as there are slots; 0 without adapters.

    On a CPU also of all of them in a step. Against the model's own modules, where all tokens of a forward have the
    adapter. Where there is room for adapters to come, one of random numbers stands for them.
    """
    bank = decoder.adapters.bank
    if bank is None:
        return 0.0
    with _with_trial(bank):
        return _adapter_error(decoder, hf_model, bank)


@contextmanager
def _with_trial(bank: AdapterBank) -> Iterator[None]:
    """An adapter of random numbers at a free place, if the bank has room for others."""
    place = bank.names.index("") if bank.room and "" in bank.names else -1
    if place >= 0:
        bank.put(place, _TRIAL, trial_pairs(bank))
    try:
        yield
    finally:
        if place >= 0:
            bank.put(place, "", {})


def _adapter_error(decoder: Decoder, hf_model: Any, bank: AdapterBank) -> float:
    names = sorted(filter(None, bank.names), key=lambda name: name != _TRIAL)[: decoder.slots]
    ids = probes(hf_model.config)[-1][: decoder.max_length]
    slots = list(range(len(names)))
    for slot, name in enumerate(names):
        decoder.open(slot)
        decoder.adapters.use(slot, name)
    found, errors, wanted = decoder.prefill_many([(slot, ids[:-1]) for slot in slots]).float(), [], []
    for slot, name in enumerate(names):
        with bank.everywhere(name):
            before, after = _logits(hf_model, [ids], [len(ids) - 1])[0][-2:]
        errors.append(_relative(found[slot].cpu(), before))
        wanted.append(after)
    if decoder.model.device.type == "cpu":  # where steps need not be captured
        for slot in slots:
            decoder.feed(slot, ids[-1])
        decoder.step(slots)
        errors.append(_relative(decoder.last_logits(len(slots)).float(), torch.stack(wanted)))
    for slot in slots:
        decoder.adapters.use(slot, "")
        decoder.release(slot)
    return max(errors, key=lambda error: float("inf") if error != error else error)


def step_ms(decoder: Decoder, steps: int = 40) -> float:
    """Milliseconds per step of one sequence after a short prompt, tokens read one step late; uses slot 0."""
    steps = max(1, min(steps, decoder.max_length - 4))
    decoder.open(0)
    decoder.prefill(0, [1])
    decoder.sample([0]).tokens()
    late = decoder.step([0])
    late.tokens()  # by now captured and warm
    began = time.perf_counter()
    for _ in range(steps):
        pending = decoder.step([0])
        late.tokens()
        late = pending
    late.tokens()
    seconds = time.perf_counter() - began
    decoder.release(0)
    return 1e3 * seconds / steps


def _relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm().clamp_min(1e-12))
