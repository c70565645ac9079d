"""Targets of a parity run by their names: hosts started here, and servers that run already."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mii_azure.azure.sending import scoring_address
from mii_azure.errors import SpecError
from mii_azure.platform.target_names import BUNDLE, CONTAINER, ELSEWHERE, ENDPOINT, KNOWN, TARGETS, URL

if TYPE_CHECKING:
    from local_runner.targets.targets import Target


@dataclass(frozen=True)
class Reach:
    """Access to targets elsewhere: a client of the workspace, and a key for URLs."""

    ml_client: Any = None
    key: str = ""


def targets_of(folder: Path) -> tuple[str, ...]:
    """Targets of a bundle, the last being the server in its own image."""
    from local_runner.process.launch import carries_host

    return (*TARGETS[:-1], CONTAINER) if carries_host(folder) else TARGETS


def check_targets(targets: Sequence[str], least: int, key: str = "") -> None:
    """Raise SpecError for names that are no targets, fewer than `least` different ones, or a key for several hosts."""
    known = f"Targets: {', '.join(KNOWN)}, {ENDPOINT}NAME, {URL}URL, {BUNDLE}FOLDER."
    unknown = [name for name in targets if name not in KNOWN and not name.startswith(ELSEWHERE)]
    if unknown:
        raise SpecError(f"Unknown target {unknown[0]!r}.", known)
    if len(set(targets)) < least:
        raise SpecError("Parity compares at least two targets.", known)
    hosts = {scoring_address(name.removeprefix(URL))[:3] for name in targets if name.startswith(URL)}
    if key and len(hosts) > 1:
        raise SpecError("The key would go to several hosts.", "Compare them one at a time, each with its own key.")


def open_target(name: str, folder: Path, task: str, reach: Reach) -> "Target":
    """Target of that name, not started yet; raises SpecError for an odd URL, NotABundle for a folder that is none."""
    from local_runner.targets.targets import make_target

    if name.startswith(ENDPOINT):
        from mii_azure.azure.client import connect
        from mii_azure.azure.live import EndpointTarget

        return EndpointTarget(folder, name, reach.ml_client or connect())
    if name.startswith(URL):
        from mii_azure.verdict.remote import RemoteTarget

        return RemoteTarget(folder, name, task, reach.key)
    if name.startswith(BUNDLE):
        from mii_azure.bundle.manifest import load_manifest

        other = Path(name.removeprefix(BUNDLE))
        load_manifest(other)
        return make_target(TARGETS[0], other)
    return make_target(name, folder)
