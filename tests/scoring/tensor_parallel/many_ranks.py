"""A rank that serves one model after another, so that a test of many families starts it once.

`python -m tests.scoring.tensor_parallel.many_ranks FD RANK` stands in for `worker`; rank 0's side is `Many`.
"""

import os
import pickle
import shutil
import sys
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import transformers

from scoring.tensor_parallel.rpc import RpcServer
from scoring.tensor_parallel.worker import load
from scoring.tensor_parallel.workers import ShardSpec, Workers, new_shard_spec, slice_model


class Many:
    """Rank 0's side: `slice` gives the next model's slice."""

    def __init__(self, degree: int, call_s: float) -> None:
        self._degree, self._call_s = degree, call_s
        self.ranks: Workers | None = None

    def slice(self, folder: Path) -> Any:
        """A model cut over the ranks, which follow it from now on; they are `ranks`."""
        model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        plan = new_shard_spec(model, self._degree, "cpu", self._call_s)
        if self.ranks is None:
            self.ranks = Workers(plan)
        else:
            shutil.rmtree(plan.meeting)  # they have met already
            self.ranks.send(("next", asdict(plan)))
        self.ranks.wait_loaded(60)
        slice_model(model, plan, 0)
        self.ranks.wait_ready(60)
        return model

    def stop(self) -> None:
        """End the ranks."""
        if self.ranks is not None:
            self.ranks.stop()


class _Next(Exception):
    """Another model is to be served."""


class _Serving(RpcServer):
    def _make(self, name: str, arguments: dict[str, Any]) -> None:
        if name == "next":
            raise _Next(ShardSpec(**arguments))
        super()._make(name, arguments)


def main(descriptor: int, rank: int) -> None:
    """Serve until rank 0 closes the socket."""
    os.dup2(2, 1)
    pipe = Connection(descriptor)
    plan = ShardSpec(**pickle.loads(pipe.recv_bytes()))
    while True:
        model = load(plan, rank)
        pipe.send_bytes(pickle.dumps("loaded"))
        slice_model(model, plan, rank)
        pipe.send_bytes(pickle.dumps("ready"))
        try:
            _Serving(pipe, model, plan, rank).run()
            os._exit(0)
        except _Next as following:
            (plan,) = following.args


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
