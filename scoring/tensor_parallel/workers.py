"""Rank processes of a sliced model: rank 0 is the serving process, the others follow its calls.

Rank 0 sends each call over a socket, and all run it side by side. A rank that dies, or does not answer in time, ends
the call with `RankLost`; from then on the model is lost. The others run `tensor_parallel.worker`. They end with
rank 0, however it ends. Nothing listens outside loopback, and ranks meet in a private folder.
"""

import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

from scoring.distributed.process_group import environment, join, leave
from scoring.errors import RankLost
from scoring.tensor_parallel.experts import cut_experts
from scoring.tensor_parallel.joint_norms import cut_joint_norms
from scoring.tensor_parallel.repeated_heads import repeat_heads

START_S = 600.0  # timeout for a rank to load the model
_REAP_S = 3.0  # most time between a rank's sockets closing and its exit status
CALL_S = 60.0  # timeout of one collective operation, below that of a request
_GRAIN = 16  # inner widths are cut at multiples of it, so that rows of weights stay aligned


@dataclass(frozen=True)
class ShardSpec:
    """Model that every rank loads, and how it is sliced."""

    architecture: str  # a class of transformers
    folder: str
    dtype: str
    degree: int
    device: str  # "cuda" or "cpu"
    meeting: str  # folder in which the ranks find each other, 0700; whoever ends last removes it
    call_s: float


def slice_model(model: Any, plan: ShardSpec, rank: int) -> None:
    """Join the group and reduce a loaded model to this rank's slice, in place, by DeepSpeed's AutoTP.

    AutoTP cuts a decoder's head over its inputs and sums the logits; here each rank keeps the whole head instead, which
    is often the embedding anyway.
    """
    import torch

    repeat_heads(model, plan.degree)
    cut_experts(model, rank, plan.degree)
    cut_joint_norms(model, rank, plan.degree)
    deepspeed = join(rank, plan.degree, plan.meeting, plan.device, plan.call_s)
    answers = model.can_generate() and not model.config.is_encoder_decoder
    head = model.get_output_embeddings() if answers else None
    whole = {} if head is None else dict(head.named_parameters())
    deepspeed.init_inference(
        model,
        dtype=getattr(torch, plan.dtype),
        tensor_parallel={"tp_size": plan.degree, "tp_grain_size": _GRAIN},
        replace_with_kernel_inject=False,
    )
    if head is not None:
        device = model.get_input_embeddings().weight.device
        for name, parameter in whole.items():
            moved = parameter if parameter.device == device else torch.nn.Parameter(parameter.data.to(device), False)
            setattr(head, name, moved)
        model.set_output_embeddings(head)


class Workers:
    """Monitored processes of ranks 1 and up."""

    def __init__(self, plan: ShardSpec) -> None:
        self.plan = plan
        self.lost = ""  # reason why no call can be made any more
        self._stopping = False
        self._pipes: list[Connection] = []
        self.processes: list[subprocess.Popen[bytes]] = []
        for rank in range(1, plan.degree):
            self._spawn(rank)
        self._watch = threading.Thread(target=self._watch_processes, name="ranks", daemon=True)
        self._watch.start()

    def _spawn(self, rank: int) -> None:
        ours, theirs = Pipe()
        plan = self.plan
        here = str(Path(__file__).resolve().parents[2])
        paths = [here, *filter(None, [os.environ.get("PYTHONPATH")])]
        env = os.environ | environment(rank, plan.degree, plan.device)
        env["PYTHONPATH"] = os.pathsep.join(paths)
        command = [sys.executable, "-m", "scoring.tensor_parallel.worker", str(theirs.fileno()), str(rank)]
        # A session of its own: Ctrl-C and a terminal's end are for rank 0, which then drains.
        self.processes.append(subprocess.Popen(command, env=env, pass_fds=[theirs.fileno()], start_new_session=True))
        theirs.close()
        ours.send_bytes(pickle.dumps(asdict(plan)))
        self._pipes.append(ours)

    def _watch_processes(self) -> None:
        while not self._stopping and not self.lost:
            for rank, process in enumerate(self.processes, 1):
                if process.poll() is not None and not self._stopping:
                    self.lost = self.lost or f"rank {rank} of {self.plan.degree} ended with status {process.returncode}"
            time.sleep(0.05)

    def wait_loaded(self, timeout_s: float = START_S) -> None:
        """Wait until every rank has the model in memory; raises RankLost with the reason."""
        self.hear("loaded", timeout_s)

    def wait_ready(self, timeout_s: float = START_S) -> None:
        """Wait until every rank has its part; raises RankLost."""
        self.hear("ready", timeout_s)

    def hear(self, word: str, timeout_s: float = START_S) -> None:
        """Wait until every rank has sent this word; raises RankLost if one ended, or sent another."""
        end = time.monotonic() + timeout_s
        for rank, pipe in enumerate(self._pipes, 1):
            try:
                while not pipe.poll(0.1):
                    if self.lost or time.monotonic() > end:
                        raise RankLost(self.lost or f"Rank {rank} was not {word} within {timeout_s:g} s")
                said = pickle.loads(pipe.recv_bytes())  # noqa: S301
            except (EOFError, OSError) as error:
                raise RankLost(self.lost or f"Rank {rank} ended while it was starting") from error
            if said != word:
                raise RankLost(f"Rank {rank} failed: {said}")

    def send(self, call: tuple[str, dict[str, Any]]) -> None:
        """Have the other ranks make a call; raises RankLost."""
        message = pickle.dumps(call)
        self.check()
        try:
            for pipe in self._pipes:
                pipe.send_bytes(message)
        except OSError as error:
            raise self.fail(error) from error

    def check(self) -> None:
        """Raise RankLost if a rank is gone."""
        if self.lost:
            raise self._error()

    def fail(self, error: Exception) -> RankLost:
        """Error for a failure inside a call: names the rank that died; any other failure ends the group too."""
        end = time.monotonic() + _REAP_S
        while not self.lost and time.monotonic() < end:
            time.sleep(0.02)
        self.lost = self.lost or f"a call over {self.plan.degree} ranks failed: {str(error).strip()[:200]}"
        return self._error()

    def _error(self) -> RankLost:
        return RankLost(
            f"The model is cut over {self.plan.degree} ranks, and {self.lost}.", "The server has to be started again."
        )

    def stop(self) -> None:
        """End the other ranks and leave the group."""
        self._stopping = True
        for pipe in self._pipes:
            pipe.close()
        for process in self.processes:
            try:
                process.wait(2)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        leave()
        leave_nothing(self.plan)


def new_shard_spec(model: Any, degree: int, device: str, call_s: float = CALL_S) -> ShardSpec:
    """Plan for a model that was loaded from a folder."""
    dtype = str(model.dtype).removeprefix("torch.")
    meeting = tempfile.mkdtemp(prefix="mii-azure-ranks-")
    return ShardSpec(type(model).__name__, model.name_or_path, dtype, degree, device, meeting, call_s)


def calls(model: Any) -> list[str]:
    """Names of the methods that all ranks run."""
    return ["forward", "generate"] if model.can_generate() else ["forward"]


def leave_nothing(plan: ShardSpec) -> None:
    """Remove the folder in which the ranks met; rank 0 does so only if it takes the model back."""
    shutil.rmtree(plan.meeting, ignore_errors=True)
