"""Custom Python code of a model: the classes that its folder's JSON files name in `auto_map`, and where they lie.

transformers imports it under trust_remote_code, and fetches a class named `OWNER/NAME--module.Class` from that
repository, at no fixed commit: such names are refused, wherever they occur.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from scoring.strict_json.files import LARGEST_FILE, read_bytes

KEY, FOREIGN = "auto_map", "--"
_NAME = re.compile(r"[^\W\d][\w-]*\.[^\W\d]\w*")


class Named(NamedTuple):
    """One class that a file names."""

    file: str  # relative to the model's folder
    reference: str  # module.Class, or OWNER/NAME--module.Class

    @property
    def repository(self) -> str:
        """Other repository from which the class is taken; empty if it is the model's own."""
        return self.reference.partition(FOREIGN)[0] if FOREIGN in self.reference else ""


def named_in(value: Any) -> Iterator[str]:
    """Classes that a parsed file names, at any depth."""
    left = [value]
    while left:
        inner = left.pop()
        if isinstance(inner, dict):
            yield from _texts(inner.get(KEY))
            left += inner.values()
        elif isinstance(inner, list):
            left += inner


def named_by(folder: Path) -> list[Named]:
    """Classes that the JSON files below a folder name, with repetitions; raises OSError, ValueError.

    A file that is not JSON names none: its later reader uses the same parser.
    """
    found = []
    for path in sorted(folder.rglob("*.json")):
        if path.is_file():
            file = path.relative_to(folder).as_posix()
            found += [Named(file, reference) for reference in _read(path)]
    return found


def lies_in(named: Named, folder: Path) -> bool:
    """Return True if the module of a class is a file beside the one that names it, or at the top of the folder."""
    if not _NAME.fullmatch(named.reference):
        return False
    module = named.reference.partition(".")[0] + ".py"
    return any((place / module).is_file() for place in (folder, (folder / named.file).parent))


def fault_of(folder: Path) -> str:
    """A sentence about the first class whose code is not the folder's own; empty where there is none."""
    try:
        found = named_by(folder)
    except (OSError, ValueError) as error:
        return f"The model's files cannot be searched for {KEY}: {error}."
    for named in found:
        if named.repository:
            return f"{KEY} in {named.file} takes code from another repository: {named.repository}."
        if not lies_in(named, folder):
            return f"{KEY} in {named.file} names {named.reference!r}, whose code does not lie in the model's folder."
    return ""


def _read(path: Path) -> list[str]:
    found: list[str] = []

    def look(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        # Both values of a repeated key count.
        for key, value in pairs:
            if key == KEY:
                found.extend(_texts(value))
        return dict(pairs)

    raw = read_bytes(path)
    if len(raw) > LARGEST_FILE:
        raise ValueError(f"{path.name} has more than {LARGEST_FILE >> 20} MiB")
    try:
        json.loads(raw.decode(), object_pairs_hook=look)
    except (ValueError, RecursionError):
        return found
    return found


def _texts(value: Any) -> list[str]:
    """Strings in a value, however nested."""
    found, left = [], [value]
    while left:
        inner = left.pop()
        if isinstance(inner, dict):
            left += reversed(inner.values())
        elif isinstance(inner, list):
            left += reversed(inner)
        elif isinstance(inner, str) and inner:
            found.append(inner)
    return found
