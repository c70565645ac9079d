"""Merging of an adapter into its base's weights, once, when a bundle is generated."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mii_azure.errors import WeightsCorrupt
from mii_azure.model.adapters import CONV1D, Adapter, require_same, targets
from mii_azure.model.folder import stored_tensors, weight_files
from mii_azure.planning.plan import Plan
from scoring.lora.peft_folder import WEIGHTS, LowRank

_CHUNK = 4 << 20


@dataclass
class MergeJob:
    """Makes the weight files of a bundle's model folder, each as it was but for the tensors that an adapter changes.

    Raises AdapterUnusable when made, if the base on disk is another one than the adapter's.
    """

    folder: Path  # the base
    plan: Plan
    adapter: Adapter
    _changes: dict[str, LowRank | str] = field(init=False)

    def __post_init__(self) -> None:
        self._changes = targets(self.adapter, stored_tensors(self.folder), self.plan.profile.family)
        self._files = weight_files(self.folder)

    def makes(self, path: str) -> bool:
        """True if a file of the bundle is made here, not copied."""
        return path.removeprefix("model/") in self._files

    @property
    def bytes(self) -> int:
        """Bytes on disk of the files that it makes."""
        return sum((self.folder / name).stat().st_size for name in self._files)

    def make(self, target: Path, progress: Callable[[int, int], None]) -> dict[str, str]:
        """Write the files into `target`, which has the others; return {name: SHA-256}.

        Holds one file in memory at a time. Raises AdapterUnusable for a copy that is not
        the base's, WeightsCorrupt for a sum that is not finite, OSError.
        """
        from safetensors.torch import load_file, save_file

        total, done, hashes = self.bytes, 0, {}
        own = load_file(self.adapter.folder / WEIGHTS)
        for name in self._files:
            progress(done, total)
            tensors = load_file(self.folder / name)
            for key in sorted(tensors.keys() & self._changes.keys()):
                tensors[key] = self._changed(key, tensors[key], own)
            save_file(tensors, target / name, metadata={"format": "pt"})
            hashes[name] = _sha256(target / name)
            done += (self.folder / name).stat().st_size
        progress(total, total)
        return hashes

    def settled(self) -> Plan:
        """Plan as it is: merging decides nothing."""
        return self.plan

    def _changed(self, key: str, weight: Any, own: Mapping[str, Any]) -> Any:
        change = self._changes[key]
        if isinstance(change, str):
            found = own[change].to(weight.dtype)
        else:
            require_same(self.adapter, change, own, weight)
            sum_ = own[change.up].float() @ own[change.down].float()
            sum_ = (sum_.T if self.plan.profile.family in CONV1D else sum_) * change.scaling
            found = (weight.float() + sum_).to(weight.dtype)
        if not found.isfinite().all():
            raise WeightsCorrupt(
                f"{key} is not finite once {self.adapter.name} is merged into it.",
                "Copy the adapter's folder again; its weights may be damaged.",
            )
        return found.contiguous()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as reader:
        while chunk := reader.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
