"""Adapters served beside one base: their low-rank products, grouped so that rows of several share a forward.

Rows of a forward are sorted into groups, one an adapter; for each product of the base two batched products then add
what each group's adapter adds. Rows of the base are in no group and keep the base's numbers to the last bit.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from scoring.errors import AdapterNotServed
from scoring.lora.stacks import Gathered, LowRankStack, Pair, Parts, StaticLowRank, gathered, laid_out

_KEPT = 8  # groupings that are kept: steps repeat the one before until a row joins or leaves


class Groups:
    """Rows of a forward by adapter, `which`: `key` names the adapters in order, and each of them has as many places.

    `rows` [groups * places] are the rows in them; a place too many repeats a row, and is `empty` [groups, places, 1].
    """

    def __init__(self, which: Sequence[int], device: torch.device) -> None:
        found: dict[int, list[int]] = {}
        for row, adapter in enumerate(which):
            if adapter >= 0:
                found.setdefault(adapter, []).append(row)
        self.key = tuple(sorted(found))
        self.which = tuple(which)
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
        self.bank = bank
        self._parts = parts
        self._alone: dict[int, Gathered | None] = {}  # by place
        self._active: tuple[tuple[int, ...], Gathered | None] = ((), None)
        self._laid_out: WeakSet[StaticLowRank] = WeakSet()
        bank.products.add(self)

    @cached_property
    def static(self) -> StaticLowRank:
        """The matrices as kernels take them, laid out once."""
        return self.lay_out()

    def lay_out(self) -> StaticLowRank:
        """Lay the matrices out as kernels take them; they follow what changes for as long as they are held."""
        made = laid_out(self._parts, len(self.bank.names), self.bank.room)
        self._laid_out.add(made)
        return made

    @property
    def spans(self) -> list[tuple[int, int]]:
        """First and last output of each of the modules."""
        return [(first, first + stack.outputs) for first, stack in self._parts]

    def renew(self, place: int) -> None:
        """Take what the stacks hold at a place from now on; no forward may use it meanwhile."""
        self._alone.pop(place, None)
        if place in self._active[0]:
            self._active = (), None
        for each in self._laid_out:
            each.put(self._parts, place)

    def add(self, x: Tensor, out: Tensor) -> Tensor:
        """Add to outputs [..., N] what the adapters of its rows make of inputs [..., K], in place."""
        if self.bank.launch is not None:
            out = out.contiguous()
            self.bank.launch(self, x.reshape(-1, x.shape[-1]).contiguous(), out.view(-1, out.shape[-1]))
            return out
        groups, only = self.bank.groups, self.bank.only
        if groups is None and only < 0:
            return out
        rows, out = x.reshape(-1, x.shape[-1]), out.contiguous()
        flat = out.view(-1, out.shape[-1])
        if groups is not None and len(rows) != groups.total:
            raise ValueError(f"a product has {len(rows)} rows of a forward of {groups.total}: adapters cannot be told")
        own = self._of((only,) if groups is None else groups.key)
        if own is None:
            return out
        if groups is None:
            self._put(flat, (rows @ own.down[0].T)[None], own, None)
            return out
        chosen = rows if groups.in_order else rows[groups.rows]
        hidden = torch.bmm(chosen.view(len(groups.key), groups.places, -1), own.down.mT)
        if groups.empty is not None:
            hidden.masked_fill_(groups.empty, 0)
        self._put(flat, hidden, own, None if groups.in_order else groups.rows)
        return out

    def _put(self, flat: Tensor, hidden: Tensor, own: Gathered, rows: Tensor | None) -> None:
        """Add hidden [adapters, places, r] times the second matrices to the outputs of these rows, or of all."""
        first = 0
        for where, up in own.ups:
            added = (hidden[..., first : first + up.shape[-2]] @ up).reshape(-1, up.shape[-1])
            first += up.shape[-2]
            if rows is None:
                flat[:, where] += added
            else:
                flat[:, where].index_add_(0, rows, added)

    def _of(self, key: tuple[int, ...]) -> Gathered | None:
        """Matrices of these adapters: those of the last forward again, if they are the same."""
        if len(key) == 1:
            if key[0] not in self._alone:
                self._alone[key[0]] = gathered(self._parts, key)
            return self._alone[key[0]]
        if self._active[0] != key:
            self._active = key, gathered(self._parts, key)
        return self._active[1]


@dataclass(eq=False)
class AdapterBank:
    """Adapters of a loaded model; hooks on its modules add to their outputs wherever rows have adapters.

    An adapter has a place, whose number its rows are known by. With `room` for a rank, places may be empty, and
    adapters come and go between forwards.
    """

    names: list[str]  # by place; empty where none is
    stacks: dict[nn.Module, LowRankStack]
    room: int = 0  # largest rank of adapters that come later; 0: none does
    groups: Groups | None = None  # of the forward that runs; None: its rows are all alike
    only: int = -1  # the one adapter of all rows then; -1: the base
    #: What adds to the outputs of a forward that a graph holds, whose rows' adapters are known on the device alone.
    launch: Callable[[GroupedLowRank, Tensor, Tensor], None] | None = None
    hooked: list[GroupedLowRank] = field(default_factory=list)  # products of the modules
    products: "WeakSet[GroupedLowRank]" = field(default_factory=WeakSet)  # these and a decoder's
    _known: dict[tuple[int, ...], Groups] = field(default_factory=dict)

    def attach(self) -> None:
        """Have the model's own modules add what the adapters of their rows do."""
        for module, stack in self.stacks.items():
            self.hooked.append(GroupedLowRank(self, [(0, stack)]))
            module.register_forward_hook(_Hook(self, self.hooked[-1]))

    def put(self, place: int, name: str, pairs: Mapping[nn.Module, Pair]) -> None:
        """Have an adapter, or none if `pairs` is empty, at a place that no row uses."""
        self.names[place] = ""
        for module, stack in self.stacks.items():
            stack.at.pop(place, None)
            if module in pairs:
                down, up = pairs[module]
                like = stack.like
                stack.at[place] = down.to(like.device, like.dtype), up.to(like.device, like.dtype)
        for product in self.products:
            product.renew(place)
        self.names[place] = name

    def leave(self, module: nn.Module) -> None:
        """Serve no adapter on a module, which none has a product of."""
        del self.stacks[module]
        for key, hook in list(module._forward_hooks.items()):
            if isinstance(hook, _Hook):
                del module._forward_hooks[key]
                self.hooked.remove(hook.product)

    @property
    def which(self) -> tuple[int, ...]:
        """Adapter of each row of the forward that runs; empty if none has one."""
        return () if self.groups is None else self.groups.which

    @property
    def bytes(self) -> int:
        """Bytes of memory that the adapters take."""
        return sum(each.nbytes for stack in self.stacks.values() for pair in stack.at.values() for each in pair)

    def index(self, name: str) -> int:
        """Place of an adapter; -1 for the base, whose name is empty. Raises AdapterNotServed for one that is gone."""
        if not name:
            return -1
        if name not in self.names:
            raise AdapterNotServed("The adapter was unloaded before the request was taken.", where="parameters.adapter")
        return self.names.index(name)

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
            self._known[which] = Groups(which, next(iter(self.stacks.values())).like.device)
        return self._known[which]


class _Hook:
    """Forward hook of a module, by which `bank_of` recognises a model with adapters."""

    def __init__(self, bank: AdapterBank, product: GroupedLowRank) -> None:
        self.bank = bank
        self.product = product

    def __call__(self, module: nn.Module, given: tuple[Any, ...], output: Tensor) -> Tensor | None:
        return self.product.add(given[0], output)


def bank_of(model: nn.Module) -> AdapterBank | None:
    """Adapters that a model's modules have hooks of; None without any."""
    for module in model.modules():
        for hook in module._forward_hooks.values():
            if isinstance(hook, _Hook):
                return hook.bank
    return None
