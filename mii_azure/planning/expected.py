"""Times expected of a placed model, from the measured constants of what will run it.

Timeouts are not set by these but by `planning/latency.py`, which allows for several times as long.
"""

from typing import Literal

from mii_azure.hardware import roofline
from mii_azure.hardware.speed import Effort, Speed, speeds
from mii_azure.planning import latency
from mii_azure.planning.budget import Work, device_of
from mii_azure.planning.memory import Fit
from scoring.passes.families import FUSED_ENCODER, decoder_tier

#: measured: constants of this card; scaled: of another, by the data sheets; assumed: a share of the floor's speed.
Basis = Literal["measured", "scaled", "assumed"]

FEW_ROWS = 2  # sequences up to which a step multiplies vectors and no matrices (scoring/decoder/decode_step.py)


def decoder_runner(tier: str, rows: int) -> str:
    """Name of what runs a decode step: few rows are read by other kernels than many."""
    return f"{tier} decode, {'few' if rows <= FEW_ROWS else 'many'} rows"


def runner(work: Work, placed: Fit, rows: int) -> str:
    """Name of what runs a step of so many rows, or a forward if it generates nothing; empty if none was measured."""
    if work.profile.kind == "encoder":
        if device_of(placed.sku) == "cpu":
            name = "cpu encoder"
        else:
            name = "fused encoder" if work.profile.family in FUSED_ENCODER.served else ""
    else:
        tier = decoder_tier(work.profile.family).tier if placed.room.pool else None
        name = decoder_runner(tier, rows) if tier else ""
    return name if name in speeds() else ""


def prompt_seconds(work: Work, placed: Fit, tokens: int, length: int) -> float:
    """Seconds for a forward pass over `tokens` tokens in sequences of `length`."""
    profile = work.profile
    name = runner(work, placed, 1)
    if profile.kind != "encoder" and name:
        name = name.partition(" ")[0] + " prompt"
    if name not in speeds():
        return latency.prefill_seconds(work, placed, tokens, length)
    causal = 1 if profile.kind == "encoder" else 0.5  # a token attends to those before it only
    products = 2.0 * latency.multiplied(work) * tokens
    flops = roofline.flops(latency.multiplied(work), profile.layers, profile.hidden_size, tokens, length)
    work_flops = (products + causal * (flops - products)) / placed.gpus
    return _seconds(speeds()[name], placed, Effort(placed.memory.weights, work_flops, profile.layers))


def step_seconds(work: Work, placed: Fit, kv_bytes: int, rows: int) -> float:
    """Seconds for the next token of `rows` sequences whose keys and values take `kv_bytes`."""
    name = runner(work, placed, rows)
    if not name:
        return latency.step_seconds(work, placed, kv_bytes, rows)
    flops = 2.0 * latency.multiplied(work) * rows / placed.gpus
    return _seconds(speeds()[name], placed, Effort(placed.memory.weights + kv_bytes, flops, work.profile.layers))


def _seconds(speed: Speed, placed: Fit, effort: Effort) -> float:
    peak, bandwidth = latency.ceilings(placed)
    return speed.seconds(effort, bandwidth, peak)


def basis(work: Work, placed: Fit, rows: int) -> Basis:
    """What the times of a step, or of a forward if nothing is generated, rest on."""
    name = runner(work, placed, rows)
    if not name:
        return "assumed"
    gpu = placed.sku.gpu
    return "measured" if gpu is not None and gpu.name in speeds()[name].cards else "scaled"
