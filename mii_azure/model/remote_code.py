"""Python code shipped with a model: refused, unless requested by a flag and pinned to a commit."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mii_azure.errors import RemoteCodeRefused
from mii_azure.model.families import is_known_type
from mii_azure.model.resolved import Model
from scoring.model_files import own_code

FLAG = "--trust-remote-code"
_COPY = "Copy that code beside config.json and name it there, so that it is pinned and hashed with the model."
_COMMIT = re.compile(r"[0-9a-f]{40}")


def needs_code(config: Mapping[str, Any]) -> bool:
    """True if only its author's code can load it: config.json names such code, and transformers has none."""
    return bool(config.get("auto_map")) and not is_known_type(str(config.get("model_type", "")))


def check_remote_code(model: Model, revision: str | None, trust: bool) -> None:
    """Raise RemoteCodeRefused unless the model loads without code of its own, or `trust` and its commit allow that.

    A folder is pinned by its files' hashes in the manifest; a hub model only by a `revision` of 40 hex digits. Any JSON
    file of the model may name code, which is refused if it is not the model's own.
    """
    if not trust:
        if needs_code(model.config):
            raise RemoteCodeRefused(
                f"{model.name} is loaded by Python code of its own: auto_map in config.json names "
                f"{_first(model.config)}.",
                f"Read that code; then pass {FLAG}, and for a hub model the commit you read as --revision.",
            )
        return
    if model.folder:
        refuse_foreign_code(model.folder)
    if not _references(model):
        raise RemoteCodeRefused(f"{model.name} has no code of its own to trust.", f"Leave {FLAG} out.")
    if model.source != "folder" and not _COMMIT.fullmatch(revision or ""):
        raise RemoteCodeRefused(
            f"{FLAG} needs the commit whose code you trust.",
            f"Pass --revision {model.revision}." if model.revision else "Pass --revision with its 40 hex digits.",
        )
    elsewhere = [name for name in _references(model) if own_code.FOREIGN in name]
    if elsewhere:  # among a hub model's files that planning reads; generation checks all of them
        other = elsewhere[0].partition(own_code.FOREIGN)[0]
        raise RemoteCodeRefused(f"auto_map takes code from another repository: {other}.", _COPY)


def refuse_foreign_code(folder: Path) -> None:
    """Raise RemoteCodeRefused if a JSON file of the model names code outside its folder."""
    if fault := own_code.fault_of(folder):
        raise RemoteCodeRefused(fault, _COPY)


def _references(model: Model) -> list[str]:
    if model.folder:
        return [named.reference for named in own_code.named_by(model.folder)]
    return [name for value in (model.config, *model.settings.values()) for name in own_code.named_in(value)]


def _first(config: Mapping[str, Any]) -> str:
    return next(own_code.named_in(config), "nothing")
