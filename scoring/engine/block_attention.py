"""BigBird's attention, full for short texts and of blocks for long ones, pinned to what a text alone would take.

transformers switches a model to full attention at its first short batch, and never back: what came before would change
the answer to a long text, and what shares its batch too.
"""

from typing import Any

_FULL, _BLOCKS = "original_full", "block_sparse"


def full_tokens(config: Any) -> int:
    """Most tokens of a batch that attention of blocks is too wide for; 0 for a model whose attention never changes."""
    if getattr(config, "attention_type", None) != _BLOCKS or not hasattr(config, "num_random_blocks"):
        return 0
    return int((5 + 2 * config.num_random_blocks) * config.block_size)


def pin(model: Any, tokens: int) -> None:
    """Set a model's attention as if a batch of `tokens` tokens were its first."""
    most = full_tokens(model.config)
    if not most:
        return
    wanted = _FULL if tokens <= most else _BLOCKS
    for module in model.modules():
        # Of nested modules the outermost sets the others.
        if hasattr(module, "set_attention_type") and module.attention_type != wanted:
            module.set_attention_type(wanted)
