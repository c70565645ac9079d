"""Tokens per second and latencies by a user's way in: generate, serve, and clients over HTTP, on one GPU or a CPU.

    python -m benchmarks.over_http [--only NAME ...] [--clients N ...] [--front-ends N ...] [--out FOLDER]

A folder with random weights of the real shape becomes a bundle by `mii-azure generate`; `mii-azure serve` answers on
loopback; processes of clients, each with many connections, send requests of 16 to 256 prompt tokens that get exactly
128, greedily, all at once. Streams are read event by event. Floors are in decoders.json, which measures the same shapes
in process; `benchmarks.waits` has long prompts.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Any

from benchmarks.command_line import RESULTS
from benchmarks.common import provenance, table, write
from benchmarks.decoder_shapes import CASES
from benchmarks.host_side import front_ends_of, processor_s
from benchmarks.http_clients import ANSWER_S, LONGEST, LOOPBACK, NEW, SHORTEST, WHOLE

PROCESSES = 4  # of clients
WAYS = ("whole", "stream", "openai")
START_S = 300.0
_TIMES = ("first p50", "first p99", "next p50", "next p99")
COLUMNS = ("model", "front ends", "clients", "way", "tokens/s", *_TIMES, "engine us", "front ends us", "failed")


@dataclass(frozen=True)
class Shape:
    """A model to serve: its architecture, config and precision."""

    architecture: str
    config: dict[str, Any]
    dtype: str = "bfloat16"
    flags: tuple[str, ...] = field(default=())


_LLAMA_3B = {
    "vocab_size": 128256, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28,
    "num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 131072,
    "tie_word_embeddings": True, "rope_theta": 500000.0,
}  # fmt: skip
SHAPES = {
    "llama-1.1b": Shape("LlamaForCausalLM", CASES["llama-1.1b"].config, "float16"),
    "qwen3-0.6b": Shape("Qwen3ForCausalLM", CASES["qwen3-0.6b"].config | {"max_position_embeddings": 40960}),
    "llama-3.2-3b": Shape("LlamaForCausalLM", _LLAMA_3B),
    "tiny": Shape(
        "LlamaForCausalLM",
        {"vocab_size": 2100, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024},
        "float32",
    ),
}  # fmt: skip


def build(shape: Shape, folder: Path, instance_type: str, flags: Sequence[str] = ()) -> None:
    """Write the shape's model folder and its bundle."""
    write_model(shape, folder)
    write_bundle(shape, folder, instance_type, flags)


def write_model(shape: Shape, folder: Path) -> None:
    """Write the shape's model folder, with random weights."""
    import torch

    from benchmarks.throughput import write_folder

    device = "cuda" if torch.cuda.is_available() else "cpu"
    write_folder(shape.architecture, shape.config, getattr(torch, shape.dtype), device, folder / "model")


def write_bundle(shape: Shape, folder: Path, instance_type: str, flags: Sequence[str] = ()) -> None:
    """Write the bundle of the folder's model, as a user does."""
    command = [sys.executable, "-m", "mii_azure.cli.app", "generate", "--task", "text-generation", "--model"]
    command += [str(folder / "model"), "--name", "bench", "--instance-type", instance_type, "--server", "http"]
    command += ["--dtype", shape.dtype, "--output", str(folder / "bundle"), *shape.flags, *flags]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (folder / "plan.md").write_bytes((folder / "bundle" / "plan.md").read_bytes())


@contextmanager
def served(folder: Path, arguments: list[str]) -> Iterator[tuple[int, int]]:
    """Process and port of a server of the folder's bundle, ready."""
    command = [sys.executable, "-m", "mii_azure.cli.app", "serve", str(folder / "bundle"), "--http-port", "0"]
    command += arguments
    with (folder / "serve.log").open("wb") as log:
        server = subprocess.Popen([*command, "--grpc-port", "0"], stdout=log, stderr=log, start_new_session=True)
        try:
            yield server.pid, port_of(server, folder / "serve.log")
        except BaseException:
            print((folder / "serve.log").read_text(encoding="utf-8")[-4000:])
            raise
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(60)


def port_of(server: "subprocess.Popen[bytes]", log: Path) -> int:
    """Wait until the server is ready, and read its HTTP port from its log."""
    end = time.monotonic() + START_S
    while time.monotonic() < end and server.poll() is None:
        text = log.read_text(encoding="utf-8")
        if "ready: " in text and (found := text.rpartition("http://127.0.0.1:")[2]) != text:
            return int("".join(c for c in found[:5] if c.isdigit()))
        time.sleep(0.2)
    raise RuntimeError(f"the server did not start:\n{log.read_text(encoding='utf-8')[-4000:]}")


def load(port: int, clients: int, way: str, seed: int, host: str = LOOPBACK) -> dict[str, Any]:
    """One row: so many clients at once, from processes of their own."""
    step = min(PROCESSES, clients)
    command = [sys.executable, "-m", "benchmarks.http_clients"]
    children = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(step)
    ]
    for at, child in enumerate(children):
        assert child.stdin and child.stdout
        told = {"host": host, "port": port, "all": clients, "way": way, "seed": seed, "at": at, "step": step}
        child.stdin.write(json.dumps(told) + "\n")
        child.stdin.flush()
        child.stdout.readline()
    for child in children:
        assert child.stdin
        child.stdin.write("go\n")
        child.stdin.flush()
    results = [json.loads(child.communicate(timeout=ANSWER_S)[0]) for child in children]
    seconds = max(each["ended"] for each in results) - min(each["began"] for each in results)
    failed = sum(each["failed"] for each in results)
    row: dict[str, Any] = {"clients": clients, "way": way, "failed": failed}
    row["tokens/s"] = (clients - failed) * NEW / seconds
    for each in results:  # of a request, whatever events its tokens came in
        each["token"] = [(b - a) / (NEW - 1) for a, b in zip(each["first"], each["whole"], strict=True)]
    for name in ("first", "next", "token"):
        values = [value for each in results for value in each[name]]
        cuts = quantiles([*values, *values], n=100) if values and way not in WHOLE else []  # one value has none
        row |= {f"{name} p{p}": cuts[p - 1] if cuts else None for p in (50, 99)}
    return row


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """All rows of one shape; every row is asked twice, and the second is told."""
    shape, rows = SHAPES[name], []
    with tempfile.TemporaryDirectory() as folder:
        build(shape, Path(folder), options.instance_type, options.flags)
        for front_ends in options.front_ends or [None]:
            arguments = [] if front_ends is None else ["--front-ends", str(front_ends)]
            with served(Path(folder), arguments) as (pid, port):
                for each in ("plan.md", "serve.log"):
                    (options.out / f"{name}-{each}").write_bytes((Path(folder) / each).read_bytes())
                for count in options.clients:
                    for way in options.ways:
                        load(port, count, way, 1)
                        others = front_ends_of(pid)
                        before, before_others = processor_s(pid), sum(map(processor_s, others))
                        row = {"model": name, "front ends": len(others)} | load(port, count, way, 2)
                        row["engine us"] = 1e6 * (processor_s(pid) - before) / (count * NEW)  # of a token
                        spent = sum(map(processor_s, others)) - before_others
                        row["front ends us"] = 1e6 * spent / (count * NEW)
                        rows.append(row)
                        print(table(COLUMNS, [row]).splitlines()[-1], flush=True)
    return {"rows": rows, "flags": options.flags}


def main() -> None:
    """Measure every shape, and write over_http.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", default=[name for name in SHAPES if name != "tiny"], choices=SHAPES)
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 256])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="of generate; the last option")
    parser.add_argument("--instance-type", default="Standard_NC40ads_H100_v5")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--front-ends", nargs="+", type=int, help="each in turn; what serve decides when absent")
    chosen = parser.parse_args()
    results: dict[str, Any] = {}
    print(table(COLUMNS, []))
    for name in chosen.only:
        results[name] = measure(name, chosen)
        write("over_http", provenance() | {"load": [SHORTEST, LONGEST, NEW], "models": results}, chosen.out)


if __name__ == "__main__":
    main()
