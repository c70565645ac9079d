"""What `--batch-invariant` and `--kv-cache-dtype fp8` cost and give on one GPU: Llama-1.1B's shape, random weights.

    python -m benchmarks.cache_forms [--dtype bfloat16] [--forms NAME ...] [--out FOLDER]

It prints the figures and writes cache_forms.json, or cache_forms-bfloat16.json. Bits: one prompt's logits, and those of
steps after it, alone and among 3, 16, 64 and 256 rows, its prompt whole and in pieces, and its last tokens fed one by
one. Throughput: 256 requests of 16 to 256 prompt tokens and 128 answered each through the scheduler, sides in turns.
Steps: 256 slots that all hold a long context. Start: seconds until all graphs are captured, and of trying the bits.
"""

import gc
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import torch

from benchmarks.command_line import Parser
from benchmarks.common import provenance, write
from benchmarks.decoder_shapes import CASES, make
from benchmarks.speculation import Task
from scoring.decoder.company import difference
from scoring.decoder.decoder import Decoder
from scoring.decoder.verify import errors, reference
from scoring.engine.row import Row
from scoring.generation.scheduler import Scheduler
from scoring.generation.settings import GenerationSettings

MODEL, SLOTS, LENGTH = "llama-1.1b", 256, 2048
FORMS: dict[str, dict[str, Any]] = {"plain": {}, "batch-invariant": {"fixed": True}, "fp8": {"narrow": True}}
ROWS = (1, 3, 16, 64, 256)
CONTEXTS = (256, 1024, 1536)
_NEW, _STEPS, _TURNS = 128, 8, 2


def decoder_of(model: Any, form: str) -> Decoder:
    """A decoder of this form, its cache large enough for all contexts."""
    return Decoder(model, SLOTS, LENGTH, tokens=SLOTS * (CONTEXTS[-1] + 128), **FORMS[form])


@torch.inference_mode()
def bits(decoder: Decoder) -> dict[str, bool]:
    """Whether one prompt's logits are the same bits alone and among others, by what was tried."""
    random_ids = random.Random(0)
    mine = [random_ids.randrange(5, 32000) for _ in range(700)]
    others = [[random_ids.randrange(5, 32000) for _ in range(16 + 37 * row % 300)] for row in range(SLOTS)]
    alone, found = _logits(decoder, mine, others[:0], len(mine)), {}
    for rows in ROWS:
        for piece in (len(mine), 128, 50):
            got = _logits(decoder, mine, others[: rows - 1], piece)
            same = all(torch.equal(one, two) for one, two in zip(alone, got, strict=True))
            found[f"{rows} rows, pieces of {piece}"] = same
    decoder.open(9)
    decoder.prefill(9, mine[:600])
    decoder.sample([9])
    for token in mine[600:]:
        decoder.feed(9, token)
        decoder.step([9])
    found["last 100 tokens one by one"] = torch.equal(decoder.last_logits(1)[0], alone[0])
    decoder.release(9)
    return found


def _logits(decoder: Decoder, mine: Sequence[int], others: Sequence[Sequence[int]], piece: int) -> list[torch.Tensor]:
    """Logits after a prompt and after some steps, the prompt's row amid the others'."""
    place = len(others) // 2
    slots = [(row + 5) % SLOTS for row in range(len(others) + 1)]
    prompts = [*others[:place], mine[:piece], *others[place:]]
    for slot in slots:
        decoder.open(slot)
    logits = decoder.prefill_many(list(zip(slots, prompts, strict=True)))[place]
    for first in range(piece, len(mine), piece):
        logits = decoder.prefill(slots[place], mine[first : first + piece])
    found = [logits.clone()]
    decoder.sample(slots)
    for number in range(_STEPS):
        decoder.feed(slots[place], 100 + number)
        decoder.step(slots)
        found.append(decoder.last_logits(len(slots))[place].clone())
    for slot in slots:
        decoder.release(slot)
    return found


def tokens_per_second(decoder: Decoder, new: int = _NEW) -> float:
    """Tokens answered per second of 256 requests that come at once, prompts included."""
    task: Any = Task()
    lengths, scheduler = random.Random(0), Scheduler(task, decoder, decoder.capacity, reuse=False)
    done: list[Any] = []
    for _ in range(SLOTS):
        ids = [lengths.randrange(5, 32000) for _ in range(lengths.randint(16, 256))]
        row = Row({"input_ids": ids}, 0, parameters=GenerationSettings((("max_new_tokens", new),)), new_tokens=new)
        scheduler.add(row, done.append)
    torch.cuda.synchronize()
    began = time.perf_counter()
    while scheduler.active:
        scheduler.step()
    seconds = time.perf_counter() - began
    assert not any(isinstance(each, Exception) for each in done), done
    return SLOTS * new / seconds


@torch.inference_mode()
def step_times(decoder: Decoder, rows: int) -> dict[str, float]:
    """Milliseconds of a step of so many slots by the tokens that each holds."""
    slots, found = list(range(rows)), {}
    for slot in slots:
        decoder.open(slot)
    held = 0
    for context in CONTEXTS:
        more = [7 + place % 30_000 for place in range(context - held)]
        for first in range(0, rows, 4):
            decoder.prefill_many([(slot, more) for slot in slots[first : first + 4]])
        decoder.sample(slots).tokens()
        decoder.step(slots).tokens()
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(20):
            late = decoder.step(slots)
        late.tokens()
        torch.cuda.synchronize()
        found[str(context)], held = 50 * (time.perf_counter() - began), context + 21
    for slot in slots:
        decoder.release(slot)
    return found


def started(model: Any, form: str) -> tuple[Decoder, dict[str, float]]:
    """A decoder with all its graphs, and the seconds that this took; of batch invariance its trial too."""
    began = time.perf_counter()
    decoder = decoder_of(model, form)
    decoder.warm_up()
    torch.cuda.synchronize()
    seconds = {"graphs": time.perf_counter() - began}
    if form == "batch-invariant":
        told = difference(decoder, model.config)
        seconds["trial"] = time.perf_counter() - began - seconds["graphs"]
        assert not told, told
    return decoder, seconds


def measure(model: Any, forms: Sequence[str], keep: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """All figures, by form; `keep` is given them after each."""
    told = reference(model)()
    result: dict[str, Any] = {}
    for form in forms:
        decoder, seconds = started(model, form)
        own: dict[str, Any] = {"start_seconds": seconds, "cache_bytes": decoder.state.bytes()}
        own["errors"] = errors(decoder, told)
        tokens_per_second(decoder, 8)  # compiles and captures
        tokens_per_second(decoder, 64)
        own["tokens_per_second"] = [tokens_per_second(decoder) for _ in range(_TURNS)]
        own["step_ms"] = {str(rows): step_times(decoder, rows) for rows in (1, 16, 256)}
        if form == "batch-invariant":
            own["bits"] = bits(decoder)
            own |= _queries(decoder)
        result[form] = own
        print(form, own, flush=True)
        keep(result)
        del decoder
        gc.collect()
        torch.cuda.empty_cache()
    rates = {form: median(result[form]["tokens_per_second"]) for form in forms}
    result["cost"] = {form: 1 - rates[form] / rates["plain"] for form in forms}
    return result


def _queries(decoder: Decoder) -> dict[str, Any]:
    """Which tile the attention of steps has, and which products are the library's."""
    backend = decoder._cuda
    step = backend.launcher
    kernels = [
        f"{key}" for key, alike in {**step.products._alike, **backend.prefiller.products._alike}.items() if not alike
    ]
    return {"fewer_queries": step.fewer, "products_by_the_kernel": kernels}


def main() -> None:
    parser = Parser(__doc__, gpus=1)
    parser.add_argument("--dtype", choices=("float16", "bfloat16"), default="float16")
    parser.add_argument("--forms", nargs="+", choices=list(FORMS), default=list(FORMS), help="beside plain")
    asked = parser.parse_args()
    name = "cache_forms" if asked.dtype == "float16" else f"cache_forms-{asked.dtype}"
    told = {**provenance(), "model": MODEL, "dtype": asked.dtype}
    model = make(replace(CASES[MODEL], dtype=asked.dtype))
    forms = [form for form in FORMS if form in ("plain", *asked.forms)]
    result = told | measure(model, forms, lambda found: write(name, told | found, asked.out))
    print(f"cost: {result['cost']}")
    write(name, result, asked.out)
    sys.exit(0 if all(result.get("batch-invariant", {}).get("bits", {}).values()) else 1)


if __name__ == "__main__":
    main()
