"""Norms of queries and keys over all heads together: each rank keeps its gains, and squares are added up over ranks."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from scoring.decoder.adapters.parts import epsilon


def cut_joint_norms(model: Any, rank: int, degree: int) -> None:
    """Reduce such norms to a rank's part, in place, before the products whose outputs they normalise are cut."""
    for module in model.modules():
        if is_joint(module):
            for norm in (module.q_norm, module.k_norm):
                norm.weight.data = norm.weight.data.chunk(degree)[rank].contiguous()
                norm.register_forward_hook(partial(_normed, degree=degree))


def is_joint(module: Any) -> bool:
    """Return True if an attention's norms of queries and keys are over all heads together, not over each."""
    norm: Any = getattr(module, "q_norm", None)
    product = getattr(module, "q_proj", None)
    if "RMSNorm" not in type(norm).__name__ or not isinstance(product, nn.Linear):
        return False
    count = norm.weight.numel()
    return bool(norm.weight.ndim == 1 and count == product.out_features > getattr(module, "head_dim", count))


def _normed(norm: Any, given: Any, output: Tensor, *, degree: int) -> Tensor:
    """Return the RMSNorm of all ranks' numbers, of which these are a part."""
    wide = given[0].float()
    squares = wide.square().sum(-1, keepdim=True)
    torch.distributed.all_reduce(squares)
    mean = squares / (wide.shape[-1] * degree)
    normed: Tensor = norm.weight * (wide * torch.rsqrt(mean + epsilon(norm)))
    return normed.to(output.dtype)
