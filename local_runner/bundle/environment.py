"""Compares the packages of this process with the lock that the bundle's image installs."""

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

LOCK = Path("environment", "requirements.lock")
_CUDA_ONLY = ("nvidia-", "cuda-", "triton")
_GPU_NODE = Path("/dev/nvidiactl")


@dataclass(frozen=True)
class Difference:
    """A package whose installed version differs from the lock."""

    package: str
    wanted: str
    found: str  # "" if it is not installed
    cuda_only: bool  # useless on this machine, which has no GPU


def differences(bundle: Path, gpu: bool | None = None) -> list[Difference]:
    """Find every package that differs from the bundle's lock; `gpu` defaults to whether this machine has one.

    A local build matches its release: `2.13.0+cpu` is `2.13.0`. A bundle without a lock has no differences.
    """
    if gpu is None:
        gpu = _GPU_NODE.exists()
    result = []
    for requirement in _locked(bundle / LOCK):
        found = _installed(requirement.name)
        if not found or not requirement.specifier.contains(found, prereleases=True):
            cuda_only = not gpu and requirement.name.startswith(_CUDA_ONLY)
            wanted = str(requirement.specifier).removeprefix("==")
            result.append(Difference(requirement.name, wanted, found, cuda_only))
    return result


def report(found: list[Difference]) -> str:
    """Table of differences, for a person, printed at start; empty if there are none."""
    rows = [(d.package, d.wanted, d.found or "not installed") for d in found if not d.cuda_only]
    unused = sum(d.cuda_only for d in found)
    lines = []
    if rows:
        rows.insert(0, ("package", "bundle's lock", "this machine"))
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines.append(f"warning: {len(rows) - 1} packages differ from the bundle's lock:")
        lines += ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    if unused:
        lines.append(f"note: {unused} packages of the lock are for CUDA only; this machine has no GPU.")
    return "\n".join(lines)


def _locked(lock: Path) -> Iterable[Requirement]:
    if not lock.is_file():
        return
    for line in lock.read_text(encoding="utf-8").splitlines():
        text = line.split(" --hash")[0].rstrip("\\ ")
        if not text or text[0] in "#- ":
            continue
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        if requirement.marker is None or requirement.marker.evaluate():
            yield requirement


def _installed(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""
