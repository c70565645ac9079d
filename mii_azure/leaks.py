"""What a secret looks like in a file. The file and the kind are told, the secret never is."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from mii_azure.errors import SecretFound

PATTERNS = (
    ("a Hugging Face token", re.compile(r"\bhf_[A-Za-z0-9]{30,}")),
    ("a GitHub token", re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{60,})")),
    ("an Azure storage key", re.compile(r"\bAccountKey=[A-Za-z0-9+/=]{40,}")),
    ("a shared access signature", re.compile(r"[?&;]sig=[A-Za-z0-9%+/=]{30,}")),
    ("an Azure client secret", re.compile(r"\b[A-Za-z0-9_~.-]{3}\dQ~[A-Za-z0-9_~.-]{31,34}\b")),
    ("a bearer token", re.compile(r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}")),
    ("an AWS key", re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b")),
    ("an API key", re.compile(r"\bsk-[A-Za-z0-9_-]{32,}")),
    ("a private key", re.compile(r"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----")),
    ("a password in an address", re.compile(r"://[^/\s:@]+:[^/\s:@{$]{3,}@")),
)
LARGEST_TEXT = 1 << 20  # bytes; vocabularies and weights are larger or of another kind


class Leak(NamedTuple):
    """A place that looks like a secret."""

    kind: str
    line: int


def leaks(text: str) -> Iterator[Leak]:
    """The first place of each kind of secret in a text."""
    for kind, pattern in PATTERNS:
        found = pattern.search(text)
        if found:
            yield Leak(kind, text.count("\n", 0, found.start()) + 1)


def refuse_secrets(texts: Mapping[str, str], files: Mapping[str, Path]) -> None:
    """Raise SecretFound if a text, or a file that is text of up to LARGEST_TEXT bytes, holds what looks like a secret.

    Both are keyed by their path in the bundle.
    """
    for path, text in (*texts.items(), *_read(files)):
        for leak in leaks(text):
            raise SecretFound(
                f"{path}, line {leak.line}, would hold {leak.kind}.",
                "Revoke it and take it out of the model's folder or the settings; pass secrets by reference.",
                where=path,
            )


def _read(files: Mapping[str, Path]) -> Iterator[tuple[str, str]]:
    for path, source in files.items():
        if source.stat().st_size <= LARGEST_TEXT:
            try:
                yield path, source.read_text(encoding="utf-8")
            except ValueError:
                continue
