"""Process of a rank other than 0: `python -m scoring.tensor_parallel.worker FD RANK`, started by `workers`."""

import os
import pickle
import select
import sys
import threading
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from scoring.quantization.loading import from_pretrained
from scoring.tensor_parallel.rpc import RpcServer
from scoring.tensor_parallel.workers import ShardSpec, leave_nothing, slice_model

_ORDERLY_S = 1.0  # grace for a rank to end by itself once rank 0 is gone


def serve(pipe: Connection, rank: int) -> None:
    """Run a rank other than 0: load, join, then follow calls until rank 0 closes the socket."""
    plan = ShardSpec(**pickle.loads(pipe.recv_bytes()))  # noqa: S301
    threading.Thread(target=_end_with, args=(pipe.fileno(), plan), name="rank 0", daemon=True).start()
    try:
        model = load(plan, rank)
        pipe.send_bytes(pickle.dumps("loaded"))
        slice_model(model, plan, rank)
    except Exception as error:
        pipe.send_bytes(pickle.dumps((str(error).strip().splitlines() or [type(error).__name__])[0][:300]))
        raise
    pipe.send_bytes(pickle.dumps("ready"))
    RpcServer(pipe, model, plan, rank).run()
    leave_nothing(plan)


def _end_with(descriptor: int, plan: ShardSpec) -> None:
    """End this process once rank 0 has closed the socket, also inside a collective operation."""
    poll = select.poll()
    poll.register(descriptor, 0)  # hang-up is reported without being requested; nothing is read
    poll.poll()
    time.sleep(_ORDERLY_S)
    leave_nothing(plan)
    os._exit(1)


def load(plan: ShardSpec, rank: int) -> Any:
    """Load the whole model from its folder, in eval mode, in host memory."""
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if plan.device == "cuda":
        torch.cuda.set_device(rank)
    cls, dtype = getattr(transformers, plan.architecture), getattr(torch, plan.dtype)
    return from_pretrained(cls, Path(plan.folder), dtype=dtype, local_files_only=True).eval()


def main(arguments: Sequence[str]) -> None:
    """Entry point; arguments `FD RANK`: the socket to rank 0, and this rank's number."""
    descriptor, rank = map(int, arguments)
    os.dup2(2, 1)  # DeepSpeed's output goes to the log
    serve(Connection(descriptor), rank)
    os._exit(0)  # without waiting for the group's threads


if __name__ == "__main__":
    main(sys.argv[1:])
