"""Verb diff: changes from one bundle to another, grouped by meaning."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict

from local_runner.bundle.manifest import MANIFEST, hash_files
from mii_azure.bundle.bundle_view import DOCKERFILE, LOCK, SETTINGS, YAMLS
from mii_azure.bundle.lockfile import pins
from mii_azure.bundle.manifest import load_manifest, walk
from mii_azure.bundle.yaml_text import parse_yaml

Group = Literal["model", "scoring", "environment", "settings", "documents"]
GROUPS: tuple[Group, ...] = ("model", "scoring", "environment", "settings", "documents")
_FOLDERS: tuple[tuple[str, Group], ...] = (
    ("model/", "model"),
    ("code/scoring/", "scoring"),
    ("code/score.py", "scoring"),
    ("environment/", "environment"),
)


class Change(BaseModel):
    """Difference in a file, a package, or a value in a file of settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    group: Group
    file: str
    what: str  # "" for the file as a whole; else a package, or the dotted path of a value
    before: str | None  # None if it was added
    after: str | None  # None if it was removed

    def line(self) -> str:
        """Line that describes the change to a person."""
        name = f"{self.file} {self.what}".strip()
        if self.before is None:
            return f"+ {name} {self.after}"
        if self.after is None:
            return f"- {name} {self.before}"
        return f"~ {name} {self.before} -> {self.after}"


def diff(a: Path | str, b: Path | str) -> list[Change]:
    """List every change from bundle `a` to bundle `b` as they are on disk, in GROUPS order; raises NotABundle."""
    first, second = _hashes(Path(a)), _hashes(Path(b))
    changes = []
    for path in sorted(first.keys() | second.keys()):
        if first.get(path) != second.get(path):
            changes += list(_changes(path, Path(a), Path(b), first, second))
    return sorted(changes, key=lambda change: (GROUPS.index(change.group), change.file, change.what))


def _hashes(bundle: Path) -> dict[str, str]:
    load_manifest(bundle)
    return hash_files(bundle, (path for path in walk(bundle) if path != MANIFEST))


def _changes(path: str, a: Path, b: Path, first: Mapping[str, str], second: Mapping[str, str]) -> Iterator[Change]:
    """Changes in one file: value by value if its values can be read, else by hash."""
    group = _group(path)
    read = _reader(path)
    if read and path in first and path in second:
        before, after = read(_text(a / path)), read(_text(b / path))
        if before is not None and after is not None and before != after:
            for what in sorted(before.keys() | after.keys()):
                if before.get(what) != after.get(what):
                    yield Change(group=group, file=path, what=what, before=before.get(what), after=after.get(what))
            return
    digests = [side[path][:12] if path in side else None for side in (first, second)]
    yield Change(group=group, file=path, what="", before=digests[0], after=digests[1])


def _group(path: str) -> Group:
    for start, group in _FOLDERS:
        if path.startswith(start):
            return group
    return "settings" if path == SETTINGS or path in YAMLS else "documents"


def _reader(path: str) -> Callable[[str], dict[str, str] | None] | None:
    """Parser of a file's values, {path: text}; None for files without such values."""
    readers: dict[str, Callable[[str], dict[str, str] | None]] = dict.fromkeys(YAMLS, _structured)
    readers |= {SETTINGS: _structured, LOCK: _packages, DOCKERFILE: _instructions}
    return readers.get(path)


def _packages(text: str) -> dict[str, str]:
    return {pin.name: pin.version for pin in pins(text)}


def _instructions(text: str) -> dict[str, str]:
    """Base image of each stage, and the settings; other instructions are compared as one."""
    lines = text.replace("\\\n", " ").splitlines()
    words = [line.split(None, 1) for line in lines if line.strip() and not line.startswith("#")]
    found = {f"FROM {number}": value for number, value in enumerate(v for k, v in words if k == "FROM")}
    found |= {f"ENV {value.partition('=')[0]}": value.partition("=")[2] for key, value in words if key == "ENV"}
    rest = [f"{key} {' '.join(value.split())}" for key, value in words if key not in ("FROM", "ENV")]
    return found | {"instructions": "; ".join(rest)}


def _structured(text: str) -> dict[str, str] | None:
    """Values of a YAML or JSON mapping by dotted path; None if it is not a mapping."""
    try:
        document = parse_yaml(text)
    except yaml.YAMLError:
        return None
    return dict(_flatten(document, "")) if isinstance(document, dict) else None


def _flatten(value: Any, place: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flatten(inner, f"{place}.{key}".lstrip("."))
    else:
        yield place, json.dumps(value, ensure_ascii=False, default=str)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")
