"""Numbers in eight bits as all of this package has them: symmetric, one float32 scale a row."""

import torch
from torch import Tensor

LEAST = 1e-12  # of a row's largest number, so that a row of zeros divides by something


def quantize_per_row(x: Tensor, kind: torch.dtype = torch.int8) -> tuple[Tensor, Tensor]:
    """x [R, K] in int8, or a float8 type: values [R, K], and the scales [R, 1] that they are to be multiplied by."""
    largest = 127.0 if kind == torch.int8 else torch.finfo(kind).max
    scale = x.abs().amax(-1, keepdim=True).float().clamp_min(LEAST) / largest
    values = x.float() / scale
    return (values.round() if kind == torch.int8 else values).to(kind), scale
