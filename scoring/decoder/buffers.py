"""Scratch memory of decode steps and prompt chunks."""

from dataclasses import dataclass

import torch
from torch import Tensor

from scoring.decoder.model import DecoderModel, shapes_of


@dataclass
class Buffers:
    """Scratch tensors for steps of up to `rows` rows, shared by all batch sizes: one step runs at a time."""

    slots: Tensor  # [rows] int32, the slot of each row
    x: Tensor  # [rows, E] float32, the residual stream
    other: Tensor  # the same, in turn with x where kernels add to it what others have yet to read
    normed: Tensor  # [rows, E]
    qkv: Tensor  # [rows, (heads + 2 kv_heads) * D] of the layer with the most; others have theirs packed in it
    squares: Tensor  # [rows, 2] float32, their sums over a row's queries, and over its keys
    q: Tensor  # [rows, heads * D], likewise
    attended: Tensor  # [rows, heads * D], likewise
    y: Tensor  # [rows, E]
    up: Tensor  # [rows, up outputs]
    inner: Tensor  # [rows, F]
    logits: Tensor  # [rows, vocabulary] float32
    narrow: Tensor  # [rows, vocabulary] in the model's dtype: logits as cuBLAS writes them
    scores: Tensor  # [rows, vocabulary] float32
    best: Tensor
    where: Tensor
    peaks: Tensor  # [rows, blocks] of logits
    masses: Tensor
    near: Tensor
    kept: Tensor  # [rows, gathered] scores
    places: Tensor
    out: Tensor  # [rows] int64, the tokens
    part: Tensor
    stats: Tensor
    arrived: Tensor


def allocate(model: DecoderModel, rows: int, picked: int, parts: tuple[int, int], chunks: int, blocks: int,
             gathered: int) -> Buffers:  # fmt: skip
    """Allocate buffers for `rows` rows, of which `picked` get logits.

    `parts`: numbers of the partial results of attention that is split over programs, and of their statistics; `chunks`
    programs scan a row of logits, each of so many `blocks`; `gathered` tokens are kept for sampling.
    """
    (up, inner), shapes = model.widths, shapes_of(model)

    def empty(*shape: int, dtype: torch.dtype = model.dtype) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=model.device)

    f32, width = torch.float32, max(own.queries * own.width for own in shapes)
    return Buffers(
        slots=empty(rows, dtype=torch.int32),
        x=empty(rows, model.hidden, dtype=f32),
        other=empty(rows, model.hidden, dtype=f32),
        normed=empty(rows, model.hidden),
        qkv=empty(rows, max(own.product for own in shapes)),
        squares=empty(rows, 2, dtype=f32),
        q=empty(rows, width),
        attended=empty(rows, width),
        y=empty(rows, model.hidden),
        up=empty(rows, up),
        inner=empty(rows, inner),
        logits=empty(picked, model.vocabulary, dtype=f32),
        narrow=empty(picked, model.vocabulary),
        scores=empty(picked, model.vocabulary, dtype=f32),
        best=empty(picked, chunks, dtype=f32),
        where=empty(picked, chunks, dtype=torch.int32),
        peaks=empty(picked, chunks * blocks, dtype=f32),
        masses=empty(picked, chunks * blocks, dtype=f32),
        near=empty(picked, chunks * blocks, dtype=torch.int32),
        kept=empty(picked, gathered, dtype=f32),
        places=empty(picked, gathered, dtype=torch.int32),
        out=empty(picked, dtype=torch.int64),
        part=empty(parts[0], dtype=f32),
        stats=empty(parts[1], dtype=f32),
        arrived=empty(picked * max(own.keys for own in shapes), dtype=torch.int32),
    )


def packed(buffer: Tensor, rows: int, width: int) -> Tensor:
    """View of the first rows of a buffer, packed at this width."""
    return buffer.view(-1)[: rows * width].view(rows, width)
