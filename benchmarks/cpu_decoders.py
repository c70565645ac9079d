"""Decoders on a CPU, one stream: plain transformers, ours in process and over HTTP, llama.cpp, and the floor.

`python -m benchmarks.cpu_decoders [OUTPUT FOLDER [MODEL ...]]` prints a table and writes cpu_decoders.json. The models
are smollm2 (real weights) and llama-1b (its shape, random weights); llama.cpp is beside them where llama-cpp-python is
installed. Milliseconds a token of one sequence after a prompt of 16 tokens. The floor is the bytes of the weights of a
step over the best bandwidth seen, which is measured several times, since a virtual machine's varies. Who is compared
closely takes turns. It wants an idle machine.
"""

import asyncio
import importlib.util
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

from benchmarks.common import RESULTS, table, write
from benchmarks.cpu.__main__ import provenance
from benchmarks.http_clients import ask, body
from benchmarks.over_http import served
from mii_azure.model.packaged import packaged_model
from scoring.limits import cpus

PROMPT, TOKENS, RUNS, LONG = 16, 32, 3, 128
ROWS = 8  # of a batch: as many as a plan gives a CPU
MODELS = ("smollm2", "llama-1b")
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
def llama_cpp(model: Any) -> Iterator[dict[str, LlamaCpp]]:
    """llama.cpp in two of its own formats; none where it is not installed."""
    found: dict[str, LlamaCpp] = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for kind in ("Q8_0", "Q4_0") if importlib.util.find_spec("llama_cpp") else ():
                found[kind] = LlamaCpp(model, kind, Path(folder))
            yield found
        finally:
            for each in found.values():
                each.end()


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


_FOUR = 0.5 + 4 / 64
_GGML = {"Q8_0": 34, "Q4_0": 18}  # bytes of 32 numbers


def rows_of(name: str, speed: Callable[[], float]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of every side of one model, and its prompts' milliseconds."""
    from scoring.decoder.decoder import Decoder

    model = made(name)
    decoder: Any = Decoder(model, slots=ROWS, max_length=256)
    size = sum(product.full.numel() for product in decoder.model.products())
    prompts = {"tokens": LONG, "ms": median(prompt_ms(decoder, LONG) for _ in range(RUNS)), "parameters": size}
    wide = Side("transformers, float32", partial(eager_ms, model), 4)
    found = turns([wide, Side("ours by torch, float32", partial(steps_ms, decoder), 4)])
    speed()
    with llama_cpp(model) as others:
        found |= turns(narrow_sides(model, decoder, name, others))
    found |= over_http(model, size) if name == "smollm2" else {}
    decoder.plain.use_wide()
    model.bfloat16()
    found |= turns([Side("transformers, bfloat16", partial(eager_ms, model), 2)])
    rows, most = [], speed()
    for side, taken in found.items():
        read = size * side.bytes_each
        floor = 1e3 * read / most
        row = {"model": name, "side": side.name, "ms a token": taken, "floor ms": floor}
        row |= {"of bandwidth %": 100 * floor / taken, "of float32": found[wide] / taken, "differs": side.differs}
        row |= {"rows": side.rows, "threads": side.threads or torch.get_num_threads()}
        rows.append(row | {"layers": model.config.num_hidden_layers, "bytes": read})
    return rows, prompts


def over_http(model: Any, size: int) -> dict[Side, float]:
    """Streams of servers over int8 and int4 weights, of one thread and of all."""
    head = model.config.vocab_size * model.config.hidden_size / size  # which generate leaves as it is
    found: dict[Side, float] = {}
    for quantise, each, told in (("none", 1.0, "int8"), ("int4", _FOUR * (1 - head) + head, "int4 (made by generate)")):
        with http(quantise) as bundle:
            for threads in sorted({1, torch.get_num_threads()}):
                with bundle(threads) as ms:
                    found |= turns([Side(f"ours, {told}, over HTTP", ms, each, threads=threads)])
    return found


def narrow_sides(model: Any, decoder: Any, name: str, others: dict[str, LlamaCpp]) -> list[Side]:
    """Sides over narrow weights: ours, of which the decoder gets int8, and llama.cpp's."""
    from scoring.decoder.decoder import Decoder

    four = narrow(Decoder(model, slots=ROWS, max_length=256), four=True)
    narrow(decoder)
    differs = difference(decoder, model) if name == "smollm2" else None
    eights, fours = decoder.plain.narrow.threads, four.plain.narrow.threads
    return [
        Side("ours, int8", partial(steps_ms, decoder), 1, differs, threads=eights),
        Side("ours, int4 in groups of 64 (a checkpoint's)", partial(steps_ms, four), _FOUR, threads=fours),
        *(Side(f"llama.cpp, {kind}", each.ms, _GGML[kind] / 32) for kind, each in others.items()),
        Side(f"ours, int8, {ROWS} rows", partial(steps_ms, decoder, ROWS), 1, None, ROWS, eights),
        Side(f"ours, int4, {ROWS} rows", partial(steps_ms, four, ROWS), _FOUR, None, ROWS, fours),
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
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS
    told, seen = provenance(), list[float]()

    def speed() -> float:
        seen.append(bandwidth())
        return max(seen)

    rows, prompts = list[dict[str, Any]](), dict[str, Any]()
    print(f"{speed() / 1e9:.1f} GB/s", flush=True)
    for name in sys.argv[2:] or MODELS:
        found, prompts[name] = rows_of(name, speed)
        rows += found
        write("cpu_decoders", told | {"GB/s": max(seen) / 1e9, "rows": rows, "prompts": prompts}, folder)
    print(table(tuple(rows[0]), rows))


if __name__ == "__main__":
    main()
