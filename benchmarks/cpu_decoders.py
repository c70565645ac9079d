"""Decoders on a CPU, one stream: plain transformers, our steps by torch and over narrow weights, and the floor.

`python -m benchmarks.cpu_decoders [OUTPUT FOLDER [MODEL ...]]` prints a table and writes cpu_decoders.json. The models
are smollm2 (real weights) and llama-1b (its shape, random weights); llama.cpp is beside them where llama-cpp-python is
installed. Milliseconds a token of one sequence after a prompt of 16 tokens; the floor is the bytes of the weights of a
step over the bandwidth measured here. It wants an idle machine.
"""

import copy
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from benchmarks.common import RESULTS, table, write
from benchmarks.cpu.__main__ import provenance

PROMPT, TOKENS, RUNS = 16, 32, 3
MODELS = ("smollm2", "llama-1b")
_AT_LEAST = 1 << 27  # float32 numbers read to measure bandwidth, more than caches hold


def bandwidth() -> float:
    """Bytes a second of a sum over memory by all threads, the best of a few."""
    numbers = torch.ones(_AT_LEAST)
    numbers.sum()
    times = []
    for _ in range(40):  # a neighbour's work must not pass for the machine's limit
        began = time.perf_counter()
        numbers.sum()
        times.append(time.perf_counter() - began)
    return numbers.nbytes / min(times)


def made(name: str) -> Any:
    """A model in float32."""
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    from mii_azure.model.packaged import packaged_model

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


def steps_ms(decoder: Any) -> float:
    """Our decoder's steps, the token read after each."""
    decoder.open(0)
    decoder.prefill(0, list(range(5, 5 + PROMPT)))
    decoder.sample([0]).tokens()
    times = []
    for _ in range(TOKENS):
        began = time.perf_counter()
        decoder.step([0]).tokens()
        times.append(time.perf_counter() - began)
    decoder.release(0)
    return 1e3 * median(times)


def llama_cpp_ms(model: Any, kind: str) -> float | None:
    """llama.cpp over the same weights in a GGUF file of this benchmark's, in one of its own formats."""
    try:
        import llama_cpp  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return None
    from benchmarks.gguf_file import write_llama

    with tempfile.TemporaryDirectory() as folder:
        path = write_llama(model, Path(folder) / "model.gguf", kind)
        threads = torch.get_num_threads()
        other = llama_cpp.Llama(str(path), n_ctx=128, n_threads=threads, n_threads_batch=threads, verbose=False)
        other.eval(list(range(5, 5 + PROMPT)))
        times = []
        for number in range(TOKENS):
            began = time.perf_counter()
            other.eval([7 + number])
            times.append(time.perf_counter() - began)
    return 1e3 * median(times)


class Side(NamedTuple):
    """One side of the comparison: what it measures, and the bytes that it reads for a number of the weights."""

    name: str
    measure: Callable[[], float | None]
    bytes_each: float
    differs: float | None = None


def rows_of(name: str, speed: float) -> list[dict[str, Any]]:
    """Every side of one model, in turns: each once, then each again; the median of a few rounds."""
    from scoring.decoder.decoder import Decoder

    model = made(name)
    wide: Any = Decoder(model, slots=1, max_length=128)
    size = sum(product.full.numel() for product in wide.model.products())
    eight, differs = narrow(model, name)
    rounded = copy.deepcopy(model).bfloat16()
    sides = (
        Side("transformers, float32", lambda: eager_ms(model), 4),
        Side("ours by torch, float32", lambda: steps_ms(wide), 4),
        Side("ours, int8", lambda: steps_ms(eight), 1, differs),
        Side("ours, int4 in groups of 64 (a checkpoint's)", partial(steps_ms, narrow(model, "")[0]), 0.5 + 4 / 64),
        Side("llama.cpp, Q8_0", lambda: llama_cpp_ms(model, "Q8_0"), 34 / 32),
        Side("llama.cpp, Q4_0", lambda: llama_cpp_ms(model, "Q4_0"), 18 / 32),
        Side("transformers, bfloat16", lambda: eager_ms(rounded), 2),
    )
    rounds = [[side.measure() for side in sides] for _ in range(RUNS)]
    rows: list[dict[str, Any]] = []
    for side, found in zip(sides, zip(*rounds, strict=True), strict=True):
        times = [each for each in found if each is not None]
        if not times:
            continue
        floor, taken = 1e3 * size * side.bytes_each / speed, median(times)
        first = rows[0]["ms a token"] if rows else taken
        row = {"model": name, "side": side.name, "ms a token": taken, "floor ms": floor}
        row |= {"of bandwidth %": 100 * floor / taken, "of float32": first / taken, "differs": side.differs}
        rows.append(row)
        print(row, flush=True)
    return rows


def narrow(model: Any, name: str) -> tuple[Any, float | None]:
    """A decoder of its own over int8 weights, or without a name int4 ones, and by how much a real model's differs."""
    from scoring.decoder.decoder import Decoder
    from scoring.decoder.verify import errors, reference
    from scoring.passes.weight_only import fastest

    decoder: Any = Decoder(model, slots=1, max_length=128)
    decoder.use_int8() if name else four(decoder.model)
    decoder.plain.use_narrow()
    fastest(decoder, steps_ms)  # as many threads as the pass would choose
    return decoder, errors(decoder, reference(model)())["decode"] if name == "smollm2" else None


def four(model: Any) -> None:
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
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS
    told, speed, rows = provenance(), bandwidth(), list[dict[str, Any]]()
    print(f"{speed / 1e9:.1f} GB/s", flush=True)
    for name in sys.argv[2:] or MODELS:
        rows += rows_of(name, speed)
        write("cpu_decoders", told | {"GB/s": speed / 1e9, "rows": rows}, folder)
    print(table(tuple(rows[0]), rows))


if __name__ == "__main__":
    main()
