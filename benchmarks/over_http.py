"""Tokens per second and latencies by a user's way in: generate, serve, and clients over HTTP, on one GPU or a CPU.

    python -m benchmarks.over_http [--only NAME ...] [--clients N ...] [--out FOLDER]

A folder with random weights of the real shape becomes a bundle by `mii-azure generate`; `mii-azure serve` answers on
loopback; processes of clients, each with many connections, send requests of 16 to 256 prompt tokens that get exactly
128, greedily, all at once. Streams are read event by event. `long` prompts are answered with one token, alone. Floors
are in decoders.json, which measures the same shapes in process.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import quantiles
from typing import Any

from benchmarks.common import RESULTS, provenance, table, write
from benchmarks.decoders import CASES

SHORTEST, LONGEST, NEW = 16, 256, 128
PROCESSES = 4  # of clients
START_S, ANSWER_S = 300.0, 200.0
COLUMNS = ("model", "clients", "way", "tokens/s", "first p50", "first p99", "next p50", "next p99", "failed")


@dataclass(frozen=True)
class Shape:
    """A model to serve: its architecture, config, precision, and lengths of `long` prompts to time."""

    architecture: str
    config: dict[str, Any]
    dtype: str = "bfloat16"
    long: tuple[int, ...] = ()
    flags: tuple[str, ...] = field(default=())


_LLAMA_3B = {
    "vocab_size": 128256, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28,
    "num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 131072,
    "tie_word_embeddings": True, "rope_theta": 500000.0,
}  # fmt: skip
SHAPES = {
    "llama-1.1b": Shape("LlamaForCausalLM", CASES["llama-1.1b"].config, "float16"),
    "qwen3-0.6b": Shape("Qwen3ForCausalLM", CASES["qwen3-0.6b"].config | {"max_position_embeddings": 40960}),
    "llama-3.2-3b": Shape("LlamaForCausalLM", _LLAMA_3B, long=(512, 8192, 32768, 100000)),
    "tiny": Shape(
        "LlamaForCausalLM",
        {"vocab_size": 2100, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024},
        "float32", long=(512,),
    ),
}  # fmt: skip


@contextmanager
def served(name: str, shape: Shape, folder: Path, instance_type: str) -> Iterator[int]:
    """The port of a server of the shape's bundle, ready."""
    import torch

    from benchmarks.throughput import write_folder

    device = "cuda" if torch.cuda.is_available() else "cpu"
    write_folder(shape.architecture, shape.config, getattr(torch, shape.dtype), device, folder / "model")
    command = [sys.executable, "-m", "mii_azure.cli.app", "generate", "--task", "text-generation", "--model"]
    command += [str(folder / "model"), "--name", "bench", "--instance-type", instance_type, "--server", "http"]
    command += ["--dtype", shape.dtype, "--output", str(folder / "bundle"), *shape.flags]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (folder / "plan.md").write_bytes((folder / "bundle" / "plan.md").read_bytes())
    command = [sys.executable, "-m", "mii_azure.cli.app", "serve", str(folder / "bundle"), "--http-port", "0"]
    with (folder / "serve.log").open("wb") as log:
        server = subprocess.Popen([*command, "--grpc-port", "0"], stdout=log, stderr=log, start_new_session=True)
        try:
            yield port_of(server, folder / "serve.log")
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
        if "ready" in text and (found := text.rpartition("http://127.0.0.1:")[2]) != text:
            return int("".join(c for c in found[:5] if c.isdigit()))
        time.sleep(0.2)
    raise RuntimeError(f"the server did not start:\n{log.read_text(encoding='utf-8')[-4000:]}")


def bodies(count: int, way: str, seed: int) -> list[bytes]:
    """Requests of one way in; lengths are the same for every seed, words are not."""
    lengths, words = random.Random(0), random.Random(seed)
    texts = [prompt(lengths.randint(SHORTEST, LONGEST), words) for _ in range(count)]
    return [body(text, NEW, way) for text in texts]


def prompt(tokens: int, words: random.Random) -> str:
    """A text of so many tokens; the tokenizer adds two of its own."""
    return " ".join(f"w{words.randrange(2000):05d}" for _ in range(tokens - 2))


def body(text: str, new: int, way: str) -> bytes:
    """An HTTP request as bytes; `way` is whole, stream, or openai, which streams too."""
    if way == "openai":
        path, sent = "/v1/completions", {"model": "bench", "prompt": text, "max_tokens": new, "temperature": 0}
        sent |= {"stream": True, "ignore_eos": True}
    else:
        parameters = {"max_new_tokens": new, "ignore_eos": True, "return_full_text": False, "do_sample": False}
        path, sent = "/score", {"inputs": text, "parameters": parameters, "stream": way == "stream"}
    raw = json.dumps(sent).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: {len(raw)}\r\n"
    return f"{head}Connection: close\r\n\r\n".encode() + raw


async def ask(port: int, request: bytes) -> tuple[bool, list[float]]:
    """Whether a request was answered, and when each event of its answer came, or its end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    stamps, status, last = [], b"", b""
    while data := await reader.read(1 << 16):
        status = status or data[:15]
        stamps += [time.perf_counter()] * (data.count(b"data: {") or not stamps)
        last = (last + data)[-400:]
    writer.close()
    return status.startswith(b"HTTP/1.1 200") and b'"error"' not in last, [*stamps, time.perf_counter()]


async def ask_all(port: int, requests: list[bytes]) -> dict[str, Any]:
    """Send requests at once: begin, end, failures, and milliseconds to first and between later events."""
    began = time.perf_counter()
    answers = await asyncio.gather(*(ask(port, request) for request in requests))
    times = [stamps for good, stamps in answers if good]
    between = [1e3 * (b - a) for stamps in times for a, b in pairwise(stamps[:-2])]
    first = [1e3 * (stamps[0] - began) for stamps in times]
    ended = max((stamps[-1] for stamps in times), default=began)
    return {"began": began, "ended": ended, "failed": len(answers) - len(times), "first": first, "next": between}


def client() -> None:
    """A process of clients: prepares, says so, and asks when told to."""
    told = json.loads(sys.stdin.readline())
    requests = bodies(told["all"], told["way"], told["seed"])[told["at"] :: told["step"]]
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(asyncio.run(asyncio.wait_for(ask_all(told["port"], requests), ANSWER_S))), flush=True)


def load(port: int, clients: int, way: str, seed: int) -> dict[str, Any]:
    """One row: so many clients at once, from processes of their own."""
    step = min(PROCESSES, clients)
    command = [sys.executable, "-m", "benchmarks.over_http", "--client"]
    children = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(step)
    ]
    for at, child in enumerate(children):
        assert child.stdin and child.stdout
        told = {"port": port, "all": clients, "way": way, "seed": seed, "at": at, "step": step}
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
    for name in ("first", "next"):
        values = [value for each in results for value in each[name]]
        cuts = quantiles([*values, *values], n=100) if values and way != "whole" else []  # one value has none
        row |= {f"{name} p{p}": cuts[p - 1] if cuts else None for p in (50, 99)}
    return row


def long_prompt_ms(port: int, tokens: int, seed: int) -> float:
    """Milliseconds to the one token that answers a prompt of this length, the best of two."""
    times = []
    for number in range(2):
        request = body(prompt(tokens, random.Random(seed + number)), 1, "whole")
        began = time.perf_counter()
        good, _ = asyncio.run(asyncio.wait_for(ask(port, request), ANSWER_S))
        times.append(1e3 * (time.perf_counter() - began) if good else float("nan"))
    return min(times)


def measure(name: str, clients: list[int], instance_type: str, logs: Path) -> dict[str, Any]:
    """All rows of one shape; every row is asked twice, and the second is told."""
    shape = SHAPES[name]
    with tempfile.TemporaryDirectory() as folder, served(name, shape, Path(folder), instance_type) as port:
        for each in ("plan.md", "serve.log"):
            (logs / f"{name}-{each}").write_bytes((Path(folder) / each).read_bytes())
        rows = []
        for count in clients:
            for way in ("whole", "stream", "openai"):
                load(port, count, way, 1)
                rows.append({"model": name} | load(port, count, way, 2))
                print(table(COLUMNS, rows[-1:]).splitlines()[-1], flush=True)
        prompts = {str(tokens): long_prompt_ms(port, tokens, tokens) for tokens in shape.long}
    return {"rows": rows, "first token ms by prompt tokens": prompts}


def main() -> None:
    """Measure every shape, and write over_http.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", default=[name for name in SHAPES if name != "tiny"], choices=SHAPES)
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 256])
    parser.add_argument("--instance-type", default="Standard_NC40ads_H100_v5")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--client", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.client:
        client()
        return
    results: dict[str, Any] = {}
    print(table(COLUMNS, []))
    for name in chosen.only:
        results[name] = measure(name, chosen.clients, chosen.instance_type, chosen.out)
        print(json.dumps(results[name]["first token ms by prompt tokens"]), flush=True)
        write("over_http", provenance() | {"load": [SHORTEST, LONGEST, NEW], "models": results}, chosen.out)


if __name__ == "__main__":
    main()
