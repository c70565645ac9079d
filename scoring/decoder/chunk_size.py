"""Size of a chunk of prompts on a GPU, and of the memory that it takes beside the cache."""

import torch

from scoring.decoder.layer_groups import STEP_TOKENS
from scoring.decoder.model import Attention, CachedModel, shapes_of

#: Most tokens of a chunk: GPUs are as fast per token at 8,192 as they get. Least, however short memory is.
LONGEST_CHUNK, LEAST_CHUNK = STEP_TOKENS["cuda"], 1024
#: Sizes of chunks that get a graph, as far as memory allows; a chunk is padded up to the next.
CHUNKS = [16, 32, 64, *range(128, 1024, 128)]
CHUNKS += [*range(1024, 2048, 256), *range(2048, 4096, 512), *range(4096, LONGEST_CHUNK + 1, 1024)]
PARTS = 64  # slots whose prompts a chunk may hold
#: Keys of a prompt's prefix that cuDNN takes at once, by the least queries of a part for which that is worth its
#: launches beside others like it; so there is one plan of cuDNN's for each and each number of queries. What keys are
#: left, our kernel takes. Of a single such part they would keep too few programs busy: all whole spans are cuDNN's.
SPANS = {32_768: 256, 8192: 4096}
_MOST_SPANS = 8
Span = tuple[int, int]  # first key, keys
_CHUNK_SHARE = 0.02  # of a GPU's memory, that a chunk's rows may take


def longest_chunk(model: CachedModel) -> int:
    """Tokens of the longest chunk of prompts for which there is memory: a power of two."""
    if model.device.type != "cuda":
        return LEAST_CHUNK
    room = _CHUNK_SHARE * torch.cuda.mem_get_info(model.device)[1]
    rows = LONGEST_CHUNK
    while rows > LEAST_CHUNK and rows * row_bytes(model) > room:
        rows //= 2
    return rows


def chunk_within(most: int, left: int, position: int) -> int:
    """Size of the next chunk, at most `most` of the `left` tokens of a part; a part that is cut has no padding.

    Where keys before its position may be in spans, those are not padded either: their queries are powers of two.
    """
    if left <= most:
        return left
    most = max(most, CHUNKS[0])
    return 1 << most.bit_length() - 1 if position >= min(SPANS) else max(size for size in CHUNKS if size <= most)


def row_bytes(model: CachedModel) -> int:
    """Bytes that a token of a step or chunk takes."""
    size = model.dtype.itemsize
    heads = max(4 * (own.queries + own.keys) * own.width for own in shapes_of(model))
    return 4 * model.hidden + size * (2 * model.hidden + model.scratch_width + heads)


def takes_spans(model: CachedModel) -> bool:
    """Return True if cuDNN takes a model's heads, which are alike in all layers, and is faster."""
    if model.device.type != "cuda" or model.dtype.itemsize != 2 or {own.width for own in shapes_of(model)} - {64, 128}:
        return False
    if len(shapes_of(model)) > 1:
        return False
    plain = any(is_plain(layer.attention) for layer in model.layers)
    return model.alibi is None and plain and torch.cuda.get_device_capability(model.device) >= (9, 0)


def is_plain(own: Attention) -> bool:
    """Return True for a layer whose attention sees all keys, by plain scores."""
    return not own.window and not own.cap and own.sinks is None


def spans_of(model: CachedModel, length: int, count: int, position: int, alone: bool = False) -> list[Span]:
    """Spans of keys before a part of `count` tokens that are left to cuDNN, in slots of `length` tokens.

    `alone`: the part is the only one of its chunk with a long prefix.
    """
    found: list[Span] = []
    if length <= min(SPANS) or not takes_spans(model):
        return found
    first = 0
    for keys, least in SPANS.items():
        while (alone or count >= least) and first + keys <= position and len(found) < _MOST_SPANS:
            found.append((first, keys))
            first += keys
    return found


def most_spans(model: CachedModel, length: int) -> int:
    """Most spans that a part has, in slots of `length` tokens."""
    return max((len(spans_of(model, length, LONGEST_CHUNK, at)) for at in range(0, length, min(SPANS))), default=0)


def span_bytes(model: CachedModel, length: int) -> int:
    """Bytes of a span's keys and values, gathered, and of the results of all spans."""
    spans, size = most_spans(model, length), model.dtype.itemsize
    results = longest_chunk(model) * model.heads * (4 + size * model.head_dim)
    whole = 2 * gathered_keys(model, length) * model.kv_heads * model.head_dim * size
    return whole + (spans and spans + 1) * results  # one more is being copied


def gathered_keys(model: CachedModel, length: int) -> int:
    """Keys of the largest span of a part."""
    return max((keys for _, keys in spans_of(model, length, LONGEST_CHUNK, length - 1)), default=0)
