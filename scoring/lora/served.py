"""Adapters by the names that requests use: those that are served now, and what is wanted of those to come."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from scoring.config import AdapterRef
from scoring.errors import AdapterNotServed, AdapterRefused

#: Names of adapters: each is a folder of the bundle, and what a request may call a model.
ADAPTER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass
class ServedAdapters:
    """Adapters beside a model, as requests may name them now; replaced as a whole when one comes or goes."""

    refs: tuple[AdapterRef, ...] = ()

    def key_of(self, asked: str | None) -> str:
        """Key that rows know an adapter by, empty for none; raises AdapterNotServed if it is not here.

        Content is part of it: rows of a name that is loaded anew share nothing with those before.
        """
        refs = self.refs
        if asked is None:
            return ""
        for ref in refs:
            if ref.name == asked:
                return ref.key
        there = f"Adapters here: {', '.join(ref.name for ref in refs)}."
        raise AdapterNotServed(
            f"There is no adapter {asked[:80]!r} here.",
            there if refs else "This deployment serves its model alone.",
            where="parameters.adapter",
        )


@dataclass(frozen=True)
class WantedAdapter:
    """An adapter that is to be served: its folder, and the hash of what it holds if that is known."""

    name: str
    folder: str
    sha256: str = ""  # empty: whatever its files hold now
    listed: bool = False  # in the operator's list, which alone takes it away


class AdapterChange(Protocol):
    """Change of the adapters that are served."""

    def wanted(self, now: Sequence[WantedAdapter]) -> list[WantedAdapter]:
        """The adapters after the change; raises AdapterRefused or AdapterNotServed."""


@dataclass(frozen=True)
class LoadAdapter:
    """Load one; `again`: in place of one of its name."""

    name: str
    folder: str
    again: bool = False

    def wanted(self, now: Sequence[WantedAdapter]) -> list[WantedAdapter]:
        if not self.again and any(each.name == self.name for each in now):
            raise AdapterRefused(
                f"The adapter {self.name} is loaded already.",
                "Unload it first, or send load_inplace: true to have its new files in its place.",
                where="lora_name",
            )
        return [*(each for each in now if each.name != self.name), WantedAdapter(self.name, self.folder)]


@dataclass(frozen=True)
class UnloadAdapter:
    """Serve one no longer."""

    name: str

    def wanted(self, now: Sequence[WantedAdapter]) -> list[WantedAdapter]:
        left = [each for each in now if each.name != self.name]
        if len(left) == len(now):
            told = ", ".join(each.name for each in now)
            hint = f"Adapters here: {told}." if told else "None is loaded."
            raise AdapterNotServed(f"There is no adapter {self.name[:80]!r} here.", hint, where="lora_name")
        return left


@dataclass(frozen=True)
class FollowList:
    """Serve those of the operator's list, folders by name, beside those that calls have loaded.

    Those of the list before that this one lacks are gone; files are read again.
    """

    listed: Mapping[str, str]

    def wanted(self, now: Sequence[WantedAdapter]) -> list[WantedAdapter]:
        kept = [each for each in now if not each.listed and each.name not in self.listed]
        return [*kept, *(WantedAdapter(name, folder, listed=True) for name, folder in self.listed.items())]


@dataclass(frozen=True)
class ServeThese:
    """Serve these and no others."""

    these: tuple[WantedAdapter, ...]

    def wanted(self, now: Sequence[WantedAdapter]) -> list[WantedAdapter]:
        return list(self.these)


def settled(wanted: Sequence[WantedAdapter], refs: Sequence[AdapterRef]) -> tuple[WantedAdapter, ...]:
    """The same adapters, with the hashes of what was loaded."""
    found = {ref.name: ref.sha256 for ref in refs}
    return tuple(replace(each, sha256=found[each.name]) for each in wanted)
