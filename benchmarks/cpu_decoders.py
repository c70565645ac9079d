"""Decoders on a CPU, one stream: plain transformers, ours in process and over HTTP, llama.cpp, and the floor.

`python -m benchmarks.cpu_decoders [OUTPUT FOLDER [MODEL[/PART] ...]]` prints a table, and writes cpu_decoders.json as
rows come, beside those of the same machine. The models are smollm2 (real weights) and llama-1b (its shape, random
weights), their parts narrow, wide and http; llama.cpp is beside them where llama-cpp-python is installed. Milliseconds
a token of one sequence after a prompt of 16 tokens. The floor is the bytes of the weights of a step over the best
bandwidth seen, which is measured several times, since a virtual machine's varies. Who is compared closely takes turns.
It wants an idle machine.
"""

import asyncio
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from benchmarks.command_line import RESULTS
from benchmarks.common import table, write
from benchmarks.cpu.__main__ import provenance
from benchmarks.http_clients import ask, body
from benchmarks.over_http import served
from mii_azure.model.packaged import packaged_model
from scoring.limits import cpus

PROMPT, TOKENS, RUNS, LONG = 16, 32, 3, 128
ROWS = 8  # of a batch: as many as a plan gives a CPU
MODELS = ("smollm2", "llama-1b")
SAME = ("device", "flags", "threads", "oneDNN may use", "versions")  # of rows that may stand together
_AT_LEAST = 1 << 27  # float32 numbers read to measure bandwidth, more than caches hold


def bandwidth() -> float:
    """Bytes a second of a sum over memory by all threads, the best of a few."""
    numbers = torch.ones(_AT_LEAST)
    numbers.sum()
    times = []
    for _ in range(20):  # a neighbour's work must not pass for the machine's limit
        began = time.perf_counter()
        numbers.sum()
        times.append(time.perf_counter() - began)
    return numbers.nbytes / min(times)


def made(name: str) -> Any:
    """A model in float32."""
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    if name == "smollm2":
        return AutoModelForCausalLM.from_pretrained(packaged_model("smollm2"), dtype=torch.float32).eval()
    config = LlamaConfig(hidden_size=2048, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8,
                         head_dim=64, intermediate_size=8192, vocab_size=128256, tie_word_embeddings=True)  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model = model.to_empty(device="cpu").eval()
    some = torch.randn(1 << 20) * 0.02
    for key, parameter in model.named_parameters():
        flat = parameter.data.view(-1)
        flat.copy_(some.repeat(-(-len(flat) // len(some)))[: len(flat)]) if "norm" not in key else flat.fill_(1.0)
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    model.tie_weights()
    return model


@torch.inference_mode()
def eager_ms(model: Any) -> float:
    """Plain transformers with its own cache, greedy."""
    ids = torch.arange(5, 5 + PROMPT)[None]
    found = model(ids, use_cache=True)
    token, cache, times = found.logits[:, -1:].argmax(-1), found.past_key_values, []
    for _ in range(TOKENS):
        began = time.perf_counter()
        found = model(token, past_key_values=cache, use_cache=True)
        token = found.logits[:, -1:].argmax(-1)
        times.append(time.perf_counter() - began)
    return 1e3 * median(times)


def steps_ms(decoder: Any, rows: int = 1) -> float:
    """Steps of our decoder for some sequences at once, the tokens read after each."""
    slots = list(range(rows))
    for slot in slots:
        decoder.open(slot)
        decoder.prefill(slot, list(range(5, 5 + PROMPT)))
    decoder.sample(slots).tokens()
    times = []
    for _ in range(TOKENS):
        began = time.perf_counter()
        decoder.step(slots).tokens()
        times.append(time.perf_counter() - began)
    for slot in slots:
        decoder.release(slot)
    return 1e3 * median(times)


def prompt_ms(decoder: Any, tokens: int) -> float:
    """Milliseconds of a prompt by our decoder."""
    decoder.open(0)
    began = time.perf_counter()
    decoder.prefill(0, [5 + number % 1000 for number in range(tokens)])
    decoder.sample([0]).tokens()
    taken = 1e3 * (time.perf_counter() - began)
    decoder.release(0)
    return taken


class LlamaCpp:
    """llama.cpp over the same weights, in a GGUF file of this benchmark's, in a process of its own."""

    def __init__(self, model: Any, kind: str, folder: Path) -> None:
        from benchmarks.gguf_file import write_llama

        path = write_llama(model, folder / f"{kind}.gguf", kind)
        command = [sys.executable, "-m", "benchmarks.llama_cpp_steps", str(path), str(PROMPT), str(TOKENS)]
        own = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
        self._child = subprocess.Popen(command, env=own, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._child.stdin and self._child.stdout
        self._told, self._said = self._child.stdin, self._child.stdout
        self._said.readline()

    def ms(self) -> float:
        """Milliseconds a token."""
        self._told.write("\n")
        self._told.flush()
        return float(self._said.readline())

    def end(self) -> None:
        """End its process."""
        self._told.close()
        self._child.wait(60)


@contextmanager
def llama_cpp(model: Any, kind: str) -> Iterator[LlamaCpp | None]:
    """llama.cpp in a format of its own; None where it is not installed."""
    if not importlib.util.find_spec("llama_cpp"):
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        found = LlamaCpp(model, kind, Path(folder))
        try:
            yield found
        finally:
            found.end()


@contextmanager
def http(quantise: str) -> Iterator[Callable[[int], AbstractContextManager[Callable[[], float]]]]:
    """A bundle as a user makes it, and what serves it with so many threads: milliseconds a token of a stream."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, "-m", "mii_azure.cli.app", "generate", "--task", "text-generation", "--model"]
        command += [str(packaged_model("smollm2")), "--name", "bench", "--quantise", quantise, "--server", "http"]
        command += ["--instance-type", "Standard_F4s_v2"]
        subprocess.run([*command, "--output", str(folder / "bundle")], check=True, stdout=subprocess.DEVNULL)
        yield partial(streamed, folder)


@contextmanager
def streamed(folder: Path, threads: int) -> Iterator[Callable[[], float]]:
    """Milliseconds a token of a stream over HTTP, from a server with so many threads."""
    request = body("The history of science is a story of people who asked how things work.", TOKENS, "stream")
    before = dict(os.environ)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    try:
        with served(folder, []) as (_, port):

            def ms() -> float:
                good, stamps = asyncio.run(ask(port, request))
                assert good
                # Behind the tokens' events come the answer as a whole, and the connection's end.
                return 1e3 * (stamps[-3] - stamps[0]) / (TOKENS - 1)

            log = (folder / "serve.log").read_text().splitlines()
            print(*(line.partition("timed at start; ")[2] for line in log if "weight_only" in line), flush=True)
            yield ms
    finally:
        os.environ.clear()
        os.environ.update(before)


class Side(NamedTuple):
    """One side of the comparison: what it measures, and the bytes that it reads for a number of the weights."""

    name: str
    measure: Callable[[], float]
    bytes_each: float
    differs: float | None = None
    rows: int = 1
    threads: int | None = None  # where they are not torch's


class Ggml(NamedTuple):
    """A format of llama.cpp's."""

    name: str
    bytes_each: float


WIDE = "transformers, float32"
_FOUR = 0.5 + 4 / 64
FORMATS = {"int8": 1.0, "int4": _FOUR}  # bytes of a number
_GGML = {"int8": Ggml("Q8_0", 34 / 32), "int4": Ggml("Q4_0", 18 / 32)}


class Report:
    """Rows of every side, written whenever some have come: a run that is cut off leaves what it has measured.

    Those that are not measured again stay, with their own revision, if they are of the same machine and packages.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._told = folder, provenance()
        path = folder / "cpu_decoders.json"
        before: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        kept = all(before.get(key) == self._told[key] for key in SAME)
        self._speeds = list[float]()
        self._kept = list[dict[str, Any]](before["rows"] if kept else [])
        self._rows = list[dict[str, Any]]()
        self._prompts = dict[str, Any](before["prompts"] if kept else {})

    def speed(self) -> float:
        """The best bandwidth seen, this time's among them."""
        self._speeds.append(bandwidth())
        return max(self._speeds)

    def prompt(self, name: str, told: dict[str, Any]) -> None:
        """Note what is known of a model's size and prompt."""
        self._prompts[name] = self._prompts.get(name, {}) | told

    def add(self, name: str, layers: int, found: dict[Side, float]) -> None:
        """Add rows of a model, and write all."""
        for side, taken in found.items():
            row = {"model": name, "side": side.name, "ms a token": taken, "differs": side.differs, "rows": side.rows}
            row |= {"threads": side.threads or torch.get_num_threads(), "layers": layers}
            row |= {"revision": self._told["revision"], "bytes": self._prompts[name]["parameters"] * side.bytes_each}
            self._kept = [before for before in self._kept if _key(before) != _key(row)]
            self._rows.append(row)
        self.write()

    def write(self) -> list[dict[str, Any]]:
        """Write rows with floors by their own run's best bandwidth, and ratios where a model's float32 is there."""
        most = self.speed()
        rows = sorted([*self._kept, *self._rows], key=lambda row: MODELS.index(row["model"]))
        wide = {row["model"]: row["ms a token"] for row in rows if row["side"] == WIDE}
        for row in self._rows:
            row["GB/s"] = most / 1e9
            row["floor ms"] = 1e3 * row["bytes"] / most
            row["of bandwidth %"] = 100 * row["floor ms"] / row["ms a token"]
        for row in rows:
            row["of float32"] = wide[row["model"]] / row["ms a token"] if row["model"] in wide else None
        write("cpu_decoders", self._told | {"rows": rows, "prompts": self._prompts}, self._folder)
        return rows


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    """What makes a row the same measurement; the number of threads of narrow weights in process is a result."""
    return row["model"], row["side"], row["threads"] if "HTTP" in row["side"] else None


def measure(name: str, part: str, report: Report) -> None:
    """A part of one model's sides, or every one, those that are compared closely first."""
    from scoring.decoder.decoder import Decoder

    model = made(name)
    whole: Any = Decoder(model, slots=1, max_length=32).model
    size = sum(product.full.numel() for product in whole.products())
    report.prompt(name, {"parameters": size})
    add = partial(report.add, name, model.config.num_hidden_layers)
    if part in ("", "narrow"):
        for kind in FORMATS:
            with llama_cpp(model, _GGML[kind].name) as other:
                add(turns(narrow_sides(model, name, kind, other)))
    if name == "smollm2" and part in ("", "http"):
        over_http(model, size, add)
    if part in ("", "wide"):
        decoder: Any = Decoder(model, slots=1, max_length=256)
        ms = median(prompt_ms(decoder, LONG) for _ in range(RUNS))
        report.prompt(name, {"tokens": LONG, "ms": ms, "parameters": size})
        add(turns([Side(WIDE, partial(eager_ms, model), 4)]))
        add(turns([Side("ours by torch, float32", partial(steps_ms, decoder), 4)]))
        del decoder
        model.bfloat16()
        add(turns([Side("transformers, bfloat16", partial(eager_ms, model), 2)]))


def over_http(model: Any, size: int, add: Callable[[dict[Side, float]], None]) -> None:
    """Streams of servers over int8 and int4 weights, of one thread and of all."""
    head = model.config.vocab_size * model.config.hidden_size / size  # which generate leaves as it is
    for quantise, each, told in (("none", 1.0, "int8"), ("int4", _FOUR * (1 - head) + head, "int4 (made by generate)")):
        with http(quantise) as bundle:
            for threads in sorted({1, torch.get_num_threads()}):
                with bundle(threads) as ms:
                    add(turns([Side(f"ours, {told}, over HTTP", ms, each, threads=threads)]))


def narrow_sides(model: Any, name: str, kind: str, other: LlamaCpp | None) -> list[Side]:
    """Sides over int8 or int4 weights: ours, of one sequence and of several, and llama.cpp's between."""
    from scoring.decoder.decoder import Decoder

    decoder = narrow(Decoder(model, slots=ROWS, max_length=256), four=kind == "int4")
    differs = difference(decoder, model) if (name, kind) == ("smollm2", "int8") else None
    step, each, ggml = decoder.plain.narrow, FORMATS[kind], _GGML[kind]
    groups = " in groups of 64 (a checkpoint's)" if kind == "int4" else ""
    return [
        Side(f"ours, {kind}{groups}", partial(steps_ms, decoder), each, differs, threads=step.threads_of_one),
        *([Side(f"llama.cpp, {ggml.name}", other.ms, ggml.bytes_each)] if other else []),
        Side(f"ours, {kind}, {ROWS} rows", partial(steps_ms, decoder, ROWS), each, None, ROWS, step.threads),
    ]


def turns(sides: Sequence[Side]) -> dict[Side, float]:
    """Each side once, then each again; the median of a few rounds."""
    rounds = [[side.measure() for side in sides] for _ in range(RUNS)]
    found = {side: median(times) for side, times in zip(sides, zip(*rounds, strict=True), strict=True)}
    for side, taken in found.items():
        print(f"{side.name}, {side.threads or 'all'} threads: {taken:.2f} ms", flush=True)
    return found


def narrow(decoder: Any, four: bool = False) -> Any:
    """A decoder over int8 or int4 weights, with as many threads as the pass would choose."""
    from scoring.passes.weight_only import fastest

    give_int4(decoder.model) if four else decoder.use_int8()
    decoder.plain.use_narrow()
    fastest(decoder, steps_ms)
    return decoder


def difference(decoder: Any, model: Any) -> float:
    """Relative error of cached steps against plain transformers."""
    from scoring.decoder.verify import errors, reference

    return float(errors(decoder, reference(model)())["decode"])


def give_int4(model: Any) -> None:
    """Give every product int4 numbers, as a checkpoint would have them; their answers are not looked at."""
    from scoring.decoder.int4 import pack, use
    from scoring.quantization.dequantize import Grid

    for product in model.products():
        shape = product.full.shape
        values = torch.randint(0, 16, shape, dtype=torch.uint8)
        scale = torch.full((shape[0], shape[1] // 64), 0.01)
        packed = pack(Grid(values, scale, (1, 64), torch.full_like(scale, 8)))
        assert packed is not None
        product.wide = product.full
        use(product, [packed])


def main() -> None:
    """Measure, print, write."""
    if "OMP_WAIT_POLICY" not in os.environ:  # OpenMP waits as in a server, which it is told before torch is imported
        cpus.settle()
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.cpu_decoders", *sys.argv[1:]])
    report = Report(Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS)
    print(f"{report.speed() / 1e9:.1f} GB/s", flush=True)
    for each in sys.argv[2:] or MODELS:
        name, _, part = each.partition("/")
        measure(name, part, report)
    rows = report.write()
    print(table(tuple(rows[0]), rows))


if __name__ == "__main__":
    main()
