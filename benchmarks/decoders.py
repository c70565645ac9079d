"""Decoders per token: plain generate, the best stock option, the static decoder, and the floor, in one run on one GPU.

    python -m benchmarks.decoders [--only NAME ...] [--tier generic] [--out FOLDER] [--revision SHA]

Random weights of the real shapes, in 16 bits. Every row runs in a process of its own: all of them build and compile
at the same time, then measure one after the other. Stock options are a forward over transformers' StaticCache inside
a CUDA graph, once plain and once through torch.compile, each with its greedy pick, and where asked generate() with
cache_implementation="static". `ours` is a step end to end: host call, graph, sampling, token read one step late.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from benchmarks.command_line import Parser
from benchmarks.common import ceilings, device_ms, provenance, table, write
from benchmarks.decoder_shapes import CASES, Case, make
from scoring.decoder.decoder import Decoder
from scoring.decoder.kv_cache import SamplingParams
from scoring.decoder.verify import errors, reference
from scoring.passes.families import Tier

DATASHEET = {"H100": 3.35e12, "H200": 4.8e12}  # bytes a second of a card's memory; what the floors are over
PROMPT, TOKENS, LENGTH = 128, 64, 384


def datasheet() -> float:
    """Bytes a second that the data sheet gives this card's memory; an H100's for one that is not known."""
    name = torch.cuda.get_device_name(0) if torch.cuda.is_available() else ""
    return next((rate for card, rate in DATASHEET.items() if card in name), DATASHEET["H100"])


class StockStep:
    """A greedy step of a batch over a StaticCache that a CUDA graph holds; raises where the model cannot."""

    def __init__(self, model: Any, rows: int, compiled: bool, prompt: int = PROMPT, length: int = LENGTH) -> None:
        from transformers import StaticCache

        device = model.device
        self.model, self.rows, self.length = model, rows, length
        self.cache = StaticCache(config=model.config, max_cache_len=length)
        self.token = torch.full((rows, 1), 7, device=device)
        self.position = torch.zeros(1, dtype=torch.int64, device=device)
        self.forward = torch.compile(model.forward, dynamic=False) if compiled else model.forward
        self.two = torch.ones(rows, length, dtype=torch.int64, device=device)
        self.places = torch.arange(length, device=device)
        self.alibi = model.config.model_type == "bloom"  # it needs the mask of all places, one place wide or not
        mask = {"attention_mask": self.two} if self.alibi else {}
        model(torch.full((rows, 2), 7, device=device), past_key_values=self.cache, use_cache=True, **mask)
        self.rewind(prompt)

    def rewind(self, position: int) -> None:
        """Set the length that the cache claims to hold."""
        self.position.fill_(position)
        for layer in self.cache.layers:
            layer.cumulative_length.fill_(position)

    def step(self) -> torch.Tensor:
        """Feed the token, pick the next; logits [rows, vocabulary]."""
        if self.alibi:
            given: dict[str, Any] = {"attention_mask": self.two}
        else:
            seen = (self.places <= self.position)[None, None, None].expand(self.rows, 1, 1, self.length)
            given = {"attention_mask": seen, "position_ids": self.position[None].expand(self.rows, 1)}
        logits = self.forward(self.token, past_key_values=self.cache, use_cache=True, **given).logits[:, -1]
        self.token.copy_(logits.argmax(-1, keepdim=True))
        self.position += 1
        return logits

    def graph(self, prompt: int = PROMPT) -> Callable[[], None]:
        """The step, captured; a call replays it."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self.step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.step()
        self.rewind(prompt)
        self.captured = graph
        return self.replay

    def replay(self) -> None:
        """One captured step; a method, so that whoever holds it keeps the tensors that the graph reads."""
        self.captured.replay()


def generate_ms(model: Any, new: int, **options: Any) -> float:
    """Milliseconds per token of greedy generate() after a prompt, the prefill subtracted by a shorter run."""
    ids = torch.randint(5, model.config.vocab_size, (1, PROMPT), device=model.device)
    common = {"attention_mask": torch.ones_like(ids), "do_sample": False, "pad_token_id": 0, **options}

    def seconds(count: int) -> float:
        torch.cuda.synchronize()
        began = time.perf_counter()
        model.generate(ids, max_new_tokens=count, min_new_tokens=count, **common)
        torch.cuda.synchronize()
        return time.perf_counter() - began

    seconds(new)
    long, short = min(seconds(new) for _ in range(3)), min(seconds(2) for _ in range(3))
    return 1e3 * (long - short) / (new - 2)


def fill(decoder: Decoder, rows: int) -> list[int]:
    """Give every slot 128 to 256 live tokens of random keys and values; returns the slots."""
    generator = torch.Generator().manual_seed(0)
    live = torch.randint(PROMPT, 257 - TOKENS, (rows,), generator=generator).tolist() if rows > 1 else [PROMPT]
    for held in decoder.state.memory:
        held.normal_()
    for slot, length in enumerate(live):
        decoder.open(slot, SamplingParams())
        decoder._reserve([(slot, decoder.max_length)])  # the graph alone is replayed past the ends of blocks
        decoder.lengths[slot] = length
        decoder.state.lengths[slot] = length
        decoder.state.tokens[slot] = 7
    decoder._cuda.settle()
    return list(range(rows))


def ours_ms(decoder: Decoder, rows: int) -> dict[str, float]:
    """Milliseconds a step: end to end with tokens read one step late, and the graph alone on the device."""
    best = []
    for _ in range(5):
        slots = fill(decoder, rows)
        late = decoder.step(slots)
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(TOKENS - 1):
            pending = decoder.step(slots)
            late.tokens()
            late = pending
        late.tokens()
        best.append(1e3 * (time.perf_counter() - began) / (TOKENS - 1))
    fill(decoder, rows)
    graph = decoder._cuda.graphs.near[next(size for size in decoder._cuda.sizes if size >= rows)]
    return {"ours": sorted(best)[len(best) // 2], "ours_device": device_ms(graph.replay, 40)}


def breakdown(decoder: Decoder, rows: int) -> dict[str, float]:
    """Microseconds a layer of each kernel, launched layer after layer in a graph of its own; head and sampling once."""
    launcher, layers = decoder._cuda.launcher, decoder.model.layers
    fill(decoder, rows)
    b = launcher.buffers
    parts: dict[str, Callable[[int], None]] = {"attention": lambda i: launcher.attention(rows, i, layers[i])}
    if rows <= 2:
        parts |= {
            "norm+qkv+rotary+cache": lambda i: launcher.qkv(rows, i, layers[i]),
            "out+residual": lambda i: launcher.gemv("out", b.attended, layers[i].attention.out, b.x, rows, add=True),
        }
        if decoder.model.mixtures:
            parts["norm+experts+residual"] = lambda i: launcher.experts_gemv(rows, layers[i], layers[i].mlp)
        else:
            parts["norm+up+activation"] = lambda i: launcher.up(rows, layers[i])
            parts["down+residual"] = lambda i: launcher.gemv("down", b.inner, layers[i].mlp.down, b.x, rows, add=True)
    else:
        parts |= {
            "qkv": lambda i: launcher.product(b.normed, layers[i].attention.qkv, b.qkv, rows),
            "rotary+cache": lambda i: launcher.scatter(rows, i, layers[i]),
            "out": lambda i: launcher.product(b.attended, layers[i].attention.out, b.y, rows),
            "residual+norm": lambda i: launcher.add_norm(rows, b.y, layers[i].attention.out.bias, layers[i].norm2),
        }
        if decoder.model.mixtures:
            parts["experts"] = lambda i: launcher.experts_grouped(rows, layers[i].mlp)
        else:
            parts["up"] = lambda i: launcher.product(b.normed, layers[i].mlp.up, b.up, rows)
            parts["activation"] = lambda i: launcher.activate(rows, layers[i].mlp, layers[i].mlp.down.weight.shape[1])
            parts["down"] = lambda i: launcher.product(b.inner, layers[i].mlp.down, b.y, rows)
    times = {
        name: 1e3 * graph_ms(lambda p=part: [p(i) for i in range(len(layers))]) / len(layers)
        for name, part in parts.items()
    }
    logits = b.logits if rows <= 2 else b.narrow
    times["head, once"] = 1e3 * graph_ms(lambda: launcher.head(rows))
    times["sampling, once"] = 1e3 * graph_ms(lambda: launcher.sample(rows, logits, True))
    decoder.state.temperature.fill_(0.9), decoder.state.top_k.fill_(50), decoder.state.top_p.fill_(0.9)
    times["sampling with top-k and top-p, once"] = 1e3 * graph_ms(lambda: launcher.sample(rows, logits, True))
    decoder.state.temperature.zero_(), decoder.state.top_k.zero_(), decoder.state.top_p.fill_(1.0)
    return {name: round(value, 2) for name, value in times.items()}


def graph_ms(call: Callable[[], Any]) -> float:
    """Milliseconds of a captured call, which includes a graph's own start of some microseconds."""
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return device_ms(graph.replay, 30)


def attempt(make_it: Callable[[], Any], what: str) -> Any:
    """The result, or None with the reason on stderr: a stock option that fails is a missing cell."""
    try:
        return make_it()
    except Exception as error:
        print(f"{what}: {type(error).__name__}: {str(error)[:300]}", file=sys.stderr, flush=True)
        return None


@dataclass
class Stock:
    """What transformers and torch offer for a case, each ready to be timed; its weights are its own."""

    model: Any
    graph: Callable[[], None] | None
    compiled: Callable[[], None] | None
    static: bool

    def times(self, small: bool) -> dict[str, float | None]:
        """Milliseconds a token of each."""
        static = {"cache_implementation": "static"}
        return {
            "generate": generate_ms(self.model, 32) if small else None,
            "generate_static": attempt(lambda: generate_ms(self.model, 32, **static), "static")
            if self.static
            else None,
            "stock_graph": None if self.graph is None else device_ms(self.graph, 40),
            "stock_compiled": None if self.compiled is None else device_ms(self.compiled, 40),
        }


def prepare_stock(case: Case) -> Stock:
    """Build, compile and capture the stock options."""
    model = make(case)
    graph = attempt(lambda: StockStep(model, case.slots, False).graph(), "stock graph")
    compiled = None if case.big else attempt(lambda: StockStep(model, case.slots, True).graph(), "compiled")
    if case.generate_static:
        attempt(lambda: generate_ms(model, 8, cache_implementation="static"), "generate static")
    return Stock(model, graph, compiled, case.generate_static)


def prepare_ours(case: Case, row: dict[str, Any], tier: Tier) -> Decoder:
    """Build, capture and verify the decoder; the errors and seconds go into the row."""
    model = make(case)
    told = reference(model)
    plain = [model(torch.tensor([ids], device="cuda")).logits[0].float().cpu() for ids in told().ids]
    row["plain_error"] = max(float((a - b).norm() / b.norm()) for a, b in zip(plain, told().logits, strict=True))
    torch.cuda.empty_cache()
    began = time.perf_counter()
    decoder = Decoder(model, max(case.slots, 4), LENGTH, tier=tier)
    if case.int8:
        decoder.use_int8()
    decoder.warm_up([case.slots, 2, 4])
    row["notes"] = decoder.notes
    row["prepare_seconds"] = time.perf_counter() - began
    row["error"] = errors(decoder, told())
    return decoder


COLUMNS = (
    "model",
    "tier",
    "slots",
    "generate",
    "generate_static",
    "stock_graph",
    "stock_compiled",
    "ours",
    "ours_device",
    "floor",
    "gain",
    "floor_share",
)


@torch.inference_mode()
def measure(name: str, tier: Tier) -> None:
    """One row: prepare, say "ready", wait for a line, measure, print the row as JSON."""
    case = CASES[name]
    row: dict[str, Any] = {"model": name, "tier": tier, "slots": case.slots}
    if not case.big:
        stock, decoder = prepare_stock(case), prepare_ours(case, row, tier)
    print("ready", flush=True)
    sys.stdin.readline()
    if not case.big:
        row |= stock.times(case.slots == 1)
    elif not case.int8:  # the 16-bit row has the stock options
        row |= prepare_stock(case).times(case.slots == 1)
    if case.big:
        gc.collect()
        torch.cuda.empty_cache()
        decoder = prepare_ours(case, row, tier)
    row |= ours_ms(decoder, case.slots)
    live = sum(decoder.lengths[: case.slots])
    row["floor"] = 1e3 * (decoder.model.step_bytes() + live * decoder.model.kv_bytes_per_token()) / datasheet()
    if tier == "fused":
        row["kernels"] = attempt(lambda: breakdown(decoder, case.slots), "breakdown")
    options = [row[key] for key in ("generate_static", "stock_graph", "stock_compiled") if row.get(key)]
    row["best_stock"] = min(options) if options else None
    row["gain"] = row["best_stock"] / row["ours"] if options else None
    row["floor_share"] = row["floor"] / row["ours"]
    print(json.dumps(row), flush=True)


def main() -> None:
    """Run the cases, print the table, write the JSON."""
    parser = Parser(__doc__, gpus=1)
    parser.add_argument("--only", nargs="*", default=list(CASES))
    parser.add_argument("--tier", choices=("fused", "generic"), default="fused", help="of the decoder measured")
    parser.add_argument("--revision", help="the commit measured, where there is no checkout")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.case:
        measure(chosen.case, chosen.tier)
        return
    command = [sys.executable, "-m", "benchmarks.decoders", "--tier", chosen.tier, "--case"]
    environment = os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": "2"}
    running = {
        name: subprocess.Popen(
            [*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        for name in chosen.only
    }
    ready = [
        name for name, process in running.items() if process.stdout and process.stdout.readline().strip() == "ready"
    ]
    card = ceilings()
    result = provenance() | {"cases": {n: asdict(CASES[n]) for n in chosen.only}, "ceilings": card, "rows": []}
    result["revision"] = chosen.revision or result["revision"]
    slug = "-".join(result["device"].lower().split()[1:2]) or "gpu"
    for name in ready:  # one after the other: each has the card to itself
        answer, _ = running[name].communicate("go\n")
        result["rows"] += [json.loads(line) for line in answer.splitlines()[-1:]]
        path = write(f"decoders-{slug}" if chosen.tier == "fused" else f"decoders-generic-{slug}", result, chosen.out)
    print(table(COLUMNS, result["rows"]))
    print(path)


if __name__ == "__main__":
    main()
