"""Adapters of generated text: the one that a request asks for, and forwards all of whose rows have one."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from scoring.errors import AdapterNotServed
from scoring.lora.bank import AdapterBank


def adapter_of(asked: str | None, known: Sequence[str]) -> str:
    """Name of the adapter that a request asks for, empty for none; raises AdapterNotServed if it is not here."""
    if asked is None or asked in known:
        return asked or ""
    there = f"Adapters here: {', '.join(known)}." if known else "This deployment serves its model alone."
    raise AdapterNotServed(f"There is no adapter {asked[:80]!r} here.", there, where="parameters.adapter")


def all_with(bank: AdapterBank | None, name: str) -> AbstractContextManager[None]:
    """Context of forwards all of whose rows have an adapter, or none if its name is empty."""
    return nullcontext() if bank is None else bank.everywhere(name)
