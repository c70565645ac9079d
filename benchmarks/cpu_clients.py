"""Tokens per second of a decoder on a CPU over HTTP, by how a server divides the cores: threads, or processes.

`python -m benchmarks.cpu_clients [--model FOLDER] [--layouts NAME ...] [--out FOLDER]` generates a bundle, serves it in
each layout in turn, and writes cpu_clients.json: one client's stream, and 32 clients at once, whole and streamed, of 24
tokens each after prompts of some 10 to 60. Servers run one at a time, each layout twice; the better rate is told, and
both are kept. The clients share the cores. It wants an idle machine.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.command_line import RESULTS
from benchmarks.common import table, write
from benchmarks.cpu.__main__ import provenance
from benchmarks.over_http import served

NEW, CLIENTS, ROUNDS = 24, 32, 2
_WORDS = ("science", "history", "people", "river", "light", "stone", "winter", "machine", "letter", "garden", "music")
_SHORTEST, _LONGEST = 8, 48  # words of a prompt
WAYS = ((1, "stream"), (CLIENTS, "whole"), (CLIENTS, "stream"))


class Layout(NamedTuple):
    """One way to divide the cores: flags of serve, and OpenMP's threads where they are set."""

    flags: tuple[str, ...] = ()
    threads: int | None = None


LAYOUTS = {
    "what serve decides": Layout(),
    "one process, a thread": Layout(("--replicas", "1"), 1),
    "one process, a thread a core": Layout(("--replicas", "1"), len(os.sched_getaffinity(0))),
    "two processes": Layout(("--replicas", "2")),
}


def bundle(model: str, folder: Path) -> None:
    """Write a bundle as a user does."""
    command = [sys.executable, "-m", "mii_azure.cli.app", "generate", "--task", "text-generation", "--model", model]
    command += ["--name", "bench", "--server", "http", "--instance-type", "Standard_F4s_v2"]
    subprocess.run([*command, "--output", str(folder / "bundle")], check=True, stdout=subprocess.DEVNULL)


def texts(count: int, seed: int) -> list[str]:
    """Prompts, of the same lengths for every seed, with other words."""
    lengths, words = random.Random(0), random.Random(seed)
    return [" ".join(words.choices(_WORDS, k=lengths.randint(_SHORTEST, _LONGEST))) for _ in range(count)]


def load(port: int, clients: int, way: str, seed: int, new: int = NEW) -> float:
    """Tokens a second of so many clients at once, in a process of their own."""
    found = asked(port, clients, way, seed, new=new)
    return clients * new / float(found["ended"] - found["began"])


def asked(port: int, clients: int, way: str, seed: int, apart: float = 0.0, new: int = NEW) -> dict[str, Any]:
    """Times of so many clients, at once or seconds apart, in a process of their own."""
    told = {"port": port, "way": way, "texts": texts(clients, seed), "new": new, "apart": apart}
    command = [sys.executable, "-m", "benchmarks.http_clients"]
    done = subprocess.run(command, input=json.dumps(told) + "\ngo\n", capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if found["failed"]:
        raise RuntimeError(f"{found['failed']} of {clients} requests failed")
    return found


def measure(folder: Path, layout: Layout, seed: int) -> dict[str, float]:
    """Tokens a second of every way in, from a server of its own."""
    before = dict(os.environ)
    if layout.threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(layout.threads)
    try:
        with served(folder, list(layout.flags)) as (_, port):
            load(port, CLIENTS // 4, "whole", seed)
            return {f"{clients} {way}": load(port, clients, way, seed + 1) for clients, way in WAYS}
    finally:
        os.environ.clear()
        os.environ.update(before)


def main() -> None:
    """Measure every layout in turns, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="a folder; SmolLM2-135M-Instruct out of its package when absent")
    parser.add_argument("--layouts", nargs="+", default=list(LAYOUTS), choices=LAYOUTS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    os.environ.pop("OMP_NUM_THREADS", None)  # a server is to decide
    rows: list[dict[str, Any]] = [{"layout": name} for name in chosen.layouts]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if chosen.model is None:
            from mii_azure.model.packaged import packaged_model

            chosen.model = str(packaged_model("smollm2"))
        bundle(chosen.model, folder)
        for turn in range(ROUNDS):
            for row in rows:
                for way, rate in measure(folder, LAYOUTS[row["layout"]], 2 * turn).items():
                    row.setdefault("all", {}).setdefault(way, []).append(rate)
                    row[way] = max(row["all"][way])
                told = provenance() | {"model": Path(chosen.model).name, "new": NEW, "clients": CLIENTS, "rows": rows}
                write("cpu_clients", told, chosen.out)
                print(row, flush=True)
    print(table(("layout", *(f"{clients} {way}" for clients, way in WAYS)), rows))


if __name__ == "__main__":
    main()
