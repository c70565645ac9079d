"""File in which a runner reports its state to the process that started it. Standard library only."""

import json
import os
from pathlib import Path
from typing import Any


def write(path: Path | None, state: str, grpc_port: int = 0, http_port: int = 0, **more: Any) -> None:
    """Replace the file at `path` atomically: pid, ports (0 while unbound), state, and `error` if it failed."""
    if path is None:
        return
    fields = {"pid": os.getpid(), "grpc_port": grpc_port, "http_port": http_port, "state": state, **more}
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(fields), encoding="utf-8")
    partial.replace(path)


def read(path: Path) -> dict[str, Any]:
    """Read the runner's last report; empty before the first one and after it has stopped."""
    try:
        fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return fields
    except FileNotFoundError:
        return {}
