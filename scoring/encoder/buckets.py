"""Shapes for which an encoder's forward is captured: a batch is padded to the next of each."""

from typing import Any

from scoring.passes.families import POSITIONS_AFTER_PADDING

LENGTHS = (16, 32, 64, 96, 128, 192, 256, 320, 384, 448, 512)  # tokens
BATCHES = (1, 2, 4, 8, 16, 32)  # rows


def longest_input(config: Any) -> int:
    """Tokens that a config's position table holds, less RoBERTa's offset."""
    length = int(getattr(config, "max_position_embeddings", 0) or 512)
    if config.model_type in POSITIONS_AFTER_PADDING:
        length -= config.pad_token_id + 1
    return length
