"""The scoring script of the stub bundle: what generation renders, over an echo instead of a model."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from scoring import entry


def init() -> None:
    """Load."""
    entry.init()


def run(raw: str) -> object:
    """Answer one request."""
    return entry.run(raw)
