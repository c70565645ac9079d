"""Experts of a mixture, which DeepSpeed leaves whole: each rank keeps a part of every expert's inner width."""

from typing import Any

import torch
from torch import Tensor, nn


def cut_experts(model: Any, rank: int, degree: int) -> None:
    """Reduce experts to a rank's part, in place; their outputs are added up over the ranks.

    Experts are parameters as Mixtral has them: gate and up [experts, 2 I, E], gate first, and down [experts, E, I].
    Others, and widths that cannot be divided, are left whole.
    """
    for module in model.modules():
        up, down = (getattr(module, name, None) for name in ("gate_up_proj", "down_proj"))
        if not (isinstance(up, nn.Parameter) and isinstance(down, nn.Parameter) and _divides(up, down, degree)):
            continue
        size = down.shape[2] // degree
        own = slice(rank * size, (rank + 1) * size)
        up.data = torch.cat([half[:, own] for half in up.data.chunk(2, 1)], 1)
        down.data = down.data[:, :, own].contiguous()
        module.register_forward_hook(_summed)


def _divides(up: Tensor, down: Tensor, degree: int) -> bool:
    if up.ndim != 3 or down.ndim != 3:
        return False
    inner, outer = down.shape[2], down.shape[1]
    return up.shape[1:] == (2 * inner, outer) and inner % degree == 0


def _summed(module: nn.Module, given: Any, output: Tensor) -> Tensor:
    torch.distributed.all_reduce(output)
    return output
