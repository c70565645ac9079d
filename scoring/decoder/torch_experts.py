"""Mixture of experts in plain torch: rows by the experts that they chose, one product for each that has rows."""

from collections.abc import Callable

import torch
from torch import Tensor

from scoring.decoder.model import Activation, Linear, Mixture

#: Applies a product to rows.
Product = Callable[[Tensor, Linear], Tensor]
#: Applies an activation to rows, gated or not.
Activate = Callable[[Tensor, Activation, bool], Tensor]


def mixture(x: Tensor, experts: Mixture, product: Product, activate: Activate) -> Tensor:
    """Outputs [T, E] of rows x [T, E]; each row's are added in the order of its choices, whatever other rows chose."""
    shares, chosen = choose(product(x, experts.router), experts)
    places = chosen.flatten().argsort(stable=True)
    counts = torch.bincount(chosen.flatten(), minlength=len(experts.up)).tolist()
    found = x.new_empty(len(places), x.shape[1])
    for number, own in enumerate(torch.split(places, counts)):
        if len(own):
            up, down = _products(experts, number)
            inner = _gated(product(x[own // experts.chosen], up), experts, activate)
            found[own] = product(inner, down)
    weighted = found.view(len(x), experts.chosen, -1) * shares[..., None].to(x.dtype)
    total = weighted[:, 0]
    for place in range(1, experts.chosen):
        total = total + weighted[:, place]
    return total.contiguous()


def choose(logits: Tensor, experts: Mixture) -> tuple[Tensor, Tensor]:
    """Weights [T, chosen] in float32 and numbers of the experts that rows with these logits [T, X] choose."""
    shares, chosen = torch.softmax(logits.float(), -1).topk(experts.chosen, -1)
    return (shares / shares.sum(-1, keepdim=True) if experts.renormalised else shares), chosen


def _products(experts: Mixture, number: int) -> tuple[Linear, Linear]:
    """Products of one expert, up and down."""
    up, down = experts.up_bias, experts.down_bias
    return (
        Linear(experts.up[number], None if up is None else up[number]),
        Linear(experts.down[number], None if down is None else down[number]),
    )


def _gated(x: Tensor, experts: Mixture, activate: Activate) -> Tensor:
    if experts.interleaved:
        x = torch.cat((x[:, ::2], x[:, 1::2]), 1)
    if not experts.limit:
        return activate(x, experts.activation, True)
    gate, other = x.chunk(2, -1)
    gate, other = gate.clamp(max=experts.limit), other.clamp(-experts.limit, experts.limit)
    return gate / (1.0 + torch.exp(-experts.alpha * gate)) * (other + 1)
