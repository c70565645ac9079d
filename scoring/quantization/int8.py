"""Eight-bit quantization used throughout this package: symmetric, one float32 scale per row."""

import torch
from torch import Tensor

LEAST = 1e-12  # lower bound of a row's largest number, so that a row of zeros is not divided by zero


def quantize_per_row(x: Tensor, kind: torch.dtype = torch.int8) -> tuple[Tensor, Tensor]:
    """Quantize x [R, K] to int8 or a float8 type: values [R, K], and scales [R, 1] by which to multiply them."""
    largest = 127.0 if kind == torch.int8 else torch.finfo(kind).max
    scale = x.abs().amax(-1, keepdim=True).float().clamp_min(LEAST) / largest
    values = x.float() / scale
    return (values.round() if kind == torch.int8 else values).to(kind), scale
