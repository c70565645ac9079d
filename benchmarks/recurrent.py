"""Models with recurrent layers over HTTP: slots against plain `generate`, which served them before.

`python -m benchmarks.recurrent [--only NAME ...] [--out FOLDER]` writes folders with random weights of a Qwen3.5's and
a Granite 4's form, generates a bundle of each with and without the pass static_decode, serves both side by side, and
has clients ask one of them after the other: whole and streamed, all at once, and streamed, one every 0.3 s. Prompts
have 8 to 48 words. On a CPU the models are small, 16 clients get 24 tokens each and share its cores. On a GPU layers
are as wide as those of a Qwen3.5 9B and a Granite 4 Small, but few and in bfloat16, and 32 clients get 128 tokens.
Writes recurrent-NAME.json for each, on a GPU recurrent-NAME-gpu.json, with the server's remarks. It wants an idle
machine.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from benchmarks import common
from benchmarks.command_line import RESULTS
from benchmarks.common import table, write
from benchmarks.cpu.__main__ import provenance
from benchmarks.cpu_clients import asked, load
from benchmarks.over_http import served
from benchmarks.throughput import write_folder

ROUNDS = 3
APART_S = 0.3


class Device(NamedTuple):
    """What is measured on a kind of device."""

    clients: int
    new: int  # tokens of an answer
    instance_type: str
    dtype: torch.dtype
    suffix: str  # of the results' names
    sizes: dict[str, Any]  # of both forms
    own: dict[str, dict[str, Any]]  # of each


CPU = Device(
    16, 24, "Standard_F4s_v2", torch.float32, "",
    {"vocab_size": 8192, "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8,
     "num_attention_heads": 8, "num_key_value_heads": 2},
    {"qwen3.5": {"head_dim": 64, "linear_num_key_heads": 8, "linear_num_value_heads": 8, "linear_key_head_dim": 64,
                 "linear_value_head_dim": 64},
     "granite4": {"mamba_n_heads": 16, "mamba_d_head": 64, "mamba_d_state": 64, "shared_intermediate_size": 1536}},
)  # fmt: skip
GPU = Device(
    32, 128, "Standard_NC40ads_H100_v5", torch.bfloat16, "-gpu",
    {"vocab_size": 32_768, "hidden_size": 4096, "intermediate_size": 12_288, "num_hidden_layers": 8,
     "num_attention_heads": 16, "num_key_value_heads": 4},
    {"qwen3.5": {"head_dim": 256, "linear_num_key_heads": 16, "linear_num_value_heads": 32,
                 "linear_key_head_dim": 128, "linear_value_head_dim": 128},
     "granite4": {"num_attention_heads": 32, "num_key_value_heads": 8, "mamba_n_heads": 128, "mamba_d_head": 64,
                  "mamba_d_state": 128, "shared_intermediate_size": 12_288}},
)  # fmt: skip
_ALIKE = {"max_position_embeddings": 2048, "tie_word_embeddings": True, "pad_token_id": 0, "bos_token_id": 1,
          "eos_token_id": 2}  # fmt: skip
#: Architecture and what it needs beside sizes, by name; in both, three layers of four are recurrent.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3.5": ("Qwen3_5ForCausalLM", {}),
    "granite4": (
        "GraniteMoeHybridForCausalLM",
        {"layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 2, "mamba_n_groups": 1,
         "num_local_experts": 0},
    ),
}  # fmt: skip
SIDES = {"generate": ("--passes-off", "static_decode"), "slots": ()}


def bundles(name: str, device: Device, folder: Path) -> None:
    """Write a shape's bundles, one a side, as a user does."""
    architecture, own = SHAPES[name]
    config = device.sizes | _ALIKE | own | device.own[name]
    write_folder(architecture, config, device.dtype, "cuda" if device is GPU else "cpu", folder / "model")
    for side, flags in SIDES.items():
        command = [sys.executable, "-m", "mii_azure.cli.app", "generate", "--task", "text-generation", "--model"]
        command += [str(folder / "model"), "--name", "bench", "--server", "http"]
        command += ["--instance-type", device.instance_type, "--max-concurrency", str(device.clients)]
        command += ["--output", str(folder / side / "bundle"), *flags]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def measure(name: str, device: Device) -> dict[str, Any]:
    """Medians of every way in, the sides in turns, and each round's rates; then times of clients that come apart."""
    ways = ((1, "stream"), (device.clients, "whole"), (device.clients, "stream"))
    with tempfile.TemporaryDirectory() as place, ExitStack() as running:
        folder = Path(place)
        bundles(name, device, folder)
        flags = [] if device is GPU else ["--replicas", "1"]
        ports = {side: running.enter_context(served(folder / side, flags))[1] for side in SIDES}
        rates: dict[tuple[int, str], dict[str, list[float]]] = {way: {side: [] for side in SIDES} for way in ways}
        for turn in range(ROUNDS + 1):
            for (clients, how), found in rates.items():
                for side, port in ports.items():
                    rate = load(port, clients, how, turn, device.new)
                    if turn:  # the first round warms up
                        found[side].append(rate)
        late = {side: apart(port, device) for side, port in ports.items()}
        told = {side: remarks(folder / side / "serve.log") for side in SIDES}
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
    return {"new": device.new, "rows": rows, "apart s": APART_S, "apart ms": late, "served": told}


def remarks(log: Path) -> list[str]:
    """Lines of a server's log that tell of the decoder."""
    lines = log.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if "static_decode" in line or "recurrent" in line]


def apart(port: int, device: Device) -> dict[str, float]:
    """Medians of milliseconds to the first token and to the last, of clients that come one after the other."""
    rounds = [asked(port, device.clients, "stream", 10 + turn, APART_S, device.new) for turn in range(ROUNDS)]
    return {name: median(ms for each in rounds for ms in each[name]) for name in ("first", "whole")}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", default=list(SHAPES), choices=SHAPES)
    parser.add_argument("--out", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    os.environ.pop("OMP_NUM_THREADS", None)  # a server is to decide
    device = GPU if torch.cuda.is_available() else CPU
    where = common.provenance() if device is GPU else provenance()
    for name in chosen.only:
        found = measure(name, device)
        write(f"recurrent-{name}{device.suffix}", where | found, chosen.out)
        rows = found["rows"]
        print(table(tuple(rows[0])[:-1], rows), found["apart ms"], found["served"], sep="\n", flush=True)


if __name__ == "__main__":
    main()
