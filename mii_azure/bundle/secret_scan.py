"""Detects secrets in files. File and kind are reported, the secret never is."""

import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

from mii_azure.errors import SecretFound
from mii_azure.model.safetensors import MAX_HEADER_BYTES

#: Each has a maximum match length, so that search time is linear in the text, and the text can be searched in pieces.
#: Before each stand bytes of which every match holds some: text without them, as nearly all is, is not searched.
PATTERNS = (
    ("a Hugging Face token", (b"hf_",), re.compile(rb"\bhf_[A-Za-z0-9]{30}")),
    (
        "a GitHub token",
        (b"ghp_", b"gho_", b"ghu_", b"ghs_", b"ghr_", b"github_pat_"),
        re.compile(rb"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_\w{60})"),
    ),
    ("an Azure storage key", (b"AccountKey=",), re.compile(rb"\bAccountKey=[A-Za-z0-9+/=]{40}")),
    ("a shared access signature", (b"sig=",), re.compile(rb"[?&;]sig=[A-Za-z0-9%+/=]{30}")),
    ("an Azure client secret", (b"Q~",), re.compile(rb"\b[A-Za-z0-9_~.-]{3}\dQ~[A-Za-z0-9_~.-]{31,34}\b")),
    # The header of a token is as long as the names of its key and algorithm; a claim set follows it.
    ("a bearer token", (b".eyJ",), re.compile(rb"\beyJ[\w-]{10,1000}\.eyJ[\w-]{10}")),
    ("an AWS key", (b"AKIA", b"ASIA"), re.compile(rb"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b")),
    ("an API key", (b"sk-",), re.compile(rb"\bsk-[A-Za-z0-9_-]{32}")),
    ("a private key", (b"PRIVATE KEY-----",), re.compile(rb"-----BEGIN (?:[A-Z]{1,20} )?PRIVATE KEY-----")),
    ("a password in an address", (b"://",), re.compile(rb"://[!-.0-9;-?A-~]{1,100}:[!-#%-.0-9;-?A-z|}~]{3,200}@")),
)
LONGEST = 1100  # bytes of a match
_PIECE = 1 << 20  # bytes that are searched at once
_OVERLAP = 4 * (LONGEST + 2)  # every match lies within one piece, with its neighbours, in UTF-32 too
_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".onnx", ".gguf", ".h5", ".msgpack", ".inductor")


class Leak(NamedTuple):
    """Place that looks like a secret."""

    kind: str
    line: int


def leaks(text: str) -> Iterator[Leak]:
    """Find the first place of each kind of secret in a text."""
    return search(io.BytesIO(text.encode(errors="replace")))


def leaks_of(path: Path) -> Iterator[Leak]:
    """Find secrets in a whole file, or in the header of a safetensors file; other weights are skipped.

    Text in UTF-16, of either byte order and at any offset, is covered. Raises OSError.
    """
    if path.suffix in _WEIGHTS or not path.is_file():
        return
    with path.open("rb") as file:
        if path.suffix == ".safetensors":
            length = int.from_bytes(file.read(8), "little")
            yield from search(io.BytesIO(file.read(min(length, MAX_HEADER_BYTES))))
        else:
            yield from search(file)


def search(file: BinaryIO) -> Iterator[Leak]:
    """Find the first place of each kind of secret in the rest of a file, read in overlapping pieces."""
    missing = {kind: (needed, pattern) for kind, needed, pattern in PATTERNS}
    piece, lines, first = b"", 1, True
    while missing:
        more = file.read(_PIECE)
        piece, last = piece + more, len(more) < _PIECE
        # Without its zeros UTF-16 is its letters in ASCII, and so is UTF-32.
        texts = [piece, piece.replace(b"\0", b"")] if b"\0" in piece else [piece]
        for kind, (needed, pattern) in list(missing.items()):
            held = [text for text in texts if any(part in text for part in needed)]
            found = next((at for text in held if (at := _first(pattern, text, first, last)) is not None), None)
            if found is not None:
                del missing[kind]
                yield Leak(kind, lines + found)
        if last:
            return
        done = max(len(piece) - _OVERLAP, 0)
        lines += piece.count(b"\n", 0, done)
        piece, first = piece[done:], first and not done


def _first(pattern: re.Pattern[bytes], text: bytes, first: bool, last: bool) -> int | None:
    """Count the lines before the first match; None without one that lies in the text with its neighbours."""
    for found in pattern.finditer(text):
        if (first or found.start()) and (last or found.end() < len(text)):
            return text.count(b"\n", 0, found.start())
    return None


def refuse_secrets(texts: Mapping[str, str], files: Mapping[str, Path]) -> None:
    """Raise SecretFound if a text or a file, both keyed by path in the bundle, holds something like a secret."""
    found = [(path, leak) for path, text in texts.items() for leak in leaks(text)]
    found += [(path, leak) for path, source in files.items() for leak in leaks_of(source)]
    for path, leak in found:
        raise SecretFound(
            f"{path}, line {leak.line}, would hold {leak.kind}.",
            "Revoke it and take it out of the model's folder or the settings; pass secrets by reference.",
            where=path,
        )
