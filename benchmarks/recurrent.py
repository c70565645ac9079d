"""Models with recurrent layers over HTTP on a CPU: slots against plain `generate`, which served them before.

`python -m benchmarks.recurrent [--only NAME ...] [--out FOLDER]` writes folders with random weights of a Qwen3.5's and
a Granite 4's form, generates a bundle of each with and without the pass static_decode, serves both side by side, and
has 16 clients ask one of them after the other: whole and streamed, all at once, and streamed, one every 0.3 s. Prompts
have 8 to 48 words, answers 24 tokens. Writes recurrent-NAME.json for each. The clients share the cores. It wants an
idle machine.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.command_line import RESULTS
from benchmarks.common import table, write
from benchmarks.cpu.__main__ import provenance
from benchmarks.cpu_clients import NEW, asked, load
from benchmarks.over_http import served
from benchmarks.throughput import write_folder

CLIENTS, ROUNDS = 16, 3
APART_S = 0.3
WAYS = ((1, "stream"), (CLIENTS, "whole"), (CLIENTS, "stream"))
_SIZES = {
    "vocab_size": 8192, "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8,
    "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 2048, "tie_word_embeddings": True,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
#: Architecture and sizes by name; in both, three layers of four are recurrent.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3.5": (
        "Qwen3_5ForCausalLM",
        _SIZES | {"head_dim": 64, "linear_num_key_heads": 8, "linear_num_value_heads": 8,
                  "linear_key_head_dim": 64, "linear_value_head_dim": 64},
    ),
    "granite4": (
        "GraniteMoeHybridForCausalLM",
        _SIZES | {"layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 2, "mamba_n_heads": 16,
                  "mamba_d_head": 64, "mamba_d_state": 64, "mamba_n_groups": 1, "num_local_experts": 0,
                  "shared_intermediate_size": 1536},
    ),
}  # fmt: skip
SIDES = {"generate": ("--passes-off", "static_decode"), "slots": ()}


def bundles(name: str, folder: Path) -> None:
    """Write a shape's bundles, one a side, as a user does."""
    architecture, config = SHAPES[name]
    write_folder(architecture, config, torch.float32, "cpu", folder / "model")
    for side, flags in SIDES.items():
        command = [sys.executable, "-m", "mii_azure.cli.app", "generate", "--task", "text-generation", "--model"]
        command += [str(folder / "model"), "--name", "bench", "--server", "http", "--instance-type", "Standard_F4s_v2"]
        command += ["--output", str(folder / side / "bundle"), *flags]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def measure(name: str) -> tuple[list[dict[str, Any]], dict[str, dict[str, float]]]:
    """Medians of every way in, the sides in turns, and each round's rates; then times of clients that come apart."""
    with tempfile.TemporaryDirectory() as place, ExitStack() as running:
        folder = Path(place)
        bundles(name, folder)
        ports = {side: running.enter_context(served(folder / side, ["--replicas", "1"]))[1] for side in SIDES}
        rates: dict[tuple[int, str], dict[str, list[float]]] = {way: {side: [] for side in SIDES} for way in WAYS}
        for turn in range(ROUNDS + 1):
            for (clients, how), found in rates.items():
                for side, port in ports.items():
                    rate = load(port, clients, how, turn)
                    if turn:  # the first round warms up
                        found[side].append(rate)
        late = {side: apart(port) for side, port in ports.items()}
    rows = [
        {
            "model": name,
            "clients": clients,
            "way": how,
            **{f"{side} tokens/s": median(found[side]) for side in SIDES},
            "times": median(ours / plain for plain, ours in zip(*found.values(), strict=True)),
            "all": found,
        }
        for (clients, how), found in rates.items()
    ]
    return rows, late


def apart(port: int) -> dict[str, float]:
    """Medians of milliseconds to the first token and to the last, of clients that come one after the other."""
    rounds = [asked(port, CLIENTS, "stream", 10 + turn, APART_S) for turn in range(ROUNDS)]
    return {name: median(ms for each in rounds for ms in each[name]) for name in ("first", "whole")}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", default=list(SHAPES), choices=SHAPES)
    parser.add_argument("--out", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    os.environ.pop("OMP_NUM_THREADS", None)  # a server is to decide
    for name in chosen.only:
        rows, late = measure(name)
        told = {"new": NEW, "rows": rows, "apart s": APART_S, "apart ms": late}
        write(f"recurrent-{name}", provenance() | told, chosen.out)
        print(table(tuple(rows[0])[:-1], rows), late, sep="\n", flush=True)


if __name__ == "__main__":
    main()
