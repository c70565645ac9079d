"""Untrusted JSON files of a model folder or a bundle: one way to read them, and typed access to their values."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from scoring.errors import LoadError, MiiAzureError
from scoring.strict_json.body import has_lone_surrogates, is_too_deep

#: Bytes of one file. The index of a model of 90,000 tensors has 9 MB, a tokenizer's file of a large vocabulary 35 MB.
LARGEST_FILE = 64 << 20
_PIECE = 1 << 20
_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")
_WORDS: dict[type, str] = {
    dict: "an object",
    list: "a list",
    str: "a text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
}

T = TypeVar("T")


def parse(raw: bytes) -> Any:
    """Parse UTF-8 JSON; raises ValueError, whose text says what is wrong with it.

    Refused are a byte order mark, a name twice in one object, NaN, half a surrogate pair and too deep nesting.
    Infinity is accepted: transformers writes it, for Mamba's time steps.
    """
    if raw.startswith(_MARKS):
        raise ValueError("it begins with a byte order mark")
    try:
        text = raw.decode()
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8 text") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if is_too_deep(text, value):
        raise ValueError("it is nested too deeply")
    if has_lone_surrogates(text, value):
        raise ValueError("a text in it holds half of a surrogate pair")
    return value


def read_bytes(path: Path) -> bytes:
    """Read a file, no more of it than a byte beyond LARGEST_FILE, and set aside no more memory than it takes."""
    pieces, left = list[bytes](), LARGEST_FILE + 1
    with path.open("rb") as file:
        while left > 0 and (piece := file.read(min(left, _PIECE))):
            pieces.append(piece)
            left -= len(piece)
    return b"".join(pieces)


def read_file(path: Path, error: type[MiiAzureError] = LoadError, hint: str = "Copy the file again.") -> Any:
    """Read the value of a JSON file; raises `error`, with the file's name, if it is invalid or exceeds LARGEST_FILE."""
    try:
        raw = read_bytes(path)
        if len(raw) > LARGEST_FILE:
            raise ValueError(f"it has more than {LARGEST_FILE >> 20} MiB")
        return parse(raw)
    except (OSError, ValueError) as why:
        told = why.strerror if isinstance(why, OSError) else why
        raise error(f"{path.name} cannot be read: {told}.", hint, str(path)) from why


def read_object(
    path: Path, error: type[MiiAzureError] = LoadError, hint: str = "Copy the file again."
) -> dict[str, Any]:
    """Read the object of a JSON file; raises `error` as `read_file` does, and for any other value."""
    value = read_file(path, error, hint)
    if not isinstance(value, dict):
        raise error(f"{path.name} is not a JSON object.", hint, str(path))
    return value


def typed(value: Any, kind: type[T], what: str) -> T:
    """Return `value` if it is of that kind; else raise TypeError with a sentence that begins with `what`.

    true and false are no numbers; a whole number is also a number.
    """
    fits = isinstance(value, kind) or (kind is float and isinstance(value, int))
    if not fits or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"{what} should be {_WORDS.get(kind, kind.__name__)}, and is {told(value)}")
    return value  # type: ignore[no-any-return]


def told(value: Any) -> str:
    """Name of a JSON value's kind, in words."""
    return "nothing" if value is None else _WORDS.get(type(value), type(value).__name__)


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"it says {twice[:100]!r} twice")
    return found


def _constant(name: str) -> float:
    if name == "NaN":
        raise ValueError("NaN is not JSON")
    return float(name)
