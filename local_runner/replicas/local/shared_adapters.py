"""Adapters that all replicas of this machine serve: changed in every one of them, or in none.

Files of a loaded adapter are copied, so that a replica that is started again finds what the others have.
"""

import asyncio
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from local_runner.replicas.local.framing import GONE
from local_runner.replicas.local.supervisor import ReplicaProcess, Wanted
from scoring.errors import AdapterRefused, NotReady
from scoring.host_api import AdapterChange, AdapterRef, Deployment, WantedAdapter, settled

_FOLDER = Path("model") / "adapters"  # of a bundle


class SharedAdapters:
    """Adapters beside the model in all replicas, and their changes."""

    def __init__(self, bundle: Path, deployment: Deployment, scratch: Path) -> None:
        self.refs: tuple[AdapterRef, ...] | None = None  # None: the bundle's own
        own = deployment.served
        self._now: Wanted = tuple(WantedAdapter(ref.name, str(bundle / _FOLDER / ref.name), ref.sha256) for ref in own)
        self._scratch = scratch
        self._changing = asyncio.Lock()

    async def change(
        self, change: AdapterChange, able: Callable[[], list[ReplicaProcess]], everyone: Sequence[ReplicaProcess]
    ) -> None:
        """Make a change in every replica that is `able`, or in none; later ones follow."""
        async with self._changing:
            wanted = tuple(change.wanted(self._now))
            there = {each: each.life for each in able()}
            if not there:
                raise NotReady("No replica is ready.", "Ask again shortly.")
            try:
                refs = await _become(list(there), wanted)
                kept = await asyncio.to_thread(self._keep, settled(wanted, refs))
            except Exception:
                await asyncio.gather(*(each.must_become(self._now) for each in there))
                raise
            before, self._now, self.refs = self._now, kept, tuple(refs)
            await asyncio.gather(*(each.keep_adapters(kept, told=there.get(each) == each.life) for each in everyone))
            await asyncio.to_thread(self._forget, before)

    def _keep(self, wanted: Wanted) -> Wanted:
        """Copy the files of adapters that were loaded just now; raises AdapterRefused if they cannot be."""
        kept = []
        for each in wanted:
            if each not in self._now:
                copy = self._scratch / f"adapter-{each.sha256}"
                try:
                    shutil.copytree(each.folder, copy, dirs_exist_ok=True, ignore=_others)
                except (OSError, shutil.Error) as error:
                    raise AdapterRefused(f"The files of the adapter {each.name} cannot be copied.") from error
                each = replace(each, folder=str(copy))
            kept.append(each)
        return tuple(kept)

    def _forget(self, before: Wanted) -> None:
        """Remove copies that nothing needs any more."""
        needed = {each.folder for each in self._now}
        for each in before:
            if each.folder not in needed and Path(each.folder).parent == self._scratch:
                shutil.rmtree(each.folder, ignore_errors=True)


def _others(folder: str, names: list[str]) -> set[str]:
    """All but the two files of an adapter."""
    return set(names) - {"adapter_config.json", "adapter_model.safetensors"}


async def _become(there: Sequence[ReplicaProcess], wanted: Wanted) -> list[AdapterRef]:
    """Have replicas serve these adapters; raises the first refusal. One that is lost meanwhile does not count."""
    answers = await asyncio.gather(*(each.become(wanted) for each in there), return_exceptions=True)
    refs = [each for each in answers if not isinstance(each, BaseException)]
    for each in answers:
        if isinstance(each, BaseException) and not isinstance(each, GONE):
            raise each
    if not refs:
        raise NotReady("The replicas were lost meanwhile.", "Ask again shortly.")
    if any(each != refs[0] for each in refs):
        raise AdapterRefused("The adapter's files changed while they were read.", "Load it again.", "lora_path")
    return refs[0]
