"""SmolLM2's tokens beside a busy process, as the system's OpenMP waits and as ours does; processes take turns.

A fair share of `cores` cores beside one busy thread is cores / (cores + 1) of the quiet speed.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import Any

from scoring.limits import cpus

TOKENS = 8
SHARE = 0.7
_IDLE = 0.25  # load average a core; of a machine that does more, some of what is measured is others' work
_OPENMP = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def busy(load: float, cores: int) -> bool:
    """Whether a load average says that the cores had other work."""
    return load > _IDLE * cores


def run(budget_s: float) -> list[dict[str, Any]]:
    """A row a way of waiting: seconds for some tokens, quiet and busy; ends the process where others use the cores."""
    load = os.getloadavg()[0]
    print(f"load average {load:.2f} on {cpus.cores()} cores", flush=True)
    if busy(load, cpus.cores()):
        sys.exit("Others use the cores: the quiet figures would be theirs. Measure on an idle machine.")
    rows = []
    with ExitStack() as stack:
        workers = {name: stack.enter_context(_worker(name)) for name in ("system", "ours")}
        times: dict[tuple[str, bool], list[float]] = {
            (name, beside): [] for name in workers for beside in (False, True)
        }
        end = time.perf_counter() + 2 * budget_s
        while len(times["ours", True]) < 3 or time.perf_counter() < end:
            for beside in (False, True):
                with _busy() if beside else ExitStack():
                    for name, worker in workers.items():
                        times[name, beside].append(_ask(worker))
    fair = cpus.cores() / (cpus.cores() + 1)
    for name in workers:
        quiet, busy_s = median(times[name, False]), median(times[name, True])
        share = quiet / busy_s / fair
        row = {"waiting": name, "quiet s": quiet, "quiet least s": min(times[name, False]), "busy s": busy_s}
        rows.append({**row, "of the fair share": share, "bars": {"0.7 of the fair share": share >= SHARE}})
    return rows


@contextmanager
def _worker(waiting: str) -> Iterator["subprocess.Popen[str]"]:
    kept = {name: value for name, value in os.environ.items() if name not in _OPENMP}
    child = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.cpu.neighbour", waiting],
        env=kept,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        _ask(child)
        yield child
    finally:
        child.kill()
        child.wait()


@contextmanager
def _busy() -> Iterator[None]:
    child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        child.kill()
        child.wait()


def _ask(worker: "subprocess.Popen[str]") -> float:
    assert worker.stdin and worker.stdout
    print(file=worker.stdin, flush=True)
    return float(worker.stdout.readline())


def _work(waiting: str) -> None:
    """Generate some tokens for each line that comes, and print the seconds."""
    if waiting == "ours":
        cpus.settle()
    import torch
    import transformers

    from mii_azure.model.packaged import packaged_model

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(packaged_model("smollm2"), dtype=torch.float32).eval()
    ids = torch.arange(1000, 1020)[None]
    for _ in sys.stdin:
        began = time.perf_counter()
        model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False
        )
        print(time.perf_counter() - began, flush=True)


if __name__ == "__main__":
    _work(sys.argv[1])
