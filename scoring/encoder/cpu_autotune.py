"""Variants of an encoder on a CPU: threads, number format and prepared weights, timed against each other."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scoring.encoder.buckets import longest_input
from scoring.encoder.verify import answers, reference, relative_error
from scoring.limits.cpus import cores, operators_choice
from scoring.model.loaded import Runtime
from scoring.passes.base import BOUNDS, Applied, PassRefused

GAIN = 1.05  # a smaller speed-up is noise
_SMALLEST = 1 << 14  # elements of a weight worth preparing
_LEAST_ROUNDS, _MOST_ROUNDS = 4, 50  # rounds of a race, however short or long the calls


def cpu_flags() -> frozenset[str]:
    """Feature flags of the processor; empty if the system does not report them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), []))


def missing(precision: str, flags: frozenset[str]) -> str:
    """Reason why a format cannot be fast on a processor; empty if it can."""
    if precision == "bfloat16" and not flags & {"avx512_bf16", "amx_bf16"}:
        return "the CPU multiplies no bfloat16 (no avx512_bf16, no amx_bf16)"
    if precision == "int8" and not flags & {"avx512_vnni", "avx_vnni", "amx_int8"}:
        return "the CPU multiplies no int8 (no vnni, no amx_int8)"
    return ""


def keep_fastest(model: Any, precisions: Sequence[str], shapes: Sequence[tuple[int, int]], seconds: float) -> Applied:
    """Time plain transformers and each format over some (batch, length) shapes, and keep the fastest.

    Raises PassRefused, with the times, if nothing is faster than plain transformers.
    """
    undo_threads = _use_best_threads(model, _batch(model, *shapes[0]))
    ways, refusals = _ways(model, precisions)
    rows = [_batch(model, *shape) for shape in shapes]
    times = {way.name: sum(ms) for way, ms in zip(ways, _race(model, ways, rows, seconds), strict=True)}
    measured = ", ".join(f"{name} {ms:.1f}" for name, ms in times.items()) + " ms"
    measured += "".join(f"; no {name}: {why}" for name, why in refusals.items())
    best = min((way for way in ways if way.name not in refusals), key=lambda way: times[way.name])
    gain = times[ways[0].name] / times[best.name]
    if gain < GAIN:
        undo_threads()
        raise PassRefused(f"nothing is faster than eager here: {measured}")
    best.on()

    def restore() -> None:
        best.off()
        undo_threads()

    what = f"{best.name}, {gain:.2f} times as fast as eager with {torch.get_num_threads()} threads"
    return Applied(best.count, f"{what} ({measured})", restore, Runtime(precision=best.name))


def _ways(model: Any, precisions: Sequence[str]) -> tuple[list["Variant"], dict[str, str]]:
    """Variants (eager, and each usable format), and by name the reason against each other format."""
    references = reference(model)()
    ways, refusals = [Variant("eager", [])], {}
    for name in precisions:
        reason = missing(name, cpu_flags())
        if not reason:
            way = prepare(model, name)
            ways.append(way)
            way.on()
            error = max(relative_error(answers(model, batch), expected) for batch, expected in references)
            way.off()
            reason = "" if error <= BOUNDS[name] else f"its relative error is {error:.1e}"
        if reason:
            refusals[name] = reason
    return ways, refusals


@dataclass(frozen=True)
class Variant:
    """One variant of a model: forwards that replace its modules' own. One variant can be on at a time."""

    name: str
    forwards: Sequence[tuple[nn.Module, Callable[..., Any]]]
    count: int = 0  # layers, and products outside them

    def on(self) -> None:
        for module, forward in self.forwards:
            vars(module)["forward"] = forward

    def off(self) -> None:
        for module, _ in self.forwards:
            del vars(module)["forward"]


def prepare(model: Any, precision: str) -> Variant:
    """Prepare weights in a format; the model is unchanged until the variant is on.

    Encoders that `fused_model` covers run whole, without padding; in others, and in heads, each nn.Linear is replaced.
    """
    from scoring.encoder import fused_model
    from scoring.encoder.cpu_ops import CpuOps, prepared_linear

    base = getattr(model, model.base_model_prefix, model)
    forwards: list[tuple[nn.Module, Callable[..., Any]]] = []
    inside: set[nn.Module] = set()
    count = 0
    ops = CpuOps(precision)
    try:
        stack, undo = fused_model.replace(model, ops)
    except PassRefused:
        pass
    else:
        stack.layers = ops.prepare(stack.layers)
        forwards.append((base, base.forward))
        inside, count = {*base.modules()}, len(stack.layers)
        undo()
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.weight.numel() >= _SMALLEST and module not in inside:
            forwards.append((module, prepared_linear(module, precision)))
            count += 1
    return Variant(precision, forwards, count)


def _use_best_threads(model: Any, batch: dict[str, Tensor]) -> Callable[[], None]:
    """Set the fastest number of threads, unless the operator chose one; return a function that restores the old."""
    before = torch.get_num_threads()
    if operators_choice():
        return lambda: None
    allowed = cores()
    times = {}
    for count in sorted({min(before, allowed), allowed, max(1, allowed // 2)}):
        torch.set_num_threads(count)
        times[count] = _race(model, [Variant("eager", [])], [batch], 0.2)[0][0]
    torch.set_num_threads(min(times, key=times.__getitem__))
    return lambda: torch.set_num_threads(before)


def _batch(model: Any, rows: int, length: int) -> dict[str, Tensor]:
    """Random token ids without padding, as long as the model takes."""
    length = min(length, longest_input(model.config))
    ids = torch.randint(5, model.config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _race(
    model: Any, ways: Sequence[Variant], batches: Sequence[dict[str, Tensor]], seconds: float
) -> list[list[float]]:
    """Milliseconds of the fastest call by variant and batch; variants take turns, as others may share the cores."""
    fastest = [[math.inf] * len(batches) for _ in ways]
    rounds, end = 0, time.perf_counter() + seconds
    with torch.inference_mode():
        while rounds < _LEAST_ROUNDS or (rounds < _MOST_ROUNDS and time.perf_counter() < end):
            for way, times in zip(ways, fastest, strict=True):
                way.on()
                for index, batch in enumerate(batches):
                    began = time.perf_counter()
                    model(**batch)
                    times[index] = min(times[index], 1e3 * (time.perf_counter() - began))
                way.off()
            rounds += 1
    return fastest
