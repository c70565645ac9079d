"""States that recurrent layers keep beside keys and values, or in place of them: one row a slot.

Convolutions, state spaces and linear attention keep as much however long a sequence is. A forward is handed its
sequences' rows in a cache of transformers' own layers, which its modules read and update as they do in `generate`; the
rows are written back once all of it is computed, so that whatever fails leaves every slot as it was. Such layers mix
the tokens of a sequence, so that each sequence is a row of the batch, and none is padded. Which rows a step of a GPU
reads and writes is told on the device, so that a graph holds all of it.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, LinearAttentionLayer

from scoring.passes.families import GENERIC_DECODE

_CHUNKS = (16, 64)  # tokens of the shortest and the longest chunk of a scan in plain torch
#: Kinds of layers: with states alone, with keys and values alone, with both, or with nothing.
LayerKind = Literal["recurrent", "attention", "both", "none"]
#: Kinds by the layers of transformers' own cache.
KINDS: dict[str, LayerKind] = {
    "DummyLayer": "none",
    "DynamicLayer": "attention",
    "DynamicSlidingWindowLayer": "attention",
    "LinearAttentionLayer": "recurrent",
    "LinearAttentionAndFullAttentionLayer": "both",
    "LinearAttentionAndSlidingWindowAttentionLayer": "both",
}


class _Attending:
    """A layer's place for keys and values, which the listener of its attention keeps."""

    is_compileable = False

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Return the new tokens' keys and values alone."""
        return keys, values


class _Recurrent(LinearAttentionLayer):  # type: ignore[misc,unused-ignore]
    """A layer's states for one forward, which no graph reads at an address of theirs."""

    def update_recurrent_state(self, recurrent_states: Tensor, state_idx: int = 0, **_: Any) -> Tensor:
        """Take the new states as they are, where transformers' own layer copies them."""
        if not self.is_recurrent_states_initialized[state_idx]:
            self.lazy_initialization(recurrent_states=recurrent_states, state_idx=state_idx)
        self.recurrent_states[state_idx] = taken = recurrent_states.to(self.recurrent_states[state_idx].dtype)
        return taken


class _Both(_Recurrent, _Attending):
    """A layer's states, and its place for keys and values."""


class SlotCache(Cache):  # type: ignore[misc,unused-ignore]
    """Cache of one forward: states of its sequences, and no keys and values."""

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Raise: sequences of one forward differ in their lengths, which their positions tell."""
        raise ValueError("it takes one length for all sequences of a batch from its cache")


@dataclass(frozen=True)
class LayerState:
    """One state of a layer: which it is of its layer's, its shape for one sequence, and its type."""

    layer: int
    convolution: bool
    index: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of a sequence's."""
        return prod(self.shape) * self.dtype.itemsize


def cache_name(model: Any) -> str:
    """Name that a model's forward has for a cache; empty if none is known."""
    told = inspect.signature(type(model).forward).parameters
    return next((name for name in ("past_key_values", "cache_params") if name in told), "")


def takes_positions(model: Any) -> bool:
    """True if a model's forward takes positions."""
    return "position_ids" in inspect.signature(type(model).forward).parameters


def keeps_states(config: Any) -> bool:
    """True if layers of a model of this configuration keep recurrent states in transformers' own cache."""
    if config.model_type in GENERIC_DECODE.refused:  # whose states are in a cache of their own, or with the modules
        return False
    try:
        layers = DynamicCache(config=config.get_text_config(decoder=True)).layers
    except Exception:  # it has a cache of its own, or none
        return False
    return any(isinstance(layer, LinearAttentionLayer) for layer in layers)


def kinds_of(layers: Sequence[Any]) -> list[LayerKind]:
    """Kinds of the layers of transformers' own cache; raises KeyError for one that keeps something else."""
    return [KINDS[type(layer).__name__] for layer in layers]


class SlotStates:
    """States of every layer, [slots + 1, ...] each: one row a slot, and a last one for rows that pad a batch.

    `pieces`: the modules take up a sequence's states where a prompt goes on, so that it may come in pieces.
    """

    def __init__(self, layers: Sequence[Any], slots: int, device: torch.device) -> None:
        self.kinds = kinds_of(layers)
        self.numbers = [getattr(layer, "number_of_states", 0) for layer in layers]
        self.slots, self.device, self.pieces = slots, device, True
        self.states: list[LayerState] = []
        self.rows: list[Tensor] = []

    def allocate(self, cache: SlotCache) -> None:
        """Make room for states such as those that a first forward has left in its cache."""
        self.states = [
            LayerState(layer, convolution, index, tuple(held.shape[1:]), held.dtype)
            for layer, convolution, index, held in _held(cache)
        ]
        self.rows = [
            torch.zeros((self.slots + 1, *state.shape), dtype=state.dtype, device=self.device) for state in self.states
        ]

    @property
    def slot_bytes(self) -> int:
        """Bytes of a slot's states."""
        return sum(state.nbytes for state in self.states)

    @property
    def told(self) -> str:
        """Size of the states, and a list of things that such sequences do without."""
        size = (
            f"{self.slot_bytes / 2**20:.1f} MiB" if self.slot_bytes >= 2**19 else f"{self.slot_bytes / 2**10:.1f} KiB"
        )
        whole = "" if self.pieces else ", and a prompt is computed in one piece, for which streams wait"
        return f"recurrent states of {size} a slot: no prefix is reused, nothing is drafted{whole}"

    @torch.inference_mode()
    def cache(self, slots: Tensor | None) -> SlotCache:
        """Cache for a forward of these slots [B], whose states are copies; without, of sequences that begin."""
        made = [_layer(kind, number) for kind, number in zip(self.kinds, self.numbers, strict=True)]
        if slots is not None:
            run = isinstance(place := _place(slots), slice)
            for state, rows in zip(self.states, self.rows, strict=True):
                _hand(made[state.layer], state, rows[place].clone() if run else rows.index_select(0, slots))
        return SlotCache(layers=made)

    @torch.inference_mode()
    def keep(self, slots: Tensor, cache: SlotCache) -> None:
        """Write the states that a forward has left in its cache to slots [B], of which the last alone may repeat."""
        left = {(layer, convolution, index): held for layer, convolution, index, held in _held(cache)}
        run = isinstance(place := _place(slots), slice)
        for state, rows in zip(self.states, self.rows, strict=True):
            held = left[state.layer, state.convolution, state.index].to(rows.dtype)
            rows[place].copy_(held) if run else rows.index_copy_(0, slots, held)


def in_pieces(states: SlotStates | None) -> bool:
    """True if prompts may come in several pieces: without recurrent states too."""
    return states is None or states.pieces


def scans_of(model: nn.Module) -> list[nn.Module]:
    """Modules that compute a prompt in chunks of a size of theirs, and pad it to whole ones."""
    return [each for each in model.modules() if isinstance(getattr(each, "chunk_size", None), int)]


@contextmanager
def in_chunks(scans: Sequence[Any], tokens: int) -> Iterator[None]:
    """Have modules compute so many tokens in shorter chunks: the same sums, in less time and memory in plain torch.

    Their own 256 are for kernels of other packages; a short prompt is padded to them, and time grows with their length.
    """
    before = [each.chunk_size for each in scans]
    size = max(_CHUNKS[0], min(_CHUNKS[1], 1 << (tokens - 1).bit_length()))
    try:
        for each, own in zip(scans, before, strict=True):
            each.chunk_size = min(own, size)
        yield
    finally:
        for each, own in zip(scans, before, strict=True):
            each.chunk_size = own


def _place(slots: Tensor) -> slice | Tensor:
    """Slots as a slice if they follow each other, since a slice is read and written in a third of the time.

    A GPU's are not looked at, for which the host would wait: a graph finds there those of its next step.
    """
    if slots.device.type != "cpu":
        return slots
    first, count = int(slots[0]), len(slots)
    return slice(first, first + count) if slots.tolist() == [*range(first, first + count)] else slots


def _layer(kind: LayerKind, states: int) -> Any:
    """Layer of a cache without any state yet."""
    if kind in ("recurrent", "both"):
        return (_Recurrent if kind == "recurrent" else _Both)(number_of_states=states)
    return _Attending()


def _hand(layer: LinearAttentionLayer, state: LayerState, held: Tensor) -> None:
    """Give a layer of a cache the states of a forward's sequences."""
    index = state.index
    layer.device, layer.dtype = held.device, held.dtype
    layer.has_previous_state[index] = True
    if state.convolution:
        layer.conv_states[index], layer.is_conv_states_initialized[index] = held, True
        layer.conv_kernel_size[index] = held.shape[-1]
    else:
        layer.recurrent_states[index], layer.is_recurrent_states_initialized[index] = held, True


def _held(cache: SlotCache) -> Iterator[tuple[int, bool, int, Tensor]]:
    """States in a cache: of which layer, whether a convolution's, which of them, and the tensor [B, ...]."""
    for number, layer in enumerate(cache.layers):
        if not isinstance(layer, LinearAttentionLayer):
            continue
        for convolution, states in ((True, layer.conv_states), (False, layer.recurrent_states)):
            for index, held in states.items():
                if held is not None:
                    yield number, convolution, index, held
