"""How long things take: starting, answering; and the probes and timeouts that follow."""

import math
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from mii_azure import limits, roofline
from mii_azure.sizing import Fit, Work, device_of


class Probe(BaseModel):
    """An Azure ML probe; seconds and counts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    initial_delay: int
    period: int
    timeout: int
    success_threshold: int
    failure_threshold: int


class Start(NamedTuple):
    """The predicted start and the probes that allow for it."""

    seconds: int
    liveness: Probe
    readiness: Probe


def start(weight_bytes: int, device: str) -> Start:
    """Predict the start from the weights' size, and cut the probes so that three times as long is no failure.

    The inference server answers nothing until the model is loaded, so liveness must wait for it; readiness asks early
    and often, which costs nothing and finds a fast start fast.
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


def batch_seconds(work: Work, placed: Fit) -> float:
    """Seconds for one full batch: floor over the efficiency counted on, and for generation the answer's tokens."""
    profile, sku = work.profile, placed.sku
    if sku.gpu:
        peak = (sku.gpu.single_tflops if placed.dtype == "float32" else sku.gpu.half_tflops) * 1e12
        bandwidth = sku.gpu.bandwidth_gb_s * 1e9
    else:
        peak, bandwidth = sku.cores * limits.CPU_FLOPS, sku.cores * limits.CPU_BYTES_PER_S
    length = min(profile.context_length, placed.tokens)
    # Embeddings are looked up, not multiplied; the output matrix is, for every token, only where masks are filled.
    table = 0 if work.task == "fill-mask" else profile.vocab_size * profile.hidden_size
    matmul = max(profile.parameters - table, 0)
    work_flops = roofline.flops(matmul, profile.layers, profile.hidden_size, placed.tokens, length)
    efficiency = limits.EFFICIENCY[device_of(sku)]
    weights = placed.memory.weights
    overhead = profile.layers * limits.LAYER_OVERHEAD_S[device_of(sku)]
    seconds = roofline.forward_floor(weights, work_flops / placed.gpus, bandwidth, peak) / efficiency + overhead
    if profile.kind == "encoder":
        return seconds
    step = roofline.decode_floor(weights, placed.memory.kv_cache, bandwidth) / efficiency + overhead
    return seconds + limits.NEW_TOKENS * step


def request_timeout_ms(seconds: float) -> int:
    """Three batches (two admitted before it, and its own) and five seconds, between 30 s and Azure's 180 s."""
    wanted = math.ceil(3 * seconds + 5) * 1000
    return min(max(wanted, limits.MIN_TIMEOUT_MS), limits.MAX_REQUEST_TIMEOUT_MS)


def quota_cores(cores: int, instances: int, skip_reserve: bool) -> int:
    """Cores of quota that a deployment takes: ceil(1.2 x instances) x cores, or instances x cores without reserve."""
    if skip_reserve:
        return instances * cores
    return -(-instances * (100 + limits.UPGRADE_RESERVE_PERCENT) // 100) * cores
