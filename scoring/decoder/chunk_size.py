"""Size of a chunk of prompts on a GPU, and of the memory that it takes beside the cache."""

import torch

from scoring.decoder.model import CachedModel

#: Most tokens of a chunk: GPUs are as fast per token at 8,192 as they get. Least, however short memory is.
LONGEST_CHUNK, LEAST_CHUNK = 8192, 1024
#: Sizes of chunks that get a graph, as far as memory allows; a chunk is padded up to the next.
CHUNKS = [16, 32, 64, *range(128, 1024, 128)]
CHUNKS += [*range(1024, 2048, 256), *range(2048, 4096, 512), *range(4096, LONGEST_CHUNK + 1, 1024)]
PARTS = 64  # slots whose prompts a chunk may hold
SPAN = 32_768  # keys of a prompt's prefix that cuDNN takes at once: one plan of its for each number of queries
SPANS = 4  # most of them; our kernel takes what keys there are beyond
_CHUNK_SHARE = 0.02  # of a GPU's memory, that a chunk's rows may take


def longest_chunk(form: CachedModel) -> int:
    """Tokens of the longest chunk of prompts for which there is memory: a power of two."""
    if form.device.type != "cuda":
        return LEAST_CHUNK
    room = _CHUNK_SHARE * torch.cuda.mem_get_info(form.device)[1]
    rows = LONGEST_CHUNK
    while rows > LEAST_CHUNK and rows * row_bytes(form) > room:
        rows //= 2
    return rows


def chunk_within(most: int, left: int) -> int:
    """Tokens of a chunk of at most so many, of a part that has so many left: without padding if it is to be cut."""
    return left if left <= most else max(size for size in CHUNKS if size <= max(most, CHUNKS[0]))


def row_bytes(form: CachedModel) -> int:
    """Bytes that a token of a step or chunk takes."""
    size = form.dtype.itemsize
    heads = 4 * (form.heads + form.kv_heads) * form.head_dim
    return 4 * form.hidden + size * (2 * form.hidden + form.scratch_width + heads)


def spans_of(form: CachedModel, length: int) -> int:
    """Number of spans of keys, of a prompt of up to `length` tokens, that are left to cuDNN; 0 where it cannot."""
    if form.device.type != "cuda" or form.dtype.itemsize != 2 or form.head_dim not in (64, 128):
        return 0
    served = any(not (own := layer.attention).window and not own.cap and own.sinks is None for layer in form.layers)
    if form.alibi is not None or not served or torch.cuda.get_device_capability(form.device) < (9, 0):
        return 0
    return min(SPANS, (length - 1) // SPAN)


def span_bytes(form: CachedModel, length: int) -> int:
    """Bytes of a span's keys and values, gathered, and of the results of all spans."""
    spans, size = spans_of(form, length), form.dtype.itemsize
    results = longest_chunk(form) * form.heads * (4 + size * form.head_dim)
    whole = 2 * SPAN * form.kv_heads * form.head_dim * size + results  # one more result is being copied
    return spans and whole + spans * results
