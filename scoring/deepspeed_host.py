"""DeepSpeed inside a serving process: its process group, without what may hang or crash there."""

import os
import socket
from datetime import timedelta
from typing import Any


def free_port() -> int:
    """A TCP port on loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(rank: int, degree: int, port: int, device: str) -> dict[str, str]:
    """What DeepSpeed reads of a rank's place; without LOCAL_SIZE its shared memory is used uninitialised."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(degree),
        "LOCAL_SIZE": str(degree),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "DS_ACCELERATOR": device,
    }


def join(rank: int, degree: int, port: int, device: str, timeout_s: float) -> Any:
    """Join the process group, once per process, over NCCL or gloo; returns the deepspeed module.

    DeepSpeed's shared-memory reduction is left out: it is built at first use, and a build that was ever interrupted
    leaves a lock for which every later process waits for ever.
    """
    os.environ.update(environment(rank, degree, port, device))
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.utils.logger.setLevel("WARNING")
    if not deepspeed.comm.is_initialized():
        deepspeed.init_distributed(
            dist_backend="nccl" if device == "cuda" else "gloo",
            timeout=timedelta(seconds=timeout_s),
            verbose=False,
            auto_mpi_discovery=False,
        )
    return deepspeed


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
    for name, value in vars(groups).items():  # the groups that DeepSpeed has cached belong to the one that is left
        if isinstance(value, torch.distributed.ProcessGroup):
            setattr(groups, name, None)
