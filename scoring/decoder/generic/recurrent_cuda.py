"""Runs models with recurrent layers on a GPU: steps in graphs that read and write slots' states, prompts launched.

A graph of a step gathers its rows' states, runs the model's own modules for one token of each and writes the states
back; rows that pad it have the scratch slot's. A prompt's sequence is a row of a batch, not padded, so that no graph
holds it. Attention, where there is any, is this package's kernels', as in other models.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from scoring.decoder.chunk_size import SPANS
from scoring.decoder.decode_step import Launcher
from scoring.decoder.generic.cuda_backend import GenericCudaBackend, GenericPrefiller, GenericStep, paged_attention
from scoring.decoder.generic.recurrent import SlotCache, SlotStates
from scoring.decoder.generic.torch_backend import ONE_PIECE, alike_parts
from scoring.decoder.graphs import Graphs
from scoring.decoder.kv_cache import KVCache
from scoring.decoder.prefill import Part, Prefiller, runs_of
from scoring.decoder.prompt_attention import Run
from scoring.decoder.torch_attention import PromptAttention

_TOGETHER = 1 << 30  # bytes of states that prompts of one batch may leave
_COMPILED = (1, 15, 16)  # tokens of prompts for which Triton compiles kernels of their own


class RecurrentStep(GenericStep):
    """Launches one decode step, in which the rows' states are gathered and written back."""

    def forward(self, rows: int, far: bool = False) -> Tensor:
        self.far = far
        s, slots = self.state, self.buffers.slots[:rows].long()
        attend = paged_attention(self, rows)
        with self.adapting(rows):
            logits = self.model.forward_slots(slots, s.tokens[slots], s.lengths[slots].long(), attend)
        self.buffers.narrow[:rows].copy_(logits)
        return self.buffers.narrow


class RecurrentPrefiller(GenericPrefiller):
    """Launches prompts as a batch, a sequence a row."""

    def batch(self, sequences: int, rows: int, cache: SlotCache, runs: Sequence[Run] = ()) -> Tensor:
        """Logits [sequences, vocabulary] of the parts that `numbers` describes, all of one length, `rows` tokens."""
        self.runs = runs
        self.mark(rows)
        tokens, positions = (each[:rows].long().view(sequences, -1) for each in (self.tokens, self.positions))
        with self.adapting(rows):
            found: Tensor = self.model.forward_batch(tokens, positions, cache, paged_attention(self, rows))
        return found


class RecurrentCudaBackend(GenericCudaBackend):
    """`GenericCudaBackend` of a model whose layers keep recurrent states."""

    prefiller: RecurrentPrefiller

    def _launchers(self, model: Any, state: KVCache, pdl: bool) -> tuple[Launcher, Prefiller]:
        return RecurrentStep(model, state, state.slots, pdl=pdl), RecurrentPrefiller(model, state, pdl=pdl)

    @property
    def _states(self) -> SlotStates:
        assert self._model.recurrent is not None
        return self._model.recurrent

    def prefill(self, parts: Sequence[Part]) -> Tensor:
        """Append prompt tokens to slots; logits [parts, vocabulary] after the last of each.

        Raises ValueError for a part that goes on where the modules begin their states anew with each.
        """
        if any(position for _, position, _ in parts) and not self._states.pieces:
            raise ValueError(ONE_PIECE)
        self.settle()
        found, going = dict[int, Tensor](), []
        for numbers in self._batches(parts):
            some = [parts[number] for number in numbers]
            logits, slots, cache = self._batch(some)
            found.update(zip(numbers, logits, strict=True))
            if some[0][1]:  # tried again, it is to go on from the same states
                going.append((slots, cache))
            else:
                self._states.keep(slots, cache)
        for slots, cache in going:
            self._states.keep(slots, cache)
        return torch.stack([found[number] for number in range(len(parts))])

    def _batches(self, parts: Sequence[Part]) -> Iterator[list[int]]:
        """Numbers of parts that are computed together: alike, and within the memory of a chunk and of their states."""
        told, most = self.prefiller, max(1, _TOGETHER // max(1, self._states.slot_bytes))
        for alike in alike_parts((position, len(ids)) for _, position, ids in parts):
            fitting = max(1, told.longest // len(parts[alike[0]][2]))
            count = min(most, told.layout.parts, fitting)
            for first in range(0, len(alike), count):
                yield alike[first : first + count]

    def _batch(self, parts: Sequence[Part]) -> tuple[Tensor, Tensor, SlotCache]:
        """Enqueue parts of one length; logits after each, their slots, and the cache that has their states."""
        told, (_, begin, ids) = self.prefiller, parts[0]
        self._kind(slot for slot, _, _ in parts)
        if len(ids) > told.longest and not self._states.pieces:
            return self._whole(parts[0])
        pieces = [
            [(slot, position + first, tokens[first : first + told.longest]) for slot, position, tokens in parts]
            for first in range(0, len(ids), told.longest)
        ]
        runs = self._told(pieces[0])
        slots = told.ends[1][: len(parts)].long()
        cache = self._states.cache(slots if begin else None)
        for number, piece in enumerate(pieces):  # a prompt that is longer than a chunk goes on in its cache
            runs = self._told(piece) if number else runs
            logits = told.batch(len(parts), len(parts) * len(piece[0][2]), cache, runs)
        return logits.to(told.logits.dtype), slots, cache

    def _told(self, parts: Sequence[Part]) -> Sequence[Run]:
        """Tell the device of parts; their runs, if keys before some are in spans."""
        rows = sum(len(ids) for _, _, ids in parts)
        far = sum(position >= min(SPANS) for _, position, _ in parts) == 1
        spans = [self.prefiller.attending.spans(len(ids), position, far, rows) for _, position, ids in parts]
        self._tell(parts, spans if any(spans) else ())
        return runs_of(parts, spans) if any(spans) else ()

    def _whole(self, part: Part) -> tuple[Tensor, Tensor, SlotCache]:
        """Compute a prompt that is longer than a chunk and must not be cut; as `_batch` does, of one part."""
        slot, position, ids = part
        own = PromptAttention(self._model, self.prefiller.state, [(slot, position, len(ids))])
        cache = self._states.cache(None)
        slots, tokens = (torch.tensor(numbers, device=self._model.device) for numbers in ([slot], list(ids)))
        own.state.seen[slot, tokens], own.state.lengths[slot] = 1, position + len(ids)
        with nullcontext() if self._adapters is None else self._adapters.rows([(slot, len(ids))]):
            logits = self._model.forward_batch(tokens[None], own.positions[None], cache, own.attend)
        return logits.to(self.prefiller.logits.dtype), slots, cache

    def _enqueue(self, parts: Sequence[Part]) -> None:
        _, slots, cache = self._batch(parts)
        self._states.keep(slots, cache)

    def _compile(self) -> None:
        """Leave the layers as they are: a compiler would take their cache apart."""

    def _warm_prompts(self, graphs: Graphs) -> None:
        """Compile the kernels of prompts, which no graph holds."""
        for count in _COMPILED:
            self._enqueue([(self._scratch, 0, [0] * min(count, self.prefiller.state.max_length))])
