"""Rotary factors of Llama 3.1 and later in GGUF, which has them as a tensor and not as the rule they come from."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from mii_azure.errors import NotAvailable

#: What every Llama that scales so has; only the factor differs.
_RULE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def llama3_rotary(file: Path, tensor: Any, parameters: dict[str, Any]) -> dict[str, Any]:
    """Rotary parameters, as config.json has them, whose factors are a GGUF file's `rope_freqs.weight`.

    Raises NotAvailable for factors that are not by Llama 3's rule.
    """
    stored = [float(each) for each in tensor.data.flatten()]
    factor = max(stored)
    if factor == 1.0:
        return parameters
    expected = _factors(len(stored), float(parameters["rope_theta"]), factor)
    if not all(math.isclose(one, other, rel_tol=1e-3) for one, other in zip(stored, expected, strict=True)):
        raise NotAvailable(
            f"{file.name} scales its positions by factors that are not Llama 3's.",
            "Give the model that it was made from, as a Hugging Face folder or hub id.",
        )
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
