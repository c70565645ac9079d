"""Packages of npm that judge what we write; tests skip without them."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

MODULES = Path(__file__).resolve().parents[1] / ".cache" / "npm" / "node_modules"


def modules(package: str) -> Path:
    """Where npm's packages are; skips the test without node, or without this one."""
    folder = Path(os.environ.get("MII_AZURE_NODE_MODULES") or MODULES)
    if not shutil.which("node") or not (folder / package).is_dir():
        pytest.skip(f"needs node and npm's {package}: `make azure-npm`")
    return folder.resolve()


def node(script: Path, package: str, value: Any) -> Any:
    """What a script makes of a value: JSON in, JSON out; its argument is the folder of packages."""
    command = ["node", str(script), str(modules(package))]
    done = subprocess.run(command, input=json.dumps(value), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
