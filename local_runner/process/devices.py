"""GPUs of this machine, without a library that would open them. Standard library only."""

import re
from collections.abc import Mapping
from pathlib import Path

_NODE = re.compile(r"nvidia\d+")


def gpus(environment: Mapping[str, str], devices: Path = Path("/dev")) -> list[str]:
    """GPUs that this process may use: CUDA_VISIBLE_DEVICES, or all of the machine's."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    return [str(index) for index in range(sum(bool(_NODE.fullmatch(node.name)) for node in devices.iterdir()))]
