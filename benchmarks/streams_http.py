"""Tokens per second of many streams over HTTP on a CPU, against `generate()` one after another, in one run.

`python -m benchmarks.streams_http [--out FOLDER]` generates a bundle of SmolLM2-135M-Instruct, serves it in one
process, and takes turns: plain transformers' `generate()` for some texts in this process, one stream over HTTP, and 64
at once. Every text gets 24 tokens. Writes streams_http.json. It wants an idle machine.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.command_line import RESULTS
from benchmarks.common import table, write
from benchmarks.cpu.__main__ import provenance
from benchmarks.cpu_clients import NEW, bundle, load, texts
from benchmarks.over_http import served
from mii_azure.model.packaged import packaged_model
from scoring.limits import cpus

STREAMS, ROUNDS = (1, 64), 3
SEQUENTIAL = 3  # texts that generate() answers in a round: its rate does not depend on how many there are


def generated(model: Any, tokenizer: Any, seed: int) -> float:
    """Tokens a second of plain generate(), one text after another."""
    began = time.perf_counter()
    for text in texts(SEQUENTIAL, seed):
        inputs = tokenizer(text, return_tensors="pt")
        model.generate(**inputs, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, pad_token_id=0)
    return SEQUENTIAL * NEW / (time.perf_counter() - began)


def measure(port: int, model: Any, tokenizer: Any) -> list[dict[str, Any]]:
    """Rates of every round, and medians of each number of streams."""
    load(port, STREAMS[-1], "stream", 0)
    generated(model, tokenizer, 0)
    plain, ours = list[float](), {count: list[float]() for count in STREAMS}
    for turn in range(1, ROUNDS + 1):
        plain.append(generated(model, tokenizer, turn))
        for count, rates in ours.items():
            rates.append(load(port, count, "stream", turn))
    return [
        {
            "streams": count,
            "generate tokens/s": median(plain),
            "ours tokens/s": median(rates),
            "times": median(mine / theirs for mine, theirs in zip(rates, plain, strict=True)),
            "all": {"generate": plain, "ours": rates},
        }
        for count, rates in ours.items()
    ]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    if "OMP_WAIT_POLICY" not in os.environ:  # OpenMP waits as in a server, which it is told before torch is imported
        cpus.settle()
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.streams_http", *sys.argv[1:]])
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = packaged_model("smollm2")
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    with tempfile.TemporaryDirectory() as name:
        bundle(str(path), Path(name))
        with served(Path(name), ["--replicas", "1"]) as (_, port):
            rows = measure(port, model, AutoTokenizer.from_pretrained(path))
    write("streams_http", provenance() | {"model": path.name, "new": NEW, "rows": rows}, chosen.out)
    print(table(tuple(rows[0])[:-1], rows))


if __name__ == "__main__":
    main()
