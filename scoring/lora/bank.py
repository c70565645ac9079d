"""Adapters served beside one base: their low-rank products, grouped so that rows of several share a forward.

Rows of a forward are sorted into groups, one an adapter; for each product of the base two batched products then add
what each group's adapter adds. Rows of the base are in no group and keep the base's numbers to the last bit.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from scoring.lora.stacks import LowRankStack, Parts, StaticLowRank, laid_out, packed

_KEPT = 8  # groupings that are kept: steps repeat the one before until a row joins or leaves


class Groups:
    """Rows of a forward by adapter: `key` names the adapters in order, and each of them has as many places.

    `rows` [groups * places] are the rows in them; a place too many repeats a row, and is `empty` [groups, places, 1].
    """

    def __init__(self, which: Sequence[int], device: torch.device) -> None:
        found: dict[int, list[int]] = {}
        for row, adapter in enumerate(which):
            if adapter >= 0:
                found.setdefault(adapter, []).append(row)
        self.key = tuple(sorted(found))
        self.total = len(which)
        self.places = max(len(rows) for rows in found.values())
        padded = [row for each in self.key for row in _padded(found[each], self.places)]
        self.rows = torch.tensor(padded, device=device)
        self.in_order = padded == list(range(self.total))
        counts = torch.tensor([len(found[each]) for each in self.key], device=device)
        empty = torch.arange(self.places, device=device) >= counts[:, None]
        self.empty = empty[..., None] if bool(empty.any()) else None


def _padded(rows: list[int], length: int) -> list[int]:
    return rows + rows[:1] * (length - len(rows))


class GroupedLowRank:
    """Low-rank products beside one product of the base, whose outputs may be those of several modules in a row.

    `parts` are the stacks with the first output of each.
    """

    def __init__(self, bank: "AdapterBank", parts: Parts) -> None:
        self._bank = bank
        self._parts = parts
        self._down = packed([stack for _, stack in parts])
        self._ups = [stack.up for _, stack in parts]
        self._outputs = [slice(first, first + stack.up.shape[2]) for first, stack in parts]
        self._active: tuple[tuple[int, ...], Tensor, list[Tensor]] = ((), self._down, self._ups)

    @cached_property
    def static(self) -> StaticLowRank:
        """The matrices as kernels take them, laid out once."""
        return laid_out(self._parts)

    def add(self, x: Tensor, out: Tensor) -> Tensor:
        """Add to outputs [..., N] what the adapters of its rows make of inputs [..., K], in place."""
        if self._bank.launch is not None:
            out = out.contiguous()
            self._bank.launch(self, x.reshape(-1, x.shape[-1]).contiguous(), out.view(-1, out.shape[-1]))
            return out
        groups, only = self._bank.groups, self._bank.only
        if groups is None and only < 0:
            return out
        rows, out = x.reshape(-1, x.shape[-1]), out.contiguous()
        flat = out.view(-1, out.shape[-1])
        if groups is None:
            self._put(flat, rows @ self._down[only].T, [up[only] for up in self._ups], None)
            return out
        if len(rows) != groups.total:
            raise ValueError(f"a product has {len(rows)} rows of a forward of {groups.total}: adapters cannot be told")
        down, ups = self._of(groups.key)
        chosen = rows if groups.in_order else rows[groups.rows]
        hidden = torch.bmm(chosen.view(len(groups.key), groups.places, -1), down.mT)
        if groups.empty is not None:
            hidden.masked_fill_(groups.empty, 0)
        self._put(flat, hidden, ups, None if groups.in_order else groups.rows)
        return out

    def _put(self, flat: Tensor, hidden: Tensor, ups: Sequence[Tensor], rows: Tensor | None) -> None:
        """Add hidden [..., r] times `ups` [..., r, N] to the outputs of these rows, or of all in order."""
        first = 0
        for up, where in zip(ups, self._outputs, strict=True):
            added = (hidden[..., first : first + up.shape[-2]] @ up).reshape(-1, up.shape[-1])
            first += up.shape[-2]
            if rows is None:
                flat[:, where] += added
            else:
                flat[:, where].index_add_(0, rows, added)

    def _of(self, key: tuple[int, ...]) -> tuple[Tensor, list[Tensor]]:
        """Stacks of these adapters alone: those of the last forward again, if they are the same."""
        if key == tuple(range(len(self._down))):
            return self._down, self._ups
        if self._active[0] != key:
            chosen = torch.tensor(key, device=self._down.device)
            self._active = key, self._down[chosen], [up[chosen] for up in self._ups]
        return self._active[1:]


@dataclass
class AdapterBank:
    """Adapters of a loaded model; hooks on its modules add to their outputs wherever rows have adapters."""

    names: tuple[str, ...]
    stacks: Mapping[nn.Module, LowRankStack]
    groups: Groups | None = None  # of the forward that runs; None: its rows are all alike
    only: int = -1  # the one adapter of all rows then; -1: the base
    #: What adds to the outputs of a forward that a graph holds, whose rows' adapters are known on the device alone.
    launch: Callable[[GroupedLowRank, Tensor, Tensor], None] | None = None
    hooked: list[GroupedLowRank] = field(default_factory=list)  # products of the modules
    _known: dict[tuple[int, ...], Groups] = field(default_factory=dict)

    def attach(self) -> None:
        """Have the model's own modules add what the adapters of their rows do."""
        for module, stack in self.stacks.items():
            self.hooked.append(GroupedLowRank(self, [(0, stack)]))
            module.register_forward_hook(_Hook(self, self.hooked[-1]))

    @property
    def bytes(self) -> int:
        """Bytes of memory that the adapters take."""
        return sum(stack.down.nbytes + stack.up.nbytes for stack in self.stacks.values())

    def index(self, name: str) -> int:
        """Number of an adapter; -1 for the base, whose name is empty."""
        return self.names.index(name) if name else -1

    @contextmanager
    def rows(self, which: Sequence[int]) -> Iterator[None]:
        """Run a forward whose flat rows have these adapters, -1 for the base; also between forwards of `everywhere`."""
        before = self.groups, self.only
        self.groups, self.only = self._grouped(tuple(which)), -1
        try:
            yield
        finally:
            self.groups, self.only = before

    @contextmanager
    def everywhere(self, name: str) -> Iterator[None]:
        """Run forwards all of whose rows have one adapter; none for the base, whose name is empty."""
        before, self.only = self.only, self.index(name)
        try:
            yield
        finally:
            self.only = before

    def _grouped(self, which: tuple[int, ...]) -> Groups | None:
        if max(which, default=-1) < 0:
            return None
        if which not in self._known:
            if len(self._known) >= _KEPT:
                del self._known[next(iter(self._known))]
            self._known[which] = Groups(which, next(iter(self.stacks.values())).down.device)
        return self._known[which]


class _Hook:
    """Forward hook of a module, by which `bank_of` recognises a model with adapters."""

    def __init__(self, bank: AdapterBank, product: GroupedLowRank) -> None:
        self.bank = bank
        self._product = product

    def __call__(self, module: nn.Module, given: tuple[Any, ...], output: Tensor) -> Tensor | None:
        return self._product.add(given[0], output)


def bank_of(model: nn.Module) -> AdapterBank | None:
    """Adapters that a model's modules have hooks of; None without any."""
    for module in model.modules():
        for hook in module._forward_hooks.values():
            if isinstance(hook, _Hook):
                return hook.bank
    return None
