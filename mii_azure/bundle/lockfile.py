"""Reads a requirements lock: names, versions, hashes; and finds its gaps."""

import re
from collections.abc import Iterator
from typing import NamedTuple

_HASH = re.compile(r"--hash=(\S+)")
_PIN = re.compile(r"^(?P<name>[A-Za-z0-9][\w.-]*)(?:\[[^\]]*\])?==(?P<version>[^\s;]+)")


class Pin(NamedTuple):
    """Requirement of a lock."""

    name: str
    version: str  # "" if it is not pinned
    hashes: tuple[str, ...]  # as written, e.g. "sha256:0a30..."
    line: int


def pins(text: str) -> Iterator[Pin]:
    """Yield every requirement of a lock, in order; options and comments are skipped."""
    number = 1
    for logical in re.split(r"(?<!\\)\n", text.replace("\r\n", "\n").rstrip("\n")):
        content = re.sub(r"(^|\s)#.*", "", logical).strip()
        if content and not content.startswith("--"):
            match = _PIN.match(content)
            name = match["name"] if match else re.split(r"[\s;<>=!~\[]", content, maxsplit=1)[0]
            yield Pin(name, match["version"] if match else "", tuple(_HASH.findall(content)), number)
        number += logical.count("\n") + 1


def gaps(text: str) -> list[str]:
    """List one sentence for each requirement that is not pinned, or has no SHA-256."""
    found = []
    for pin in pins(text):
        if not pin.version:
            found.append(f"{pin.name} is not pinned to a version.")
        elif not any(re.fullmatch(r"sha256:[0-9a-f]{64}", digest) for digest in pin.hashes):
            found.append(f"{pin.name} has no SHA-256.")
    return found
