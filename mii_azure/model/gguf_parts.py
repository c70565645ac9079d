"""GGUF of several parts, NAME-00001-of-00003.gguf: found beside each other, and read as one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mii_azure.errors import NotAvailable, WeightsCorrupt, WeightsMissing
from mii_azure.model.gguf_header import COPY, Header, read_header

_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf$")
_MERGE = "Merge its parts, llama-gguf-split --merge FIRST-PART OUTPUT.gguf, and give the one file."


def only_file(path: Path, found: list[Path]) -> Path:
    """File, or first part, of a folder's GGUF files; raises NotAvailable where they are of several models."""
    models: dict[str, Path] = {}
    for each in found:
        part = _PART.match(each.name)
        models.setdefault(f"{part[1]}-{part[3]}" if part else each.name, each)
    if len(models) > 1:
        raise NotAvailable(
            f"{path} holds {len(models)} GGUF models.", f"Give one of them, such as {next(iter(models.values()))}."
        )
    return found[0]


def read_whole(file: Path) -> Header:
    """Read the header of a file, of one of several parts those of all.

    Raises what `read_header` raises, WeightsMissing for a part that is not there, and WeightsCorrupt for parts that do
    not belong together.
    """
    files = _parts(file)
    headers = [read_header(each) for each in files]
    first = headers[0]
    count = first.fields.get("split.count") or 1
    if count != len(files):
        told = f"{first.file.name} is one part of a GGUF of {count}"
        raise NotAvailable(f"{told}, and its name does not tell which.", _MERGE)
    if len(files) == 1:
        return first
    names = [each.name for header in headers for each in header.tensors]
    numbers = [header.fields.get("split.no") for header in headers]
    told_count = first.fields.get("split.tensors.count", len(names))
    if numbers != list(range(len(files))) or len(names) != told_count or len(set(names)) != len(names):
        raise WeightsCorrupt(
            f"The parts of {first.file.name} do not belong together: they have {len(names)} tensors of {told_count}.",
            COPY,
            str(first.file),
        )
    return first._replace(files=tuple(files), tensors=[each for header in headers for each in header.tensors])


def _parts(file: Path) -> list[Path]:
    """Files of the model that a file is, or is a part of, in their order."""
    part = _PART.match(file.name)
    if part is None:
        return [file]
    count = int(part[3])
    files = [file.with_name(f"{part[1]}-{number:05}-of-{part[3]}.gguf") for number in range(1, count + 1)]
    lost = [each.name for each in files if not each.is_file()]
    if lost or not files:
        raise WeightsMissing(
            f"{file.name} is one part of a GGUF of {count}, and {_shown(lost)} not beside it.",
            "Download the other parts too, into one folder.",
            str(file),
        )
    return files


def _shown(lost: list[str]) -> Any:
    return f"{lost[0]} is" if len(lost) == 1 else f"{len(lost)} others are"
