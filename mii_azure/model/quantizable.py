"""Stored tensors that quantising makes int8: weights of products, recognised by name and shape alone."""

import re
from collections.abc import Iterable

from mii_azure.model.safetensors import FLOAT_NAMES, Tensor

LEFT_OUT = "Leave out --quantise."  # the remedy if there is nothing to quantise
_TABLES = re.compile(
    r"(^|\.)(\w*_embeddings|embed_(tokens|positions|in)|wte|wpe|shared|relative_attention_bias)\.weight$"
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


def int8_bytes(tensors: Iterable[Tensor], file_bytes: int, tied: bool) -> int:
    """Bytes of the weight files with int8 products, as `compressed_tensors` lays them out; 0 without any."""
    found = [tensor for tensor in tensors if is_product(tensor, tied)]
    return file_bytes - sum(tensor.bytes - _bytes(*tensor.shape) for tensor in found) if found else 0


def _bytes(rows: int, columns: int) -> int:
    """Bytes of an int8 product: four numbers per 32-bit word of a row, one scale per row, two 64-bit integers."""
    return rows * -(-columns // 4) * 4 + 4 * rows + 16
