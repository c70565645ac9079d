"""Stored tensors that quantising makes narrow: weights of products, recognised by name and shape alone."""

import re
from collections.abc import Iterable

from mii_azure.model.safetensors import FLOAT_NAMES, Tensor
from scoring.quantization.layout import KINDS, Made, group_for, is_made, parts_of

LEFT_OUT = "Leave out --quantise."  # the remedy if there is nothing to quantise
_TABLES = re.compile(
    r"(^|\.)(\w*_embeddings|embed_(tokens|positions|in|tokens_per_layer)|wte|wpe|shared|relative_attention_bias)\.weight$"
)
# Outputs over the vocabulary, which are separate products only if they are not tied to the input table.
_OUTPUTS = re.compile(r"(^|\.)(lm_head|embed_out)\.weight$")
# Heads of encoders: small, and the last to lose accuracy.
_HEADS = re.compile(
    r"(^|\.)(cls|classifier|classification_head|pre_classifier|qa_outputs|score|(lm_)?predictions|lm_head\.\w+"
    r"|generator_\w+|discriminator_\w+|vocab_\w+)\."
)


def is_product(tensor: Tensor, tied: bool) -> bool:
    """True if a stored tensor is the weight [N, K] of a product in the model's body, or its own output matrix."""
    if len(tensor.shape) != 2 or tensor.dtype not in FLOAT_NAMES or not tensor.name.endswith(".weight"):
        return False
    if _TABLES.search(tensor.name) or _HEADS.search(tensor.name):
        return False
    return not (tied and _OUTPUTS.search(tensor.name))


def narrow_bytes(tensors: Iterable[Tensor], file_bytes: int, tied: bool) -> dict[str, int]:
    """Bytes of the weight files once their products are of each kind, in the form of `scoring.quantization.layout`."""
    found = [tensor for tensor in tensors if is_product(tensor, tied)]
    group = group_for(tensor.shape[1] for tensor in found)
    return {kind: file_bytes - sum(_saved(kind, each, group) for each in found) for kind in KINDS if found}


def _saved(kind: Made, tensor: Tensor, group: int) -> int:
    rows, columns = tensor.shape
    if not is_made(kind, tensor.name, columns, group):
        return 0
    return tensor.bytes - sum(Tensor(*part).bytes for part in parts_of(kind, rows, columns, group))
