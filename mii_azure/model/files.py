"""Files of a model folder: names and links chosen by its author, none of which may lead out of it.

One exception: in the hub client's cache, `models--OWNER--NAME/snapshots/COMMIT/` holds links to `blobs/HASH` of the
same `models--OWNER--NAME`, and those are followed.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from local_runner.bundle.manifest import is_plain, is_plain_path
from mii_azure.errors import OutsideFolder, WeightsCorrupt
from scoring.model_files.shards import INDEX, shard_names

_BLOB = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # Git's hash of a small file, SHA-256 of a large one
_COPY = "Copy the folder with its links resolved: cp -RL FOLDER COPY."


def contained(folder: Path, name: str) -> Path:
    """Path of a file in a model folder; raises OutsideFolder if its name or a link leads elsewhere."""
    if not is_plain_path(name):
        raise OutsideFolder(f"The model's folder has a file of the name {name[:80]!a}.", "Rename or remove it.")
    real = folder.resolve()
    try:
        found = (real / name).resolve()
    except (OSError, RuntimeError) as error:
        raise OutsideFolder(f"{name} in the model's folder is a link that leads nowhere.", _COPY) from error
    if not found.is_relative_to(real) and not _is_blob(found, real):
        raise OutsideFolder(f"{name} in the model's folder is a link to {found}, outside of it.", _COPY)
    return folder / name


def _is_blob(file: Path, folder: Path) -> bool:
    """True if `file` is a blob of the hub client's cache and `folder` is, or is in, its snapshot."""
    for place in (folder, *folder.parents):
        repository = place.parent.parent
        if place.parent.name == "snapshots" and repository.name.startswith("models--"):
            return file.parent == (repository / "blobs").resolve() and bool(_BLOB.fullmatch(file.name))
    return False


def shards(index: Any, name: str) -> list[str]:
    """Files that the parsed index `name` of a model lists, sorted; raises WeightsCorrupt for one elsewhere."""
    try:
        return shard_names(index, Path(name.removesuffix(INDEX)).suffix)
    except ValueError as error:
        raise WeightsCorrupt(f"{name} cannot be used: {error}.", "Copy the file again.", name) from error


def refuse_odd_names(config: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raise OutsideFolder if a parsed file names another that loaders would look for elsewhere."""
    for file, value in {"config.json": config, **settings}.items():
        for key, name in _named(value):
            if not is_plain(name):
                raise OutsideFolder(
                    f"{key} in {file} names {name[:80]!a}, which is no file beside it.",
                    "Copy the model again from where it was published, or correct that name.",
                )


def _named(value: Any) -> Iterator[tuple[str, str]]:
    """Find (key, file) for files that transformers and sentence-transformers look up by a name in a JSON file."""
    if isinstance(value, list):  # modules.json
        paths = (str(module.get("path") or "").removesuffix("/") for module in value if isinstance(module, dict))
        yield from (("path", part) for path in paths if path for part in path.split("/"))
    if not isinstance(value, dict):
        return
    for key in ("transformers_weights", "fast_tokenizer_files"):
        yield from ((key, name) for name in _strings(value.get(key)))
    for name in _strings(value.get("auto_map")):  # MODULE.CLASS, or OWNER/NAME--MODULE.CLASS
        yield "auto_map", name.rpartition("--")[2].rpartition(".")[0]


def _strings(value: Any) -> Iterator[str]:
    """Yield the strings in a string, or in a list or mapping of strings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for each in value.values() if isinstance(value, dict) else value:
            inner = each if isinstance(each, list) else [each]
            yield from (name for name in inner if isinstance(name, str))
