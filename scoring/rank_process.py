"""One of the other ranks of a sliced model: `python -m scoring.rank_process FD RANK`, started by `scoring.ranks`."""

import os
import pickle
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from scoring.ranks import Plan, slice_model
from scoring.shipped_int8 import from_pretrained
from scoring.sliced import Follower


def serve(pipe: Connection, rank: int) -> None:
    """A rank other than 0: load, join, then follow calls until rank 0 closes the socket."""
    plan = Plan(**pickle.loads(pipe.recv_bytes()))  # noqa: S301
    try:
        model = load(plan, rank)
        pipe.send_bytes(pickle.dumps("loaded"))
        slice_model(model, plan, rank)
    except Exception as error:
        pipe.send_bytes(pickle.dumps((str(error).strip().splitlines() or [type(error).__name__])[0][:300]))
        raise
    pipe.send_bytes(pickle.dumps("ready"))
    Follower(pipe, model, plan, rank).run()


def load(plan: Plan, rank: int) -> Any:
    """The whole model, from its folder, in eval mode; in host memory."""
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if plan.device == "cuda":
        torch.cuda.set_device(rank)
    cls, dtype = getattr(transformers, plan.architecture), getattr(torch, plan.dtype)
    return from_pretrained(cls, Path(plan.folder), dtype=dtype, local_files_only=True).eval()


def main(arguments: Sequence[str]) -> None:
    """`FD RANK`: the socket to rank 0, and which rank this is."""
    descriptor, rank = map(int, arguments)
    os.dup2(2, 1)  # what DeepSpeed prints belongs to the log
    serve(Connection(descriptor), rank)
    os._exit(0)  # the group's threads need not be waited for


if __name__ == "__main__":
    main(sys.argv[1:])
