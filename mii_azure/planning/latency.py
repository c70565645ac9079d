"""Predicted times of starting and answering, and the probes and timeouts derived from them."""

import math
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from mii_azure.hardware import roofline
from mii_azure.model.safetensors import DTYPE_BYTES
from mii_azure.planning.budget import Work, device_of
from mii_azure.planning.memory import Fit
from mii_azure.platform import limits


class Probe(BaseModel):
    """Azure ML probe; seconds and counts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    initial_delay: int
    period: int
    timeout: int
    success_threshold: int
    failure_threshold: int


class Start(NamedTuple):
    """Predicted start and the probes that allow for it."""

    seconds: int
    liveness: Probe
    readiness: Probe


def start(weight_bytes: int, device: str) -> Start:
    """Predict the start from the weights' size, and set the probes so that three times as long is no failure.

    The inference server answers nothing until the model is loaded, so liveness must wait for it; readiness probes start
    early and are frequent, which costs nothing and detects a fast start quickly.
    """
    seconds = math.ceil(limits.START_S[device] + weight_bytes / limits.LOAD_BYTES_PER_S)
    delay = math.ceil(seconds / limits.PROBE_PERIOD_S) * limits.PROBE_PERIOD_S
    liveness = _probe(delay, max(math.ceil(2 * seconds / limits.PROBE_PERIOD_S), limits.MIN_PROBE_FAILURES))
    patience = liveness.initial_delay + liveness.failure_threshold * limits.PROBE_PERIOD_S
    readiness = _probe(limits.PROBE_PERIOD_S, math.ceil(patience / limits.PROBE_PERIOD_S))
    return Start(seconds, liveness, readiness)


def _probe(initial_delay: int, failures: int) -> Probe:
    # Azure requires success_threshold 1 of liveness probes.
    return Probe(
        initial_delay=initial_delay,
        period=limits.PROBE_PERIOD_S,
        timeout=limits.PROBE_TIMEOUT_S,
        success_threshold=1,
        failure_threshold=failures,
    )


class Wait(NamedTuple):
    """Longest wait that a request timeout allows for, and what it is for."""

    seconds: float
    what: str


def longest_wait(work: Work, placed: Fit) -> Wait:
    """Longest wait for an answer: two that Azure admitted before it, and its own turn."""
    if placed.room.pool:
        return _cache_wait(work, placed)
    new = max(limits.NEW_TOKENS, work.demand.new)
    answer = "" if work.profile.kind == "encoder" else f" with {new} new tokens each"
    answer = f" of {limits.IMAGE_STEPS} steps" if work.profile.kind == "diffusion" else answer
    return Wait(3 * _batch_seconds(work, placed, new), f"Three full batches{answer}")


def _cache_wait(work: Work, placed: Fit) -> Wait:
    """Wait behind twice as many requests as are served at once, with a full cache, and for one whole context."""
    room, demand = placed.room, work.demand
    prompt, new = min(demand.prompt, room.context), max(limits.NEW_TOKENS, demand.new)
    kept = placed.memory.kv_cache * min(room.pool, room.rows * room.context) // room.pool
    queue = prefill_seconds(work, placed, room.rows * prompt, prompt)
    queue += new * step_seconds(work, placed, kept, room.rows)
    long = prefill_seconds(work, placed, room.context, room.context)
    what = f"Two times {room.rows} expected prompts, {new} new tokens of each while the cache is full,"
    what += f" then a prompt of {room.context} tokens"
    return Wait(2 * queue + long, what)


def _batch_seconds(work: Work, placed: Fit, new: int) -> float:
    """Seconds for one full batch: the floor over the assumed efficiency, and for generation the answer's tokens."""
    if work.profile.kind == "diffusion":
        return drawing_seconds(work, placed, placed.room.rows)
    seconds = prefill_seconds(work, placed, placed.room.tokens, placed.room.context)
    if work.profile.kind == "encoder":
        return seconds
    return seconds + new * step_seconds(work, placed, placed.memory.kv_cache)


def drawing_seconds(work: Work, placed: Fit, images: int) -> float:
    """Seconds for `images` at once, at most as many as fit.

    The UNet runs twice a step, with and without the prompt, and the VAE once.
    """
    (peak, bandwidth), efficiency = ceilings(placed), limits.EFFICIENCY[device_of(placed.sku)]
    pass_flops = one_pass(work, placed, images)
    step = roofline.forward_floor(placed.memory.weights, 2 * pass_flops, bandwidth, peak) / efficiency
    vae = limits.VAE_PASSES * pass_flops / peak / efficiency
    return limits.IMAGE_STEPS * (step + _overhead(work, placed)) + vae


def one_pass(work: Work, placed: Fit, images: int) -> float:
    """FLOP of one pass of the UNet over `images`, without guidance."""
    return 2.0 * work.profile.parameters * limits.LATENT_SHARE * placed.room.tokens * images / placed.room.rows


def prefill_seconds(work: Work, placed: Fit, tokens: int, length: int) -> float:
    """Seconds for a forward pass over `tokens` tokens in sequences of `length`."""
    profile, (peak, bandwidth) = work.profile, ceilings(placed)
    work_flops = roofline.flops(multiplied(work), profile.layers, profile.hidden_size, tokens, length)
    floor = roofline.forward_floor(read_weights(work, placed), work_flops / placed.gpus, bandwidth, peak)
    return floor / limits.EFFICIENCY[device_of(placed.sku)] + _overhead(work, placed)


def step_seconds(work: Work, placed: Fit, kv_bytes: int, rows: int = 1) -> float:
    """Seconds for the next token of `rows` sequences whose keys and values take `kv_bytes`."""
    peak, bandwidth = ceilings(placed)
    floor = roofline.decode_floor(read_weights(work, placed), kv_bytes, bandwidth)
    floor = max(floor, 2.0 * multiplied(work) * rows / placed.gpus / peak if rows > 1 else 0.0)
    return floor / limits.EFFICIENCY[device_of(placed.sku)] + _overhead(work, placed)


def ceilings(placed: Fit) -> tuple[float, float]:
    """Peak FLOP and bytes per second of the instance's device, or of its share of a GPU."""
    sku = placed.sku
    if sku.gpu:
        share = min(sku.gpus, 1.0)
        peak = (sku.gpu.single_tflops if placed.dtype == "float32" else sku.gpu.half_tflops) * 1e12
        return peak * share, sku.gpu.bandwidth_gb_s * 1e9 * share
    return sku.cores * limits.CPU_FLOPS, sku.cores * limits.CPU_BYTES_PER_S


def multiplied(work: Work) -> int:
    """Parameters that are multiplied: tables are looked up; the output matrix only counts where masks are filled."""
    table = 0 if work.task == "fill-mask" else work.profile.vocab_size * work.profile.hidden_size
    return max(work.profile.parameters - table - work.profile.row_parameters, 0)


def read_weights(work: Work, placed: Fit) -> int:
    """Bytes of weights that a forward pass reads: all but tables of which it reads a row a token."""
    rows = work.profile.row_parameters * DTYPE_BYTES[placed.dtype] // placed.gpus
    return max(placed.memory.weights - rows, 0)


def _overhead(work: Work, placed: Fit) -> float:
    return work.profile.layers * limits.LAYER_OVERHEAD_S[device_of(placed.sku)]


def request_timeout_ms(seconds: float) -> int:
    """Timeout of the longest wait and five seconds, within 30 s and Azure's 180 s."""
    wanted = math.ceil(seconds + 5) * 1000
    return min(max(wanted, limits.MIN_TIMEOUT_MS), limits.MAX_REQUEST_TIMEOUT_MS)


def quota_cores(cores: int, instances: int, skip_reserve: bool) -> int:
    """Cores of quota that a deployment takes: ceil(1.2 x instances) x cores, or instances x cores without reserve."""
    if skip_reserve:
        return instances * cores
    return -(-instances * (100 + limits.UPGRADE_RESERVE_PERCENT) // 100) * cores
