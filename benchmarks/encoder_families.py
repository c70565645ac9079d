"""Encoders of today on one GPU, fp16, random weights of the real shapes: the best stock options, ours, floor.

    python -m benchmarks.encoder_families [--only NAME ...] [--batches N ...] [--tiles] [--out FOLDER]

Stock is plain transformers as it comes (eager, with torch's attention kernels), the same in a CUDA graph, Inductor's
reduce-overhead, and Inductor with frozen weights in a CUDA graph. Each model runs in its own process: all compile side
by side, then they are timed one after another while the others wait. `--tiles` times other tilings of ModernBERT too.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.command_line import Parser
from benchmarks.common import call_ms, ceilings, device_ms, encoder_floor_ms, provenance, table, write
from benchmarks.encoders import LARGE, inputs
from scoring.encoder.cuda_graphs import GraphedForward
from scoring.encoder.tiles import GemmTile
from scoring.encoder.triton_ops import TritonOps
from scoring.encoder.verify import probes, reference, relative_error, verify_encoder
from scoring.passes.base import TOLERANCE

LENGTH = 128
BAR = 1.3  # times the best stock option, at batch 1
#: Architecture and config of the published models that the names say.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "modernbert-large": (
        "ModernBertModel",
        {"hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16, "intermediate_size": 2624},
    ),
    "deberta-v3-large": (
        "DebertaV2Model",
        LARGE
        | {"vocab_size": 128100, "relative_attention": True, "position_buckets": 256, "norm_rel_ebd": "layer_norm",
           "share_att_key": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False,
           "type_vocab_size": 0, "max_relative_positions": -1, "max_position_embeddings": 512,
           "layer_norm_eps": 1e-7},
    ),
    "xlm-roberta-large": (
        "XLMRobertaModel",
        LARGE | {"vocab_size": 250002, "max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5,
                 "pad_token_id": 1},
    ),
    "mpnet-base": ("MPNetModel", {"vocab_size": 30527, "max_position_embeddings": 514, "pad_token_id": 1}),
}  # fmt: skip
STOCK = ("eager", "graph", "reduce-overhead", "frozen")
COLUMNS = ("model", "batch", *STOCK, "ours", "ours device", "error", "floor", "over best stock")
#: Tilings tried beside the chosen ones: what they change, by (rows, N, K).
TILES: dict[str, dict[tuple[int, int, int], GemmTile]] = {
    "down in four": {(128, 1024, 2816): GemmTile(64, 64, 64, split=4, stages=4, tma=True)},
    "down in four, wide": {(128, 1024, 2816): GemmTile(128, 64, 64, split=4, tma=True)},
    "gated 128x32": {(128, 5632, 1024): GemmTile(128, 32, 64, warps=8, stages=4)},
    "gated 64x32": {(128, 5632, 1024): GemmTile(64, 32, 128, stages=3)},
    "gated 64x64 deep": {(128, 5632, 1024): GemmTile(64, 64, 128, stages=3)},
    "gated 128x64": {(128, 5632, 1024): GemmTile(128, 64, 64, warps=8, stages=3)},
}


def build(name: str) -> Any:
    """The model on the GPU in fp16 with seeded random weights; angles of positions stay in fp32."""
    import transformers

    architecture, config = SHAPES[name]
    cls = getattr(transformers, architecture)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float16)
    try:
        with torch.device("cuda"):
            return cls(cls.config_class(**config)).eval()
    finally:
        torch.set_default_dtype(torch.float32)


class Subject:
    """One model: `prepare` compiles, `measure` times."""

    def __init__(self, name: str, card: dict[str, float], batches: list[int], tiles: bool) -> None:
        self.name, self.card, self.batches, self.tiles = name, card, batches, tiles
        self.model = build(name)
        self.given = {size: inputs(self.model, size, LENGTH) for size in batches}
        padded = probes(self.model, (LENGTH, LENGTH // 3, 5))
        self.told = reference(self.model, [*padded, self.given[batches[0]]])
        self.compiled: dict[tuple[str, int], Callable[..., Any]] = {}
        self.seconds: dict[str, float] = {}
        self.errors: dict[str, str] = {}

    def prepare(self) -> None:
        with self._ours(), torch.inference_mode():
            for batch in self.given.values():
                self.model(**batch)
        for size, batch in self.given.items():
            for kind in STOCK[2:] if size == self.batches[0] else ():  # larger batches hide launches: no compilation
                began = time.perf_counter()
                try:
                    self.compiled[kind, size] = self._compile(kind, batch)
                except Exception as error:  # a stock option that does not run is told, not timed
                    self.errors[f"{kind}, batch {size}"] = str(error).strip()[:300]
                self.seconds[f"{kind}, batch {size}"] = time.perf_counter() - began
                print(f"{self.name}: {kind}, batch {size}: {time.perf_counter() - began:.0f} s", file=sys.stderr)

    def _compile(self, kind: str, batch: dict[str, Any]) -> Callable[..., Any]:
        call: Callable[..., Any]
        if kind == "frozen":  # Inductor's own graphs are off with freezing: a graph around it is its best
            frozen = torch.compile(self.model.forward, options={"freezing": True}, dynamic=False)
            shape = batch["input_ids"].shape
            call = GraphedForward(self.model, frozen, lengths=shape[1:], batches=shape[:1])
        else:
            call = torch.compile(self.model.forward, mode=kind, dynamic=False)
        with torch.no_grad():
            for _ in range(4):
                call(**batch)
        return call

    def measure(self) -> None:
        """Print each row as soon as it is measured, ours before what is compiled by others."""
        for size, batch in self.given.items():
            row: dict[str, Any] = {"model": self.name, "batch": size, "length": LENGTH, "errors": {}}
            row |= {"compile_seconds": self.seconds, "failed": self.errors}
            self._ours_and_graph(row, batch)
            self._tell(row)
            self._compiled(row, batch)
            self._tell(row)
            row["kernels"] = self._kernels(batch)
            self._tell(row)

    def _tell(self, row: dict[str, Any]) -> None:
        row["floor"] = encoder_floor_ms(self.model, row["batch"], LENGTH, self.card)
        row["over best stock"] = min(row[name] for name in STOCK if name in row) / row["ours"]
        row["bars"] = {"error within 5e-3": row["error"] <= TOLERANCE}
        if row["batch"] == 1:
            row["bars"][f"{BAR} x best stock"] = row["over best stock"] >= BAR
        print(json.dumps(row), flush=True)

    def _ours_and_graph(self, row: dict[str, Any], batch: dict[str, Any]) -> None:
        model, told = self.model, self.told
        with self._ours(), self._graphed():
            row["ours"] = call_ms(lambda: model(**batch), 50)
            row["ours device"] = self._replay_ms(row["batch"])
            row["error"] = row["errors"]["ours"] = verify_encoder(model, told)
        with self._graphed():
            row["graph"] = call_ms(lambda: model(**batch), 50)
            row["errors"]["graph"] = verify_encoder(model, told)
        with torch.inference_mode():
            row["eager"] = call_ms(lambda: model(**batch), 15)
        if self.tiles and row["batch"] == 1 and self.name == "modernbert-large":
            row["tiles"] = {name: self._with_tiles(tiles, batch) for name, tiles in TILES.items()}

    def _compiled(self, row: dict[str, Any], batch: dict[str, Any]) -> None:
        with torch.no_grad():
            for (kind, size), call in self.compiled.items():
                if size == row["batch"]:
                    row[kind] = call_ms(lambda call=call: call(**batch), 50)
                    output = {key: value.float().cpu() for key, value in call(**batch).items()}
                    row["errors"][kind] = relative_error(output, self.told()[-1][1])

    def _kernels(self, batch: dict[str, Any]) -> dict[str, float]:
        """Microseconds of our kernels in one forward, the longest first; outside a graph, so none hides another."""
        from torch.profiler import ProfilerActivity, profile

        with self._ours(), torch.inference_mode():
            self.model(**batch)
            with profile(activities=[ProfilerActivity.CUDA]) as seen:
                self.model(**batch)
                torch.cuda.synchronize()
        found = {each.key[:60]: float(each.self_device_time_total) for each in seen.key_averages()}
        return dict(sorted(found.items(), key=lambda each: -each[1])[:10])

    def _with_tiles(self, tiles: dict[tuple[int, int, int], GemmTile], batch: dict[str, Any]) -> float | str:
        try:
            with self._ours(TritonOps(True, tiles=tiles)), self._graphed():
                return call_ms(lambda: self.model(**batch), 50)
        except Exception as error:  # one that does not fit the chip's shared memory
            return str(error).strip()[:120]

    @contextmanager
    def _ours(self, ops: Any = None) -> Iterator[None]:
        from scoring.passes.fused_encoder import FusedEncoder

        applied = FusedEncoder(ops).apply(self.model)
        try:
            yield
        finally:
            applied.undo()

    @contextmanager
    def _graphed(self) -> Iterator[None]:
        from scoring.passes.cuda_graph import CudaGraph

        applied = CudaGraph().apply(self.model)
        try:
            yield
        finally:
            applied.undo()

    def _replay_ms(self, size: int) -> float:
        """The graph alone, on the device's clock."""
        forward: GraphedForward = self.model.forward
        captured = next(graph for key, graph in forward._graphs.items() if key[0] == size)
        return device_ms(captured.graph.replay)


def _child(name: str, asked: dict[str, Any]) -> None:
    """Prepare, say so, wait for the word, measure, print the result as the last line."""
    subject = Subject(name, asked["card"], asked["batches"], asked["tiles"])
    subject.prepare()
    print("ready", flush=True)
    sys.stdin.readline()
    subject.measure()
    print("end", flush=True)


def run(names: list[str], batches: list[int], tiles: bool, folder: Path) -> dict[str, Any]:
    """Measure all models; the result is written again after each."""
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "4")
    result = provenance()
    card = ceilings()
    torch.cuda.empty_cache()
    asked = json.dumps({"card": card, "batches": batches, "tiles": tiles})
    command = [sys.executable, "-m", "benchmarks.encoder_families", "--child"]
    children = {
        name: subprocess.Popen([*command, name, asked], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for name in names
    }
    for child in children.values():
        _line(child, "ready")
    result |= {"card": card, "rows": []}
    for child in children.values():
        assert child.stdin is not None
        print("go", file=child.stdin, flush=True)
        found: dict[int, dict[str, Any]] = {}
        while line := _line(child, ("{", "end")):
            if line.startswith("end"):
                break
            row = json.loads(line)
            found[row["batch"]] = row
            write("encoder_families", {**result, "rows": [*result["rows"], *found.values()]}, folder)
            print(line, flush=True)
        result["rows"] += found.values()
    return result


def _line(process: "subprocess.Popen[str]", start: str | tuple[str, ...]) -> str:
    """The next line that begins with `start`; "" when the process ended without one."""
    assert process.stdout is not None
    return next((line for line in process.stdout if line.startswith(start)), "")


def main() -> None:
    if "--child" in sys.argv:
        at = sys.argv.index("--child")
        return _child(sys.argv[at + 1], json.loads(sys.argv[at + 2]))
    parser = Parser(__doc__, gpus=1)
    parser.add_argument("--only", nargs="+", choices=SHAPES, default=[*SHAPES])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--tiles", action="store_true")
    asked = parser.parse_args()
    result = run(asked.only, asked.batches, asked.tiles, asked.out)
    print(table(COLUMNS, result["rows"]))
    return None


if __name__ == "__main__":
    main()
