"""Size of a decoder's KV cache: on a GPU what its memory has room for, beside the weights and a step's own memory."""

import torch

from scoring.decoder.block_pool import BLOCK, blocks_of
from scoring.decoder.chunk_size import PARTS, longest_chunk, row_bytes, span_bytes
from scoring.decoder.drafts import SIZES
from scoring.decoder.layer_groups import LayerGroups
from scoring.decoder.model import CachedModel
from scoring.limits.memory_shares import LEAST_CACHE_TOKENS, RESERVE_BYTES, WEIGHTS_AND_SLOTS


def pool_blocks(
    model: CachedModel, groups: LayerGroups, slots: int, max_length: int, tokens: int, share: float, item: int = 0
) -> int:
    """Number of blocks for slots of up to `max_length` tokens: no more than they can fill, nor than `tokens` if given.

    As many for each group of layers, if none gives any up. `item`: bytes of a number in the cache; 0: as in the model.

    On a GPU also no more than a share of its memory (0: the default) leaves, and on all ranks as many as on the
    smallest; raises torch.OutOfMemoryError if that is too little to serve.
    """
    most = slots * blocks_of(max_length) * groups.count
    if tokens:
        most = min(most, blocks_of(tokens) * groups.count)
    if model.device.type != "cuda":
        return most
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(model.device)
    room = memory_room(free, total, share or WEIGHTS_AND_SLOTS) - scratch_bytes(model, slots, max_length)
    fitting = min(most, room // block_bytes(model, groups, item) - 1)  # one is scratch
    if model.team is not None:
        fitting = model.team.least(fitting)
    whole = fitting // groups.count  # of each group
    if whole < min(most // groups.count, blocks_of(min(max_length, LEAST_CACHE_TOKENS))):
        raise torch.OutOfMemoryError(f"the KV cache would have room for {max(whole, 0) * BLOCK} tokens")
    return whole * groups.count


def memory_room(free: int, total: int, share: float) -> int:
    """Bytes that a KV cache may take of a device with these free and total bytes, of which a share may be in use."""
    return min(free - RESERVE_BYTES, int(share * total) - (total - free))


def block_bytes(model: CachedModel, groups: LayerGroups, item: int = 0) -> int:
    """Size of one block's keys and values in all layers of a group, of numbers of `item` bytes; 0: as in the model."""
    return 2 * groups.size * BLOCK * (item or model.dtype.itemsize)


def scratch_bytes(model: CachedModel, slots: int, length: int) -> int:
    """Upper bound of the memory that steps of `slots` slots and chunks of prompts take beside the cache.

    A step computes on copies of its rows' recurrent states.
    """
    size = model.dtype.itemsize
    rows = slots + SIZES[-1]  # those of steps with drafts are beside the others
    logits = rows * model.vocabulary * (9 + 2 * size) + PARTS * model.vocabulary * size
    rows_bytes = (longest_chunk(model) + rows) * row_bytes(model)
    return logits + rows_bytes + span_bytes(model, length) + slots * model.slot_bytes
