"""Variants of an encoder on a CPU: number format and prepared weights, timed against each other."""

import operator
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from scoring.encoder import fused_model, openvino_stack
from scoring.encoder.buckets import longest_input
from scoring.encoder.by_length import by_length
from scoring.encoder.cpu_ops import BFLOAT16, INT8, CpuOps, bfloat16_pays
from scoring.encoder.gated import build_gated
from scoring.encoder.ops import TorchOps
from scoring.encoder.real_text import Judge, calibration
from scoring.encoder.room import refuse_without_room
from scoring.encoder.stack import FusedStack
from scoring.encoder.verify import Batch, answers, reference, relative_error
from scoring.model.loaded import Runtime
from scoring.passes.base import BOUNDS, Applied, PassRefused
from scoring.passes.families import GATED

GAIN = 1.05  # a smaller speed-up is noise
_SMALLEST = 1 << 14  # elements of a weight worth preparing
_WORTH_INT8 = 1 << 20  # elements of a model's products; rounding smaller ones costs what int8 gains
_COPIES = 3  # of the products' weights that preparing a format takes: the graph's own, and two compiled from it
_LEAST_ROUNDS, _MOST_ROUNDS = 3, 50  # rounds of a race, however short or long the calls


def cpu_flags() -> frozenset[str]:
    """Feature flags of the processor; empty if the system does not report them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), []))


def missing(precision: str, flags: frozenset[str]) -> str:
    """Reason why a format cannot be fast on a processor; empty if it can."""
    if precision == BFLOAT16 and not flags & {"avx512_bf16", "amx_bf16"}:
        return "the CPU multiplies no bfloat16 (no avx512_bf16, no amx_bf16)"
    if precision == "int8" and not flags & {"avx512_vnni", "avx_vnni", "amx_int8"}:
        return "the CPU multiplies no int8 (no vnni, no amx_int8)"
    return ""


def keep_fastest(model: Any, precisions: Sequence[str], shapes: Sequence[tuple[int, int]], seconds: float) -> Applied:
    """Time plain transformers and each format over some (batch, length) shapes, and keep the fastest.

    Formats race plain transformers one after another, and the slower of two is let go before the next is prepared: each
    holds weights of its own. Raises PassRefused, with the times, if none is faster than plain transformers, and slower
    for no shape.
    """
    references = reference(model)()
    rows = [_batch(model, *shape) for shape in shapes]
    best = eager = Variant("eager", [])
    gain, plain = 1.0, list[float]()
    typical, refusals = dict[str, float](), dict[str, str]()
    for name in precisions:
        try:
            way = _judged(model, name, references)
        except PassRefused as refused:
            refusals[name] = str(refused)
            continue
        eager_ms, ms = _race(model, [eager, way], rows, seconds / len(precisions))
        plain = plain or eager_ms
        faster = sum(eager_ms) / sum(ms)
        typical[name] = sum(plain) / faster
        if faster > gain and all(map(operator.le, ms, eager_ms)):
            best, gain = way, faster
        del way
    if not plain:
        (plain,) = _race(model, [eager], rows, seconds / len(precisions))
    measured = ", ".join(f"{name} {ms:.1f}" for name, ms in {"eager": sum(plain), **typical}.items()) + " ms"
    measured += "".join(f"; no {name}: {why}" for name, why in refusals.items())
    if gain < GAIN:
        raise PassRefused(f"nothing is faster than eager here: {measured}")
    best.on()
    what = f"{best.name}, {gain:.2f} times as fast as eager with {torch.get_num_threads()} threads{best.means}"
    return Applied(best.count, f"{what} ({measured})", best.off, Runtime(precision=best.name))


def keep(model: Any, precision: str) -> Applied:
    """Run an encoder in a format that another host has timed; raises PassRefused if it cannot be had here."""
    way = _judged(model, precision, reference(model)())
    way.on()
    return Applied(way.count, f"{precision}, as the host beside it{way.means}", way.off, Runtime(precision=precision))


def _judged(model: Any, name: str, references: Sequence[tuple[Batch, dict[str, Tensor]]]) -> "Variant":
    """Variant in a format; raises PassRefused if it cannot be fast here, or is too far from the plain answers."""
    if reason := missing(name, cpu_flags()):
        raise PassRefused(reason)
    if name == BFLOAT16 and not bfloat16_pays():
        raise PassRefused("a product takes longer in it than in float32, whatever the CPU says of itself")
    if name == INT8 and _products(model) < _WORTH_INT8:
        raise PassRefused("the model is too small for it to pay")
    refuse_without_room(_COPIES * _weights(model))
    judge = Judge(model) if name == INT8 else None
    way = prepare(model, name)
    way.on()
    try:
        error = max(relative_error(answers(model, batch), expected) for batch, expected in references)
        fault = f"its relative error is {error:.1e}" if not error <= BOUNDS[name] else ""
        fault = fault or (judge.fault(model) if judge else "")
    finally:
        way.off()
    if fault:
        raise PassRefused(fault)
    return way


@dataclass(frozen=True)
class Variant:
    """One variant of a model: forwards that replace its modules' own. One variant can be on at a time."""

    name: str
    forwards: Sequence[tuple[nn.Module, Callable[..., Any]]]
    count: int = 0  # layers, and products outside them
    means: str = ""  # that run the layers, for records

    def on(self) -> None:
        for module, forward in self.forwards:
            vars(module)["forward"] = forward

    def off(self) -> None:
        for module, _ in self.forwards:
            del vars(module)["forward"]


def _products(model: Any) -> int:
    return sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))


def _weights(model: Any) -> int:
    """Bytes of the products' weights."""
    return sum(each.weight.nbytes for each in model.modules() if isinstance(each, nn.Linear))


def prepare(model: Any, precision: str) -> Variant:
    """Prepare weights in a format; the model is unchanged until the variant is on.

    Encoders that `_stack` covers run whole, without padding, by OpenVINO where it is installed; others run by length,
    and there, and in heads, each nn.Linear is replaced. Heads of int8 encoders stay in float32, except that over the
    vocabulary: they are small, and labels hang on them. Raises PassRefused for int8 if there is no text to calibrate it
    on.
    """
    from scoring.encoder.cpu_ops import prepared_linear

    base = getattr(model, model.base_model_prefix, model)
    forwards: list[tuple[nn.Module, Callable[..., Any]]] = []
    inside: set[nn.Module] = set()
    count, means = 0, ""
    if (plain := _stack(base)) is not None:
        stack, means = _prepared(model, plain, precision)
        forwards.append((base, fused_model.forward_over(base, stack, base.forward)))
        inside, count = {*base.modules()}, plain.depth
    else:
        forwards.append((base, by_length(base.forward)))
    vocabulary = model.get_output_embeddings()
    for module in model.modules():
        spared = precision == INT8 and inside and module is not vocabulary
        if isinstance(module, nn.Linear) and module.weight.numel() >= _SMALLEST and module not in inside and not spared:
            forwards.append((module, prepared_linear(module, precision)))
            count += 1
    return Variant(precision, forwards, count, means)


def _stack(base: Any) -> FusedStack | None:
    """Stack of an encoder; None where its family, or this variant of it, has none."""
    build = build_gated if base.config.model_type in GATED else fused_model.build
    try:
        return build(base, TorchOps())
    except PassRefused:
        return None


def _prepared(model: Any, plain: FusedStack, precision: str) -> tuple[FusedStack, str]:
    """Stack in a format, and what runs it, for records."""
    if openvino_stack.installed():
        texts = calibration(model) if precision == INT8 else ()
        stack = openvino_stack.OpenVinoStack(plain, precision, texts)
        return stack, ", by OpenVINO" + ", large batches in two halves at once" * stack.halved
    return CpuOps(precision).prepare(plain), ", by torch: OpenVINO is not installed"


def _batch(model: Any, rows: int, length: int) -> dict[str, Tensor]:
    """Random token ids without padding, as long as the model takes."""
    length = min(length, longest_input(model.config))
    ids = torch.randint(5, model.config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _race(
    model: Any, ways: Sequence[Variant], batches: Sequence[dict[str, Tensor]], seconds: float
) -> list[list[float]]:
    """Typical milliseconds of a call by variant and batch: the first variant's median, and its multiples for others.

    Variants take turns, and each is compared with the first's call of the same round: others may share the cores, and
    whatever slows one round slows all its calls.
    """
    took: list[list[list[float]]] = []  # by round, variant and batch
    end = time.perf_counter() + seconds
    with torch.inference_mode():
        while len(took) < _LEAST_ROUNDS or (len(took) < _MOST_ROUNDS and time.perf_counter() < end):
            took.append([_times(model, way, batches) for way in ways])
    typical = []
    for way in range(len(ways)):
        multiples = [median(row[way][at] / row[0][at] for row in took) for at in range(len(batches))]
        typical.append([median(row[0][at] for row in took) * multiples[at] for at in range(len(batches))])
    return typical


def _times(model: Any, way: Variant, batches: Sequence[dict[str, Tensor]]) -> list[float]:
    """Milliseconds of one call a batch."""
    found = []
    way.on()
    for batch in batches:
        began = time.perf_counter()
        model(**batch)
        found.append(1e3 * (time.perf_counter() - began))
    way.off()
    return found
