"""Limits that an operator sets to adapters that come and go: from where, how many, and by whose word."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from local_runner.errors import RunnerFailed
from local_runner.flags import serving
from scoring.errors import AdapterRefused
from scoring.host_api import ADAPTER_NAME, AdapterChange, AdapterRef, Deployment, FollowList, LoadAdapter

_HINT = "Give a folder below the server's --adapter-root, by its path from there."
_MOST_TOLD = 200  # characters of a path that an error repeats


@dataclass(frozen=True)
class AdapterPolicy:
    """Checked flags; without a root no adapter comes or goes."""

    root: Path | None = None
    calls: bool = False  # from who has a key
    most: int = 0
    rank: int = 0

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> "AdapterPolicy":
        """Read the flags from the environment, where processes of one server have them; raises RunnerFailed."""
        try:
            root, calls = serving.ADAPTER_ROOT.read(environment), bool(serving.ALLOW_ADAPTERS.read(environment))
            most, rank = serving.MAX_ADAPTERS.read(environment), serving.MAX_ADAPTER_RANK.read(environment)
        except ValueError as error:
            raise RunnerFailed(f"The environment is wrong: {error}.", "See --help.") from error
        if root is None and calls:
            raise RunnerFailed("--allow-adapters has no folder to load from.", "Give --adapter-root FOLDER.")
        if root is None:
            return cls()
        if not _is_folder(root):
            raise RunnerFailed(f"--adapter-root {root} is no folder.", "Give the folder under which adapters lie.")
        return cls(root.resolve(), calls, most, rank)

    def load(self, deployment: Deployment, name: str, path: str, again: bool) -> LoadAdapter:
        """A call's change, its name and folder checked; raises AdapterRefused."""
        self._check_name(deployment, name)
        return LoadAdapter(name, self._folder(path), again)

    def follow(self, deployment: Deployment, listed: Mapping[str, str]) -> FollowList:
        """The change that the operator's list asks for, its names and folders checked; raises AdapterRefused."""
        if self.root is None:
            raise AdapterRefused("This server loads no adapters while it serves.", "Start it with --adapter-root.")
        for name in listed:
            self._check_name(deployment, name)
        return FollowList({name: self._folder(path) for name, path in listed.items()})

    def _check_name(self, deployment: Deployment, name: str) -> None:
        if not ADAPTER_NAME.fullmatch(name):
            told = f"{name[:80]!r} is no name of an adapter."
            raise AdapterRefused(told, "A name has 1 to 64 letters, digits, '.', '_', '-'.", "lora_name")
        if name in (*deployment.names, deployment.model.id):
            raise AdapterRefused(f"{name!r} is the model's own name.", "Give the adapter another.", "lora_name")

    def _folder(self, path: str) -> str:
        """The folder that a path means, below the root; a path that leaves it is refused, whatever is there."""
        told = path[:_MOST_TOLD]
        if self.root is None:
            raise AdapterRefused("This server loads no adapters while it serves.", "Start it with --adapter-root.")
        try:
            found = (self.root / path).resolve()
        except (OSError, RuntimeError, ValueError):  # a loop of links, or a name that no file can have
            raise AdapterRefused(f"{told!r} is no folder.", _HINT, "lora_path") from None
        if found == self.root or not found.is_relative_to(self.root):
            raise AdapterRefused(f"{told!r} is not below the folder that adapters are loaded from.", _HINT, "lora_path")
        if not _is_folder(found):
            raise AdapterRefused(f"{told!r} is no folder.", _HINT, "lora_path")
        return str(found)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # too long a name, or a folder that may not be looked into
        return False


class AdaptedHost:
    """Part of a host: its deployment, whose adapters may change while it serves."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._adapters: tuple[AdapterRef, ...] | None = None  # that `_deployment` tells of, once they may change
        self.adapter_policy = AdapterPolicy.read(os.environ)

    @property
    def deployment(self) -> Deployment:
        """The deployment as it is served now: with these limits, and these adapters."""
        now = self.adapters()
        if now is not None and now is not self._adapters:
            self._deployment, self._adapters = self._deployment.serving(now), now
        return self._deployment

    def adapters(self) -> tuple[AdapterRef, ...] | None:
        """Adapters that are served now, the same tuple until they change; None for those of the deployment's file."""
        return None

    async def change_adapters(self, change: AdapterChange) -> None:
        """Load or unload adapters, in all processes or in none; raises AdapterRefused, AdapterNotServed, Overloaded."""
        raise AdapterRefused("This server loads no adapters while it serves.", "Start it with --adapter-root.")

    def check_adapters(self, listed: Mapping[str, str] | None) -> None:
        """Raise AdapterRefused for a list with a name or a folder that cannot be; no file is read."""
        if listed is not None:
            self.adapter_policy.follow(self.deployment, listed)

    async def follow_adapters(self, listed: Mapping[str, str] | None) -> None:
        """Serve the adapters of the operator's list, if there is one; raises as `change_adapters` does."""
        if listed is not None:
            await self.change_adapters(self.adapter_policy.follow(self.deployment, listed))
