"""Adapters that come and go while a model serves: read and checked by the caller's thread, put in place between steps.

A change is made whole or not at all. Requests that wait or run keep the adapter that they began with: its place is
taken by another only once none of them has it.
"""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from torch import nn

from scoring.config import AdapterRef
from scoring.engine.oom import is_out_of_memory
from scoring.engine.row import Row
from scoring.errors import AdapterRefused, Overloaded
from scoring.lora.bank import AdapterBank
from scoring.lora.loading import ReadAdapter, most_bytes, pairs_of, read_adapter
from scoring.lora.peft_folder import UnservedAdapter
from scoring.lora.served import AdapterChange, WantedAdapter, settled
from scoring.lora.stacks import Pair
from scoring.model.loaded import Loaded

logger = logging.getLogger("mii_azure.adapters")

T = TypeVar("T")

#: Matrices of an adapter by the modules beside which they stand.
Pairs = Mapping[nn.Module, Pair]


class BetweenSteps(Protocol):
    """The engine, as far as adapters are concerned."""

    def call(self, work: Callable[[], T]) -> T:
        """Run work on the inference thread between two steps, and return what it returns."""

    def rows(self) -> list[Row]:
        """Rows that wait or run; inference thread only."""


class AdapterChanges:
    """Changes to the adapters of one loaded model, one after the other; any thread but the inference thread.

    `publish` takes the adapters that are served from now on.
    """

    def __init__(self, loaded: Loaded, engine: BetweenSteps, publish: Callable[[tuple[AdapterRef, ...]], None]) -> None:
        self._loaded = loaded
        self._engine = engine
        self._publish = publish
        self._lock = threading.Lock()
        self._now = tuple(WantedAdapter(ref.name, "", ref.sha256) for ref in loaded.served.refs)

    def make(self, change: AdapterChange) -> None:
        """Make a change; raises AdapterRefused, AdapterNotServed, or Overloaded while no place is free."""
        with self._lock:
            self._change(change.wanted(self._now))

    def _change(self, wanted: Sequence[WantedAdapter]) -> None:
        bank, before = self._loaded.adapters, {ref.name: ref for ref in self._loaded.served.refs}
        if bank is None or not bank.room:
            raise AdapterRefused("This server loads no adapters while it serves.", "Start it with --adapter-root.")
        most = len(bank.names) - 1
        if len(wanted) > most:
            raise AdapterRefused(
                f"There is room for {most} adapters.", "Unload one, or start the server with more --max-adapters."
            )
        refs: list[AdapterRef] = []
        new: dict[str, Pairs] = {}
        for each in wanted:
            ref = before.get(each.name)
            if ref is None or ref.sha256 != each.sha256:
                read, pairs = self._read(each, bank)
                ref = read.ref
                if ref != before.get(each.name):
                    new[ref.key] = pairs
            refs.append(ref)
        self._engine.call(lambda: _place(bank, [ref.key for ref in refs], new, self._engine.rows()))
        self._now = settled(wanted, refs)
        self._loaded.served.refs = tuple(refs)
        self._publish(tuple(refs))
        logger.info("adapters: %s", ", ".join(f"{ref.name} ({ref.sha256[:12]})" for ref in refs) or "none")

    def _read(self, wanted: WantedAdapter, bank: AdapterBank) -> tuple[ReadAdapter, Pairs]:
        try:
            read = read_adapter(wanted.name, Path(wanted.folder), most_bytes(bank))
            pairs = pairs_of(read, self._loaded.model, bank)
        except UnservedAdapter as refused:
            told = f"The adapter {wanted.name} cannot be used: {refused}"
            raise AdapterRefused(told, refused.hint, "lora_path") from refused
        except (OSError, ValueError) as error:
            said = error.strerror if isinstance(error, OSError) else error
            told = f"The adapter {wanted.name} cannot be read: {said}."
            raise AdapterRefused(told, "Copy its folder again.", "lora_path") from error
        if wanted.sha256 and read.ref.sha256 != wanted.sha256:
            raise AdapterRefused(f"The files of the adapter {wanted.name} have changed.", "Load it again.", "lora_path")
        return read, pairs


def _place(bank: AdapterBank, wanted: Sequence[str], new: Mapping[str, Pairs], rows: Sequence[Row]) -> None:
    """Put new adapters to places that no wanted adapter and no row has; all of them, or none."""
    used = {*wanted, *(row.parameters.adapter for row in rows)} - {""}
    # One that was unloaded may still have its place.
    new = {key: pairs for key, pairs in new.items() if key not in bank.names}
    free = [place for place, key in enumerate(bank.names) if key not in used]
    if len(free) < len(new):
        raise Overloaded(
            "Requests still run with adapters that were unloaded, whose places are needed.", "Try again in a moment."
        )
    taken: list[int] = []
    try:
        for place, (key, pairs) in zip(free, new.items(), strict=False):
            taken.append(place)
            bank.put(place, key, pairs)
    except Exception as error:
        for place in taken:
            bank.put(place, "", {})
        if is_out_of_memory(error):
            raise AdapterRefused("There is no memory for the adapter.", "Unload another.") from error
        raise
