"""Copies of a model's folder in which one file differs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any


def changed(source: Path, folder: Path, file: str, **changes: Any) -> Path:
    """Copy a model's folder, with keys of one file changed; a folder may be its own copy."""
    if source != folder:
        shutil.copytree(source, folder)
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")
    return folder
