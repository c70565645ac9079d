"""Rotary factors of Llama 3.1 and of Phi-3, which GGUF has as tensors and not as the rule they come from."""

from __future__ import annotations

import math
from typing import Any

from mii_azure.errors import ConfigMissing, NotAvailable
from mii_azure.model.gguf_header import ORIGINAL, Entry, Header, numbers

#: What every Llama that scales so has; only the factor differs.
_RULE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def llama3_rotary(header: Header, tensor: Entry, parameters: dict[str, Any]) -> dict[str, Any]:
    """Rotary parameters, as config.json has them, whose factors are a GGUF file's `rope_freqs.weight`.

    Raises NotAvailable for factors that are not by Llama 3's rule.
    """
    stored = numbers(tensor)
    factor = max(stored)
    if factor == 1.0:
        return parameters
    expected = _factors(len(stored), float(parameters["rope_theta"]), factor)
    if not all(math.isclose(one, other, rel_tol=1e-3) for one, other in zip(stored, expected, strict=True)):
        raise NotAvailable(f"{header.file.name} scales its positions by factors that are not Llama 3's.", ORIGINAL)
    return parameters | {"rope_type": "llama3", "factor": factor} | _RULE


def _factors(count: int, base: float, factor: float) -> list[float]:
    """Divisors of each frequency by Llama 3's rule."""
    low, high, original = _RULE.values()
    factors = []
    for index in range(count):
        turns = original / (2 * math.pi * base ** (index / count))  # in the original context
        smooth = min(1.0, max(0.0, (turns - low) / (high - low)))
        factors.append(1 / ((1 - smooth) / factor + smooth))
    return factors


def longrope(header: Header, long: Entry, short: Entry) -> dict[str, Any]:
    """Rotary parameters of Phi-3's long contexts; raises ConfigMissing without the context it was trained with."""
    told, original = header.get("context_length"), header.get("rope.scaling.original_context_length")
    if not isinstance(told, int) or not isinstance(original, int) or not original > 1:
        raise ConfigMissing(
            f"{header.file.name} has factors of positions, and no context that they begin at.",
            ORIGINAL,
            str(header.file),
        )
    scale = told / original
    usual = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
    attention = header.get("rope.scaling.attn_factor")
    same = attention is None or math.isclose(attention, usual, rel_tol=1e-4)
    rule = {"rope_type": "longrope", "original_max_position_embeddings": original}
    rule |= {"long_factor": numbers(long), "short_factor": numbers(short)}
    return rule if same else rule | {"attention_factor": attention}
