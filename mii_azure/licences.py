"""Licences: of the packages as the lock's neighbour records them, of the model as its card or config.json says."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from mii_azure.render import TEMPLATES

RECORDED = TEMPLATES / "locks" / "licences.json"  # written by tools/lock.sh
_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*(?:\n|\Z)", re.DOTALL)


@cache
def package_licences() -> dict[str, str]:
    """{package: licence as its metadata tells it, an SPDX expression where it has one}; unknown ones are absent."""
    recorded: dict[str, str] = json.loads(RECORDED.read_text(encoding="utf-8"))["licences"]
    return recorded


def model_licence(folder: Path) -> str | None:
    """What the front matter of README.md, or else config.json, says; None where neither does."""
    card = _front_matter(folder / "README.md")
    named = card.get("license_name") if card.get("license") == "other" else card.get("license")
    told = named or card.get("license") or _json(folder / "config.json").get("license")
    if isinstance(told, list):
        told = " OR ".join(str(each) for each in told)
    return str(told).strip() or None if told else None


def _front_matter(path: Path) -> dict[str, Any]:
    if not path.is_file():  # a pipe would be waited for
        return {}
    try:
        match = _FRONT_MATTER.match(path.read_text(encoding="utf-8"))
        found = yaml.safe_load(match[1]) if match else None
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
