"""File names in an index of weights: only plain ones, so that none leads out of the model's folder."""

import json
from pathlib import Path
from typing import Any

from scoring.errors import WeightsUnreadable

INDEX = ".index.json"
_LOADED = (".safetensors", ".bin")  # formats that transformers and diffusers load by an index
_LONGEST_NAME = 255  # bytes; NAME_MAX of every file system in use


def shard_names(index: Any, suffix: str) -> list[str]:
    """Files that a parsed index names, sorted; raises ValueError for an index without names or with an unsafe one.

    All must end with `suffix`: by it transformers decides whether a file is read, or unpickled.
    """
    where = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(where, dict) or not where:
        raise ValueError("it has no weight_map")
    for name in where.values():
        if not _is_plain(name) or not name.endswith(suffix):
            raise ValueError(f"it names {str(name)[:80]!r}, which is no {suffix} file beside it")
    return sorted(set(where.values()))


def read_shard_names(index: Path) -> list[str]:
    """Files that an index names; raises WeightsUnreadable."""
    try:
        return shard_names(json.loads(index.read_text(encoding="utf-8")), Path(index.name.removesuffix(INDEX)).suffix)
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsUnreadable(f"{index.name} cannot be used: {error}.", "Copy the model again.") from error


def refuse_outside(folder: Path) -> None:
    """Raise WeightsUnreadable if the index that a loader would follow names a file elsewhere."""
    for index in sorted(folder.glob(f"*{INDEX}")):
        whole = folder / index.name.removesuffix(INDEX)
        if whole.suffix in _LOADED and not whole.is_file():
            read_shard_names(index)


def _is_plain(name: Any) -> bool:
    return (
        isinstance(name, str)
        and name.isprintable()
        and not {"/", "\\"} & set(name)
        and len(name.encode()) <= _LONGEST_NAME
    )
