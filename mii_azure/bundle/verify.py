"""Verb verify: checks that a bundle is as generated, and that its lock and SBOM are complete."""

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from local_runner.bundle.manifest import hash_files
from mii_azure.bundle.bundle_view import LOCK, SETTINGS
from mii_azure.bundle.carried import carried_code
from mii_azure.bundle.lockfile import gaps, pins
from mii_azure.bundle.manifest import find_mismatches, load_manifest, read_text, walk
from mii_azure.bundle.sbom import SBOM
from mii_azure.version import __version__

_FOLDERS = ("code/scoring", "code/local_runner")


class Verification(BaseModel):
    """Result of `verify_bundle`; `problems` is empty if the bundle is as generated."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bundle: str  # hash of the bundle, as its manifest says
    files: int
    generator: str  # version of mii-azure that wrote it; "" if sbom.json does not state it
    model: str
    revision: str | None
    packages: int
    scoring: list[str]  # files of the scoring package that differ from the installed version
    problems: list[str]

    @property
    def sound(self) -> bool:
        """True if nothing is wrong."""
        return not self.problems

    def lines(self) -> list[str]:
        """Lines that describe the result to a person."""
        told = [f"problem: {problem}" for problem in self.problems]
        if self.scoring and self.generator != __version__:
            told.append(
                f"note: the scoring package is that of mii-azure {self.generator or 'of an unknown version'}, not of "
                f"{__version__}: {len(self.scoring)} files differ; only that version can vouch for it."
            )
        pinned = f"{self.model}@{self.revision}" if self.revision else self.model
        state = "as generated" if self.sound else "not as generated"
        return [*told, f"{state}: {self.files} files, {self.packages} packages, {pinned}, bundle {self.bundle[:12]}"]


def verify_bundle(bundle: Path | str) -> Verification:
    """Hash every file, compare the scoring package with the installed one, and read lock and SBOM; raises NotABundle.

    A scoring package of another mii-azure version is reported, but is no problem of the bundle.
    """
    root = Path(bundle)
    manifest = load_manifest(root)
    bill, settings = _json(root, SBOM), _json(root, SETTINGS)
    lock = read_text(root, LOCK) or ""
    generator = _generator(bill)
    scoring = _scoring(root)
    problems = [f"{mismatch.path} is {_WORDS[mismatch.kind]}." for mismatch in find_mismatches(root)]
    if scoring and generator == __version__:
        named = ", ".join(scoring[:3]) + (f" and {len(scoring) - 3} more" if len(scoring) > 3 else "")
        problems.append(f"The scoring package says it is of {generator}, which is installed, and differs: {named}.")
    problems += [f"{LOCK}: {gap}" for gap in gaps(lock)]
    problems += _bill_problems(bill, lock, manifest["files"])
    model = _part(settings, "model")
    return Verification(
        bundle=str(manifest.get("bundle")),
        files=len(manifest["files"]),
        generator=generator,
        model=_text_of(model, "id"),
        revision=_text_of(model, "revision") or None,
        packages=len(list(pins(lock))),
        scoring=scoring,
        problems=problems,
    )


_WORDS = {
    "edited": "edited",
    "missing": "missing",
    "extra": "not in the manifest",
    "no regular file": "no regular file",
}


def _scoring(root: Path) -> list[str]:
    """Files of code/scoring/, and of the HTTP host if carried, that differ from the installed packages."""
    folders = [folder for folder in _FOLDERS if (root / folder).is_dir()]
    carried = hash_files(root, [f"{folder}/{path}" for folder in folders for path in walk(root / folder)])
    sources = carried_code("http" if _FOLDERS[1] in folders else "azmlinfsrv")
    installed = {path: hashlib.sha256(source.read_bytes()).hexdigest() for path, source in sources.items()}
    differs = (path for path in carried.keys() | installed.keys() if carried.get(path) != installed.get(path))
    return sorted(path.removeprefix("code/").removeprefix("scoring/") for path in differs)


def _bill_problems(bill: dict[str, Any], lock: str, files: dict[str, str]) -> list[str]:
    """Disagreements of SBOM and bundle: packages against the lock, model files against the manifest."""
    components = {_text_of(each, "bom-ref"): each for each in _entries(bill, "components")}
    if "model" not in components:
        return [f"{SBOM} is missing, or names no model."]
    libraries = [each for each in components.values() if each.get("type") == "library"]
    billed = {(_text_of(each, "name"), _text_of(each, "version")) for each in libraries}
    locked = {(pin.name, pin.version) for pin in pins(lock)}
    found = [f"{SBOM} and {LOCK} disagree about {name} {version}." for name, version in sorted(billed ^ locked)]
    nested = _entries(components["model"], "components")
    weights = {_text_of(each, "name"): _hash_of(each) for each in nested}
    listed = {path: digest for path, digest in files.items() if path.startswith("model/")}
    wrong = sorted(path for path in weights.keys() | listed.keys() if weights.get(path) != listed.get(path))
    return found + [f"{SBOM} and the manifest disagree about {path}." for path in wrong]


def _generator(bill: dict[str, Any]) -> str:
    tools = _entries(_part(_part(bill, "metadata"), "tools"), "components")
    return next((_text_of(tool, "version") for tool in tools if tool.get("name") == "mii-azure"), "")


def _hash_of(component: dict[str, Any]) -> str:
    return next((_text_of(each, "content") for each in _entries(component, "hashes")), "")


def _part(settings: dict[str, Any], key: str) -> dict[str, Any]:
    """Object within another; empty if it is none."""
    found = settings.get(key)
    return found if isinstance(found, dict) else {}


def _entries(settings: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """Objects in a list within an object."""
    found = settings.get(key)
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def _text_of(settings: dict[str, Any], key: str) -> str:
    found = settings.get(key)
    return found if isinstance(found, str) else ""


def _json(root: Path, path: str) -> dict[str, Any]:
    try:
        found = json.loads(read_text(root, path) or "")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
