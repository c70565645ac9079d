"""Inductor over a model's layers: what lies between their attention becomes a few kernels.

One layer is compiled for all (torch calls it regional compilation), so that the time does not grow with the depth.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from scoring.decoder.generic.interface import seal_attention

Forward = Callable[..., Any]


def layers_with(module: nn.Module, attending: Iterable[int]) -> list[nn.Module]:
    """Members of the module's lists that hold a module of these ids; of a list within a member, none."""
    wanted, found, within = set(attending), list[nn.Module](), set[int]()
    for stack in module.modules():
        if not isinstance(stack, nn.ModuleList) or id(stack) in within:
            continue
        for member in stack:
            parts = {id(part) for part in member.modules()}
            if parts & wanted:
                found.append(member)
                within |= parts
    return found


def compiled_forwards(layers: Iterable[nn.Module], backend: str = "inductor") -> dict[nn.Module, Forward]:
    """Forward of each layer, which compiles itself at its first call and again for another kind of shape."""
    seal_attention()
    return {layer: torch.compile(layer.forward, backend=backend, dynamic=True) for layer in layers}


@contextmanager
def in_place_of(forwards: dict[nn.Module, Forward]) -> Iterator[None]:
    """Run the layers by these forwards; afterwards they are as they were."""
    try:
        for layer, forward in forwards.items():
            layer.forward = forward
        yield
    finally:
        for layer in forwards:
            vars(layer).pop("forward", None)
