"""Headers of GGUF files, read once and without torch: key-values and the tensors' entries.

gguf's own reader makes an array of each token and each merge, 10 s of a large vocabulary; here texts in lists are
stepped over, and decoded where they are asked for.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from mii_azure.errors import NotAvailable, WeightsCorrupt, WeightsMissing
from mii_azure.model.safetensors import LFS_POINTER

COPY = "Download or copy the file again."
ORIGINAL = "Give the model that it was made from, as a Hugging Face folder or hub id."
_VERSIONS = (2, 3)  # of one layout
_TEXT, _LIST = 8, 9
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_SINGLE = 6  # float32, of which the shortest number is taken that is stored so: 1e-06, not 9.999999974752427e-07
_MOST_DIMENSIONS = 4
_USUAL_ALIGNMENT = 32


class TextList(NamedTuple):
    """List of texts of a header, as bytes that are not decoded yet."""

    content: bytes
    length: int

    def decoded(self) -> list[str]:
        """Return the texts; bytes that are no UTF-8 become U+FFFD."""
        found, at = [], 0
        for _ in range(self.length):
            (length,) = struct.unpack_from("<Q", self.content, at)
            found.append(self.content[at + 8 : at + 8 + length].decode("utf-8", "replace"))
            at += 8 + length
        return found


class Entry(NamedTuple):
    """Tensor of a GGUF file: its name there, and where its bytes are."""

    name: str
    kind: Any  # gguf's GGMLQuantizationType
    shape: tuple[int, ...]  # in PyTorch's order
    file: Path
    at: int
    bytes: int


class Header(NamedTuple):
    """Key-values and tensors of a GGUF file."""

    file: Path
    fields: Mapping[str, Any]  # numbers, texts, lists of numbers, TextList
    tensors: list[Entry]
    files: tuple[Path, ...]  # the file, or all of its parts

    def get(self, key: str) -> Any:
        """Value of a key of the architecture, such as "block_count"; None without it."""
        return self.fields.get(f"{self.architecture}.{key}")

    @property
    def architecture(self) -> str:
        """Architecture by GGUF's name; empty where the file tells none."""
        told = self.fields.get("general.architecture")
        return told if isinstance(told, str) else ""


def read_header(file: Path) -> Header:
    """Read a file's header, and check that every tensor lies within the file.

    Raises WeightsMissing for a Git LFS pointer, NotAvailable for a version or a type of tensors that is not read, and
    WeightsCorrupt for a damaged file.
    """
    with file.open("rb") as opened:
        start = opened.read(24)
        _refuse_start(file, start)
        with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                return _parsed(file, _Cursor(content, 8))
            except (ValueError, UnicodeDecodeError) as error:
                raise WeightsCorrupt(f"{file.name} is damaged or cut short: {error}.", COPY, str(file)) from error


def numbers(tensor: Entry) -> list[float]:
    """Numbers of a small tensor in float32."""
    return [float(str(each)) for each in stored(tensor).astype("float32").flatten()]


def stored(tensor: Entry) -> Any:
    """Array of a tensor as gguf's `dequantize` takes it: floats, or rows of bytes."""
    import numpy as np

    form = {"F32": np.float32, "F16": np.float16, "F64": np.float64}.get(tensor.kind.name, np.uint8)
    flat = np.fromfile(tensor.file, form, tensor.bytes // np.dtype(form).itemsize, offset=tensor.at)
    return flat.reshape(*tensor.shape[:-1], -1)


def _refuse_start(file: Path, start: bytes) -> None:
    if LFS_POINTER.startswith(start[: len(LFS_POINTER)]) and start:
        raise WeightsMissing(f"{file.name} is a Git LFS pointer, not the weights.", "Run `git lfs pull`.", str(file))
    if start[:4] != b"GGUF":
        raise WeightsCorrupt(f"{file.name} is not GGUF: it does not begin so.", COPY, str(file))
    if len(start) < 24:
        raise WeightsCorrupt(f"{file.name} is damaged or cut short: it has {len(start)} bytes.", COPY, str(file))
    (version,) = struct.unpack_from("<I", start, 4)
    if version in _VERSIONS:
        return
    if version and not version & 0xFFFF:
        raise NotAvailable(f"{file.name} is big-endian GGUF.", "Convert the model again without --bigendian.")
    raise NotAvailable(
        f"{file.name} is GGUF of version {version}; read are {' and '.join(map(str, _VERSIONS))}.",
        "Convert the model again with today's convert_hf_to_gguf.py of llama.cpp." if version == 1 else ORIGINAL,
    )


class _Cursor:
    """Place in a file's bytes, none of which lies past its end; raises ValueError for one that would."""

    def __init__(self, content: mmap.mmap, at: int) -> None:
        self.content, self.at = content, at

    def take(self, length: int) -> bytes:
        end = self.at + length
        if end > len(self.content):
            raise ValueError("its header goes on past its end")
        found = self.content[self.at : end]
        self.at = end
        return found

    def number(self, form: str) -> Any:
        return struct.unpack(f"<{form}", self.take(struct.calcsize(f"<{form}")))[0]

    def text(self) -> str:
        return self.take(self.number("Q")).decode("utf-8")

    def texts(self, count: int) -> TextList:
        content, at, size = self.content, self.at, len(self.content)
        unpack = struct.Struct("<Q").unpack_from
        for _ in range(count):
            if at + 8 > size:
                raise ValueError("its header goes on past its end")
            at += 8 + unpack(content, at)[0]
        return TextList(self.take(at - self.at), count)

    def value(self) -> Any:
        kind = self.number("I")
        if kind == _TEXT:
            return self.text()
        if kind == _LIST:
            return self._list(self.number("I"), self.number("Q"))
        if kind not in _NUMBERS:
            raise ValueError(f"it has a value of the unknown type {kind}")
        found = self.number(_NUMBERS[kind])
        return _shortest(found) if kind == _SINGLE else found

    def _list(self, kind: int, count: int) -> Any:
        if kind == _TEXT:
            return self.texts(count)
        if kind not in _NUMBERS:
            raise ValueError(f"it has a list of the unknown type {kind}")
        form = _NUMBERS[kind]
        content = self.take(count * struct.calcsize(f"<{form}"))
        return list(struct.unpack(f"<{count}{form}", content))


def _shortest(number: float) -> float:
    import numpy as np

    return float(str(np.float32(number)))


def _parsed(file: Path, cursor: _Cursor) -> Header:
    tensors, keys = cursor.number("Q"), cursor.number("Q")
    fields: dict[str, Any] = {}
    for _ in range(keys):
        key = cursor.text()
        if key in fields:
            raise ValueError(f"it tells {key} twice")
        fields[key] = cursor.value()
    raw = [_entry(cursor) for _ in range(tensors)]
    alignment = fields.get("general.alignment", _USUAL_ALIGNMENT)
    if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
        raise ValueError(f"it aligns tensors to {alignment!r} bytes")
    start = -(-cursor.at // alignment) * alignment
    return Header(file, fields, _placed(file, raw, start, alignment, len(cursor.content)), (file,))


def _entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape, type and offset of the next tensor."""
    name, dimensions = cursor.text(), cursor.number("I")
    if dimensions > _MOST_DIMENSIONS:
        raise ValueError(f"{name} has {dimensions} dimensions")
    shape = tuple(cursor.number("Q") for _ in range(dimensions))
    return name, tuple(reversed(shape)), cursor.number("I"), cursor.number("Q")


def _placed(
    file: Path, raw: list[tuple[str, tuple[int, ...], int, int]], start: int, alignment: int, size: int
) -> list[Entry]:
    """Tensors with their places, one after the other."""
    placed, names, next_at = [], set[str](), 0
    for name, shape, kind, at in raw:
        if name in names:
            raise ValueError(f"it has {name} twice")
        names.add(name)
        found, length = _sized(file, name, shape, kind)
        if at != next_at:
            raise ValueError(f"{name} does not begin where the tensor before it ends")
        next_at = -(-(at + length) // alignment) * alignment
        if start + at + length > size:
            raise ValueError(f"{name} ends at byte {start + at + length}, and the file has {size}")
        placed.append(Entry(name, found, shape, file, start + at, length))
    return placed


def _sized(file: Path, name: str, shape: tuple[int, ...], kind: int) -> tuple[Any, int]:
    """Type of a tensor, and its bytes."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        found = GGMLQuantizationType(kind)
    except ValueError:
        raise NotAvailable(f"{file.name} has tensors of the type {kind}, which gguf does not know.", ORIGINAL) from None
    numbers, block = GGML_QUANT_SIZES[found]
    if not shape or not prod(shape) or shape[-1] % numbers:
        raise ValueError(f"{name} has the shape {list(shape)} in {found.name}")
    return found, prod(shape) // numbers * block
