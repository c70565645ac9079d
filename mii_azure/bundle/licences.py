"""Licences: of the packages as recorded beside the lock, of the model as its card or config.json states it."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from mii_azure.bundle.render import TEMPLATES
from mii_azure.bundle.yaml_text import parse_yaml
from scoring.errors import LoadError
from scoring.strict_json.files import read_object

RECORDED = TEMPLATES / "locks" / "licences.json"  # written by tools/lock.sh
_LARGEST_CARD = 1 << 20  # bytes of README.md that are read


@cache
def package_licences() -> dict[str, str]:
    """Licences from package metadata, SPDX expressions where possible: {package: licence}; unknown ones are absent."""
    recorded: dict[str, str] = json.loads(RECORDED.read_text(encoding="utf-8"))["licences"]
    return recorded


def model_licence(folder: Path) -> str | None:
    """Licence from the front matter of README.md, else from config.json; None if neither states one."""
    card = _front_matter(folder / "README.md")
    named = card.get("license_name") if card.get("license") == "other" else card.get("license")
    told = named or card.get("license") or _config(folder).get("license")
    words = [each.strip() for each in (told if isinstance(told, list) else [told]) if isinstance(each, str)]
    return " OR ".join(word for word in words if word) or None


def _front_matter(path: Path) -> dict[str, Any]:
    """YAML between the first two lines of three hyphens; empty if there is none, or it cannot be parsed."""
    if not path.is_file():  # reading a pipe would block
        return {}
    try:
        with path.open("rb") as file:
            lines = file.read(_LARGEST_CARD).decode(errors="replace").splitlines()
        marks = [number for number, line in enumerate(lines) if line.rstrip() == "---"][:2]
        found = parse_yaml("\n".join(lines[1 : marks[1]])) if len(marks) == 2 and marks[0] == 0 else None
    except (OSError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _config(folder: Path) -> dict[str, Any]:
    try:
        return read_object(folder / "config.json")
    except LoadError:
        return {}
