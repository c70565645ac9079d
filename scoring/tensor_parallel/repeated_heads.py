"""Key-value heads of which there are fewer than ranks: each is repeated, so that every rank has one of its own."""

from typing import Any

from torch import Tensor, nn

from scoring.tensor_parallel.joint_norms import is_joint


def repeat_heads(model: Any, degree: int) -> None:
    """Make a model's key-value heads as many as ranks, in place; it answers as before.

    Nothing changes if there are enough. The attention's keys and values have to be products of their own.
    """
    config = model.config.get_text_config(decoder=True)
    heads = int(getattr(config, "num_key_value_heads", 0) or degree)
    if heads >= degree:
        return
    for module in model.modules():
        keys, values = (getattr(module, name, None) for name in ("k_proj", "v_proj"))
        if isinstance(keys, nn.Linear) and isinstance(values, nn.Linear):
            if is_joint(module):
                module.k_norm.weight.data = _repeated(module.k_norm.weight.data, heads, degree // heads)
            for product in (keys, values):
                _repeat(product, heads, degree // heads)
            module.num_key_value_groups = config.num_attention_heads // degree
    config.num_key_value_heads = degree


def _repeat(product: nn.Linear, heads: int, times: int) -> None:
    product.weight.data = _repeated(product.weight.data, heads, times)
    if product.bias is not None:
        product.bias.data = _repeated(product.bias.data, heads, times)
    product.out_features *= times


def _repeated(rows: Tensor, heads: int, times: int) -> Tensor:
    """Rows of heads, those of each head so many times."""
    by_head = rows.view(heads, len(rows) // heads, *rows.shape[1:])
    return by_head.repeat_interleave(times, 0).flatten(0, 1)
