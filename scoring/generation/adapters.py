"""Adapters of generated text: forwards all of whose rows have one."""

from contextlib import AbstractContextManager, nullcontext

from scoring.lora.bank import AdapterBank


def all_with(bank: AdapterBank | None, name: str) -> AbstractContextManager[None]:
    """Context of forwards all of whose rows have an adapter, or none if its name is empty."""
    return nullcontext() if bank is None else bank.everywhere(name)
