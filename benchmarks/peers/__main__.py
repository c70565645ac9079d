"""LitServe, Azure's own server and ours with the same MiniLM model: requests/s and latencies at 1 to 128 clients.

`python -m benchmarks.peers` prints the table, writes benchmarks/results/peers.json and puts it into
docs/performance.md; about four minutes. Every server has the machine to itself while it is measured, and they take
turns, so that a busy moment falls on all. `--tune` tells how LitServe does at 32 clients with other batches and waits.
"""

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import mii_azure
from benchmarks import tables
from benchmarks.hosts import here
from benchmarks.peers import servers
from mii_azure.model.packaged import packaged_model
from scoring.encoder.real_text import LEAST_COSINE

CLIENTS = (1, 8, 32, 128)
ROUNDS = 3
SECONDS = 1.5
PACKAGES = ("litserve", "azureml-inference-server-http", "torch", "transformers")
RESULT = tables.RESULTS / "peers.json"
_WORDS = """the a of to in is that for it with as was on are by this be from or an at not have has had which they you
can food water house river mountain city music paper market history science engine harbour garden window"""
LENGTHS = (6, 12, 9, 31, 18, 7, 14, 48, 10, 22, 8, 16, 27, 11, 64, 13)  # words of the texts, in turn


class Load:
    """The load generator."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "benchmarks.peers.load"]
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, server: servers.Server, clients: int, seconds: float) -> dict[str, Any]:
        command = {"protocol": server.protocol, "port": server.port, "bodies": bodies()}
        assert self._child.stdin and self._child.stdout
        print(json.dumps({**command, "clients": clients, "seconds": seconds}), file=self._child.stdin, flush=True)
        line = self._child.stdout.readline()
        if not line:
            raise RuntimeError(f"the load on {server.name} broke off")
        return json.loads(line)

    def close(self) -> None:
        self._child.kill()


def texts() -> list[str]:
    """Sixty-four texts of 6 to 64 words, always the same."""
    words = _WORDS.split()
    return [
        " ".join(words[(number * 7 + at * at) % len(words)] for at in range(LENGTHS[number % len(LENGTHS)]))
        for number in range(64)
    ]


def bodies() -> list[str]:
    return [json.dumps({"inputs": text}) for text in texts()]


def bundle(folder: Path, name: str, **preferences: Any) -> Path:
    return mii_azure.generate(
        task="sentence-embeddings",
        model=str(packaged_model("minilm")),
        deployment_name=name,
        instance_type="Standard_F8s_v2",
        output=folder / name,
        **preferences,
    )


def measure() -> dict[str, Any]:
    """All servers, all numbers of clients, in turns."""
    model = packaged_model("minilm")
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        folder = Path(scratch)
        running: list[servers.Server] = []
        for group in (
            lambda: (servers.litserve(model, folder),),
            lambda: (servers.azmlinfsrv(model, folder),),
            lambda: servers.ours("ours", bundle(folder, "minilm"), folder),
            lambda: servers.ours("ours, two processes", folder / "minilm", folder, "--replicas", "2")[:1],
            lambda: servers.ours("ours as float32", bundle(folder, "plain", passes_off=("cpu",)), folder)[:1],
        ):
            running += group()
            stack.callback(running[-1].kill)
            print(f"started {running[-1].name}", flush=True)
        differences = check(running)
        load = Load()
        stack.callback(load.close)
        rows = take_turns(running, load)
    return {
        **here(),
        "threads": os.environ.get("OMP_NUM_THREADS", "as many threads as cores"),
        "model": "all-MiniLM-L6-v2",
        "rows": rows,
        "differences": differences,
        "versions": {name: metadata.version(name) for name in PACKAGES},
    }


def check(running: Sequence[servers.Server]) -> dict[str, float]:
    """The largest distance of each HTTP server's vectors from the first one's; raises where one is another model's."""
    wanted, found = [], {}
    for server in running:
        if server.protocol != "http":
            continue
        with server.turn():
            vectors = [servers.ask(server.port, text) for text in texts()[:8]]
        wanted = wanted or vectors
        found[server.name] = max(math.dist(a, b) for a, b in zip(vectors, wanted, strict=True))
        if found[server.name] > math.sqrt(2 - 2 * LEAST_COSINE):  # as far as number formats may be
            raise RuntimeError(f"{server.name} answers other vectors: {found[server.name]:.3f} apart")
    return found


def take_turns(running: Sequence[servers.Server], load: Load) -> list[dict[str, Any]]:
    seen: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for number in range(ROUNDS):
        print(f"round {number + 1} of {ROUNDS}", flush=True)
        for clients in CLIENTS:
            for server in running:
                with server.turn():
                    load(server, clients, 0.3)  # what the last turn left cold
                    seen.setdefault((server.name, clients), []).append(load(server, clients, SECONDS))
    return [row(name, clients, loads) for (name, clients), loads in seen.items()]


def row(name: str, clients: int, loads: Sequence[dict[str, Any]]) -> dict[str, Any]:
    latencies = sorted(seconds for load in loads for seconds in load["latencies"])
    rates = [len(load["latencies"]) / load["elapsed"] for load in loads]
    return {
        "server": name,
        "clients": clients,
        "requests_per_s": median(rates),
        "p50_ms": latencies[len(latencies) // 2] * 1e3,
        "p99_ms": latencies[int(len(latencies) * 0.99)] * 1e3,
        "requests": len(latencies),
        "refused": sum(len(load["refused"]) for load in loads),
        "rates": rates,
        "load_ms": sum(load["processor"] for load in loads) / len(latencies) * 1e3,  # of the generator, each request
    }


def tune() -> None:
    """LitServe at 32 clients, with other batches and waits."""
    model = packaged_model("minilm")
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        load = Load()
        stack.callback(load.close)
        grid = {}
        for size in (8, 16, 32, 64):
            for wait in (0.0, 0.001, 0.002, 0.005, 0.01):
                server = servers.litserve(model, Path(scratch), str(size), str(wait))
                with server.turn():
                    load(server, 32, 1.0)
                    grid[size, wait] = load(server, 32, 3.0)
                server.kill()
                done = grid[size, wait]
                print(
                    f"{size:3d} rows, {wait * 1e3:4.0f} ms: {len(done['latencies']) / done['elapsed']:6.0f} requests/s"
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tune", action="store_true", help="try LitServe's settings")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no stopped server is left behind
    if parser.parse_args().tune:
        tune()
        return
    result = measure()
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    tables.write()
    print(tables.peers(result))


if __name__ == "__main__":
    main()
