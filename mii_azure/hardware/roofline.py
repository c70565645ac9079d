"""Floors: the least time that the hardware's ceilings allow. A result below its floor is a measurement error.

All times are seconds, sizes bytes, bandwidths bytes per second, peaks FLOP per second.
"""


def flops(matmul_parameters: int, layers: int, hidden_size: int, tokens: int, length: int) -> float:
    """FLOPs of a forward pass over `tokens` tokens in sequences of `length`: 2 P S + 4 L S^2 d for each sequence.

    The two products of attention (scores, and weights times values) cost 2 S^2 d each per layer.
    """
    return 2.0 * matmul_parameters * tokens + 4.0 * layers * tokens * length * hidden_size


def forward_floor(weight_bytes: float, work_flops: float, bandwidth: float, peak: float) -> float:
    """Floor of an encoder or prefill: the slower of reading the weights once and doing the arithmetic."""
    return max(weight_bytes / bandwidth, work_flops / peak)


def decode_floor(weight_bytes: float, kv_bytes: float, bandwidth: float, gpus: int = 1) -> float:
    """Floor of one decode step: every weight and live key and value is read once, split over the GPUs."""
    return (weight_bytes + kv_bytes) / (bandwidth * gpus)


def touched(parameters: float, experts: float, share: float, rows: int) -> float:
    """Parameters that `rows` tokens read at once: all but the experts, and the experts that any of them chose.

    Each token chooses `share` of the experts, taken to be independent of what others choose.
    """
    return parameters - experts * (1 - share) ** rows
