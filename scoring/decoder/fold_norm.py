"""Constants of a model that the kernels of a step need, computed once."""

import torch
from torch import Tensor

from scoring.decoder.model import DecoderLayer, DecoderModel, Linear, Mixture, Mlp, Norm


def normed_products(model: DecoderModel) -> list[tuple[Norm, Linear]]:
    """Norms of a model with the products that follow them."""
    pairs: list[tuple[Norm, Linear]] = []
    for layer in model.layers:
        following = layer.mlp.router if isinstance(layer.mlp, Mixture) else layer.mlp.up
        products = (layer.norm1, layer.attention.qkv), (layer.norm2, following)
        pairs += [(norm, product) for norm, product in products if norm is not None]
    return pairs if model.norm is None else [*pairs, (model.norm, model.head)]


def gains_of(norm: Norm, linear: Linear) -> tuple[Tensor, Tensor]:
    """Return (W g, W b + bias) of a LayerNorm and the product that follows it, float32 [N] each."""
    if norm.kind != "layer" or norm.shift is None:
        return norm.gain, norm.gain
    four = linear.group > 0
    blocks = torch.split(linear.full if four else linear.weight, 8192)  # widened block by block
    gain = torch.cat([block.float() @ norm.gain for block in blocks])
    shift = torch.cat([block.float() @ norm.shift for block in blocks])
    if linear.scale is not None and not four:
        gain, shift = gain * linear.scale, shift * linear.scale
    return gain, shift if linear.bias is None else shift + linear.bias.float()


def joint_bias(layer: DecoderLayer) -> Tensor | None:
    """Sum of the biases of attention's and the MLP's outputs."""
    assert isinstance(layer.mlp, Mlp)
    biases = [linear.bias for linear in (layer.attention.out, layer.mlp.down) if linear.bias is not None]
    return sum(biases[1:], start=biases[0]) if biases else None
