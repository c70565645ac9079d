"""Adapters of a decoder's slots: beside the products of its model, and handed to forwards of the plain back ends."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from torch import Tensor, nn

from scoring.decoder.model import DecoderModel, Linear
from scoring.errors import LoadError
from scoring.lora.bank import AdapterBank, GroupedLowRank, bank_of
from scoring.lora.stacks import LowRankStack

Parts = Sequence[tuple[int, int, int]]  # slot, start position, number of tokens


class PlainBackend(Protocol):
    """A back end in plain torch."""

    def prefill(self, parts: Parts, tokens: Tensor) -> Tensor:
        """Append tokens; logits [parts, vocabulary] after the last of each part."""

    def speculate(self, parts: Parts, tokens: Tensor) -> Tensor:
        """Append tokens; logits [T, vocabulary] after every one."""

    def step(self, slots: Tensor, longest: int) -> Tensor:
        """Feed a token to each slot; logits [B, vocabulary]."""


class SlotAdapters:
    """Adapters of the sequences on slots; a slot without an entry has the base alone."""

    def __init__(self, hf_model: nn.Module, model: Any) -> None:
        self.bank = attach_adapters(hf_model, model)
        self.products: list[GroupedLowRank] = []  # that steps compute: of the decoder's form, or of the modules
        if isinstance(model, DecoderModel):
            self.products = [each.adapters for each in model.products() if each.adapters is not None]
        elif self.bank is not None:
            self.products = self.bank.hooked
        self.changed = False  # since the device was told
        self._of: dict[int, int] = {}

    def use(self, slot: int, name: str) -> None:
        """Have a slot's next sequence use an adapter, whose prefixes need a salt of their own; "" is the base."""
        self.changed = self._of.pop(slot, None) is not None or bool(name) or self.changed
        if name and self.bank is not None:
            self._of[slot] = self.bank.index(name)

    def any(self, slots: Iterable[int]) -> bool:
        """Return True if any of these slots has an adapter."""
        return bool(self._of) and any(slot in self._of for slot in slots)

    def around(self, backend: PlainBackend) -> PlainBackend:
        """The back end, whose forwards then know their rows' adapters; itself for a model without adapters."""
        return backend if self.bank is None else _Told(backend, self)

    def rows(self, rows: Iterable[tuple[int, int]]) -> AbstractContextManager[None]:
        """Tell the adapters of a forward's rows, of (slot, number of rows) each."""
        return nullcontext() if self.bank is None else self.bank.rows(self.of(rows))

    def of(self, rows: Iterable[tuple[int, int]]) -> list[int]:
        """Adapter of each row, by number, of (slot, number of rows); -1 is the base."""
        return [self._of.get(slot, -1) for slot, count in rows for _ in range(count)]


class _Told:
    """A back end whose forwards know the adapter of each of their rows."""

    def __init__(self, backend: PlainBackend, slots: SlotAdapters) -> None:
        self._backend, self._rows = backend, slots.rows

    def prefill(self, parts: Parts, tokens: Tensor) -> Tensor:
        with self._rows((slot, count) for slot, _, count in parts):
            return self._backend.prefill(parts, tokens)

    def speculate(self, parts: Parts, tokens: Tensor) -> Tensor:
        with self._rows((slot, count) for slot, _, count in parts):
            return self._backend.speculate(parts, tokens)

    def step(self, slots: Tensor, longest: int) -> Tensor:
        with self._rows((slot, 1) for slot in slots.tolist()):
            return self._backend.step(slots, longest)


def attach_adapters(hf_model: nn.Module, model: Any) -> AdapterBank | None:
    """Adapters of a model, if it has any, from now on beside the products of its form too.

    The generic tier runs the modules themselves, whose hooks do it. Raises LoadError for a module that is no product of
    the form.
    """
    bank = bank_of(hf_model)
    if bank is None or not isinstance(model, DecoderModel):
        return bank
    parts: dict[int, list[tuple[int, LowRankStack]]] = {}
    products = model.products()
    for module, stack in list(bank.stacks.items()):
        place = _place(module, products)
        if place is None and not stack.at:  # room for adapters to come, which then leave it out
            bank.leave(module)
        elif place is None:
            raise LoadError(
                f"An adapter changes a {type(module).__name__} that is no product of the static decoder.",
                "Serve it without the pass static_decode.",
            )
        else:
            parts.setdefault(place[0], []).append((place[1], stack))
    for number, own in parts.items():
        products[number].adapters = GroupedLowRank(bank, sorted(own, key=lambda part: part[0]))
    return bank


def _place(module: Any, products: list[Linear]) -> tuple[int, int] | None:
    """Number of the product whose memory a module's weight views, and the first of its outputs that are the module's.

    A product and the modules that it was fused from share their weights' memory, row after row. None without one.
    """
    at = module.weight.data_ptr()
    for number, product in enumerate(products):
        full = product.full
        offset = at - full.data_ptr()
        if 0 <= offset < full.nbytes:
            return number, offset // (full.shape[1] * full.element_size())
    return None
