"""DeepSpeed's process group inside a serving process, without the parts that may hang or crash there."""

import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

_LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"  # interface names, as gloo and NCCL expect them


def environment(rank: int, degree: int, device: str) -> dict[str, str]:
    """Environment variables that tell DeepSpeed a rank's place; without LOCAL_SIZE its shared memory is uninitialised.

    All ranks are on this machine: gloo and NCCL listen on loopback alone.
    """
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(degree),
        "LOCAL_SIZE": str(degree),
        "DS_ACCELERATOR": device,
        "GLOO_SOCKET_IFNAME": _LOOPBACK,
        "NCCL_SOCKET_IFNAME": f"={_LOOPBACK}",  # without "=" it matches every name with this prefix
    }


def join(rank: int, degree: int, folder: str, device: str, timeout_s: float) -> Any:
    """Join the process group, once per process, over NCCL or gloo; returns the deepspeed module.

    Ranks meet in a file in `folder`, which must be this user's alone: torch's TCP store listens on all interfaces and
    takes keys from anybody. One rank by itself meets nobody, and needs no folder.

    DeepSpeed's shared-memory reduction is left out: it is built at first use, and an interrupted build
    leaves a lock on which every later process waits forever.
    """
    os.environ.update(environment(rank, degree, device))
    import deepspeed
    import torch.distributed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.utils.logger.setLevel("WARNING")
    backend, timeout = "nccl" if device == "cuda" else "gloo", timedelta(seconds=timeout_s)
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group(
            backend,
            store=_store(degree, folder),
            rank=rank,
            world_size=degree,
            timeout=timeout,
            device_id=torch.device("cuda", rank) if device == "cuda" and degree > 1 else None,
        )
    if not deepspeed.comm.is_initialized():
        deepspeed.init_distributed(dist_backend=backend, timeout=timeout, verbose=False, auto_mpi_discovery=False)
    return deepspeed


def _store(degree: int, folder: str) -> Any:
    from torch.distributed import FileStore, HashStore  # type: ignore[attr-defined]

    return HashStore() if degree == 1 else FileStore(str(Path(folder) / "store"), degree)


def leave() -> None:
    """Leave the process group, so that another one can be joined."""
    import torch.distributed

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    try:
        import deepspeed.comm.comm as communication
        from deepspeed.inference.engine import InferenceEngine
        from deepspeed.utils import groups
    except ImportError:
        return
    communication.cdb = None
    InferenceEngine.inference_mp_group = None
    for name, value in vars(groups).items():  # DeepSpeed's cached groups belong to the process group being left
        if isinstance(value, torch.distributed.ProcessGroup):
            setattr(groups, name, None)
