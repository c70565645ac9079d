"""A Llama of 6.7 B on two GPUs against one: milliseconds a token of the static decoder, whole and over slices.

    python -m benchmarks.slices [--out FOLDER]

Random weights in fp16, written to a temporary folder that every rank loads. Each way runs in a process of its own: a
prompt in every slot, then steps end to end, tokens read one step late. The sliced decoder is verified against what
plain transformers answers on one GPU, and measured over NCCL's sums as well. Sums of one row of the residual stream are
timed by themselves, in a graph.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any, NoReturn

import torch

from benchmarks.command_line import Parser
from benchmarks.common import device_ms, provenance, table, write
from benchmarks.decoder_shapes import CASES
from benchmarks.decoders import LENGTH, PROMPT, TOKENS, datasheet
from scoring.decoder.decoder import Decoder
from scoring.decoder.kv_cache import SamplingParams
from scoring.decoder.verify import errors, reference

CASE = CASES["llama-6.7b"]
DEGREE, BARS = 2, {1: 1.75, 16: 1.7}  # times the tokens of one GPU, by slots
SLOTS = tuple(BARS)
COLUMNS = ("GPUs", "sums", "slots", "ms a token", "floor", "floor share", "over one GPU")
_SUMS = 64  # in one graph: what a step of 32 layers has
_PART_S = 400.0
OVER_NCCL = "two over NCCL"


def write_model(folder: Path) -> None:
    """The model's folder, its weights drawn on the GPU."""
    import transformers

    torch.manual_seed(0)
    with torch.device("cuda"):
        model = transformers.LlamaForCausalLM._from_config(transformers.LlamaConfig(**CASE.config), dtype=torch.float16)
    model.save_pretrained(folder)


def load(folder: Path, device: str) -> Any:
    """The model on a device."""
    import transformers

    return transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float16, device_map={"": device}).eval()


def step_ms(decoder: Decoder, rows: int) -> float:
    """Median over runs of milliseconds a step of so many slots, each with a prompt."""
    generator = torch.Generator().manual_seed(1)
    slots, runs = list(range(rows)), []
    for _ in range(5):
        parts = []
        for slot in slots:
            decoder.open(slot, SamplingParams())
            parts.append((slot, torch.randint(5, 32000, (PROMPT,), generator=generator).tolist()))
        decoder.prefill_many(parts)
        decoder.sample(slots).tokens()
        late = decoder.step(slots)
        late.tokens()
        began = time.perf_counter()
        for _ in range(TOKENS):
            pending = decoder.step(slots)
            late.tokens()
            late = pending
        late.tokens()
        runs.append(1e3 * (time.perf_counter() - began) / TOKENS)
    return median(runs)


def one(folder: Path) -> dict[str, Any]:
    """The whole model on one GPU; leaves what plain transformers answers beside it."""
    model = load(folder, "cuda")
    told = reference(model)()
    torch.save(told, folder / "told.pt")
    torch.cuda.empty_cache()
    decoder = Decoder(model, max(SLOTS), LENGTH)
    decoder.warm_up()
    return _measured(decoder, 1, errors(decoder, told))


def two(folder: Path) -> dict[str, Any]:
    """A slice on each GPU, this process being rank 0."""
    from scoring.passes.static_decode import StaticDecode
    from scoring.passes.tensor_parallel import TensorParallel

    told = torch.load(folder / "told.pt", weights_only=False)
    model = load(folder, "cpu")
    slicing = TensorParallel(DEGREE)
    slicing.apply(model)
    decoder = StaticDecode(max(SLOTS), LENGTH, slicing=slicing).apply(model).made.decoder
    return _measured(decoder, DEGREE, errors(decoder, told))


def _measured(decoder: Decoder, gpus: int, error: dict[str, float]) -> dict[str, Any]:
    model = decoder.model
    rows = []
    for slots in SLOTS:
        live = slots * (PROMPT + TOKENS // 2)
        floor = 1e3 * (model.step_bytes() + live * model.kv_bytes_per_token()) / datasheet()
        took = step_ms(decoder, slots)
        sums = None if model.team is None else "NCCL" if model.team.quick(torch.empty(1)) is None else "ours"
        row = {"GPUs": gpus, "sums": sums, "slots": slots, "ms a token": took, "floor": floor}
        rows.append(row | {"floor share": floor / took})
    return {"error": error, "rows": rows}


def sums() -> dict[str, Any]:
    """Microseconds of one sum of a row of the residual stream over both GPUs, by each way that there is."""
    from benchmarks.peers.servers import free_port

    context = torch.multiprocessing.get_context("spawn")
    told = context.Queue()
    port = free_port()
    processes = [context.Process(target=_time_sums, args=(rank, port, told)) for rank in range(DEGREE)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    return {"sum_us": told.get(timeout=5)}


def _time_sums(rank: int, port: int, told: Any) -> None:
    import torch.distributed as dist

    from scoring.distributed.tp_group import TensorParallelGroup

    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=DEGREE)
    team = TensorParallelGroup(rank, DEGREE, torch.device("cuda", rank), 60.0)
    x = torch.zeros(1, CASE.config["hidden_size"], device="cuda")
    ways = {"NCCL": lambda: team.sum(x)}
    if (exchange := team.quick(x)) is not None:
        ways["ours"] = lambda: exchange.sum(x)
    found = {}
    for name, way in ways.items():
        way()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            for _ in range(_SUMS):
                way()
        dist.barrier()
        found[name] = 1e3 * device_ms(graph.replay, 40) / _SUMS
    if rank == 0:
        told.put(found)
    dist.destroy_process_group()


def child(which: str, folder: Path, **environment: str) -> dict[str, Any]:
    """One part in a process of its own; of one that fails or hangs, why."""
    command = [sys.executable, "-m", "benchmarks.slices", "--part", which, "--folder", str(folder)]
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=True, timeout=_PART_S, env=os.environ | environment
        )
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found
    except (subprocess.SubprocessError, ValueError, IndexError) as error:
        print(f"{which}: {error}", file=sys.stderr, flush=True)
        return {"failed": f"{type(error).__name__}: {error}", "rows": []}


def main() -> None:
    """Both ways, the table, the JSON."""
    parser = Parser(__doc__, gpus=DEGREE)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.part:
        parts = {"model": lambda: write_model(chosen.folder) or {}, "sums": sums}
        parts |= {"one": lambda: one(chosen.folder), "two": lambda: two(chosen.folder)}
        _part(parts[chosen.part])
    told: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        child("model", Path(folder))
        for name in ("sums", "one", "two", OVER_NCCL):
            environment = {"MII_AZURE_SUMS": "nccl"} if name == OVER_NCCL else {}
            told[name] = child(name.split()[0], Path(folder), **environment)
            result = summary(told)
            path = write("slices", provenance() | {"case": asdict(CASE)} | result, chosen.out)
    print(table(COLUMNS, result["rows"]))
    print(json.dumps(told["sums"]), result["bars"], path, sep="\n")


def _part(measure: Callable[[], dict[str, Any]]) -> NoReturn:
    """Print what a part measures, and end at once: nothing has to wait for ranks and their groups."""
    try:
        print(json.dumps(measure()), flush=True)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def summary(told: dict[str, Any]) -> dict[str, Any]:
    """The parts so far, their rows against one GPU, and the bars."""
    rows = [dict(row) for part in told.values() for row in part.get("rows", [])]
    base = {row["slots"]: row["ms a token"] for row in rows if row["GPUs"] == 1}
    for row in rows:
        row["over one GPU"] = base[row["slots"]] / row["ms a token"] if base else None
    bars = {}
    for slots, bar in BARS.items():
        gains = [row["over one GPU"] or 0.0 for row in rows if row["GPUs"] == DEGREE and row["slots"] == slots]
        bars[f"two GPUs >= {bar} x one, a step of {slots}"] = max(gains, default=0.0) >= bar
    parts = {name: {key: value for key, value in part.items() if key != "rows"} for name, part in told.items()}
    return {"parts": parts, "rows": rows, "bars": bars}


if __name__ == "__main__":
    main()
