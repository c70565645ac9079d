"""First token of long prompts: ours beside a plain forward of transformers with sdpa, and the floor, on one GPU.

`python -m benchmarks.long_prompts [--only NAME ...] [--out FOLDER]` prints the table and writes long_prompts.json.
Random weights of the real shapes, in bfloat16. The forward computes one position's logits. `ours` goes through the
scheduler, from a prompt's tokens to its first one on the host. Then one stream runs, a long prompt comes, and the
longest time between two of the stream's tokens is taken.
"""

import gc
import json
import time
from collections.abc import Sequence
from copy import deepcopy
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks.command_line import Parser
from benchmarks.common import ceilings, device_ms, provenance, table, write
from benchmarks.decoders import attempt
from scoring.decoder.decoder import Decoder
from scoring.engine.row import SLOTS, Row
from scoring.generation.scheduler import Scheduler
from scoring.telemetry.statistics import Statistics

SHAPES: dict[str, dict[str, Any]] = {
    "llama-3.2-3b": {
        "vocab_size": 128_256, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28,
        "num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 131_072,
        "tie_word_embeddings": True,
    },
    "llama-3.2-1b": {
        "vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "max_position_embeddings": 131_072,
        "tie_word_embeddings": True,
    },
}  # fmt: skip
LENGTHS = (512, 2048, 8192, 32_768, 100_000)
BESIDE = 32_768  # tokens of the prompt that comes beside a stream
SLOTS_HELD = 64
EXACT = 8192  # tokens up to which logits are compared with float32's
COLUMNS = ("model", "tokens", "sdpa", "ours", "over sdpa", "floor", "floor share")


def make(shape: dict[str, Any]) -> Any:
    """A model with random weights on the GPU, in bfloat16."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            return LlamaForCausalLM(LlamaConfig(**shape, attn_implementation="sdpa")).eval()
    finally:
        torch.set_default_dtype(torch.float32)


def prompt(length: int, seed: int) -> list[int]:
    """Random tokens; other seeds share no beginning."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(5, 32_000, (length,), generator=generator).tolist()


class Task:
    """What a scheduler needs of a task, for greedy answers that end at their length."""

    eos: tuple[int, ...] = ()
    stops = None
    statistics = Statistics()

    def generation_config(self, settings: Any) -> tuple[Any, int | None]:
        """The row's settings are its config."""
        return settings, None


def row_of(ids: list[int], new: int) -> Row:
    """A request of these tokens and so many new ones."""
    settings = SimpleNamespace(
        do_sample=False, temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.0, min_new_tokens=new,
        max_new_tokens=new, details=None, adapter="", salt="", stop=None, constraint=None,
        adjustments=None, stop_ids=(),
    )  # fmt: skip
    return Row({"input_ids": ids}, 0, SLOTS, settings, new_tokens=new)


def settle() -> None:
    """Wait for a GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def sdpa_ms(model: Any, length: int, calls: int) -> float:
    """Milliseconds of plain transformers' forward over a prompt, logits of its last token."""
    times = []
    for seed in range(calls + 1):
        ids = torch.tensor([prompt(length, seed)], device="cuda")
        settle()
        began = time.perf_counter()
        model(ids, use_cache=True, logits_to_keep=1).logits.argmax(-1).item()
        times.append(1e3 * (time.perf_counter() - began))
    return median(times[1:])


def first_ms(decoder: Decoder, length: int, calls: int) -> float:
    """Milliseconds from a prompt's tokens to its first new one, by a scheduler with nothing else to do."""
    times = []
    for seed in range(calls + 1):
        slots, done = Scheduler(Task(), decoder, decoder.capacity, reuse=False), []
        row = row_of(prompt(length, seed), 1)
        settle()
        began = time.perf_counter()
        slots.add(row, done.append)
        while not done:
            slots.step()
        times.append(1e3 * (time.perf_counter() - began))
        check(done)
    return median(times[1:])


def check(done: Sequence[Any]) -> None:
    """Raise the error of a request that failed."""
    for each in done:
        if isinstance(each, Exception):
            raise each


def gaps_ms(decoder: Decoder, length: int) -> dict[str, Any]:
    """Milliseconds between a stream's tokens while a long prompt comes, and to that prompt's first token."""
    slots, done = Scheduler(Task(), decoder, decoder.capacity, reuse=False), []
    slots.add(row_of(prompt(200, 1), 4000), done.append)
    for _ in range(20):
        slots.step()
    (stream,) = slots._decoding
    slots.add(row_of(prompt(length, 2), 1), done.append)
    began = last = time.perf_counter()
    gaps, held = [], len(stream.tokens)
    while not done:
        slots.step()
        now = time.perf_counter()
        if len(stream.tokens) > held:
            gaps.append(1e3 * (now - last))
            held, last = len(stream.tokens), now
    first = 1e3 * (last - began)
    stream.row.cancelled.set()
    while slots.active:
        slots.step()
    check(done)
    return {
        "longest gap": max(gaps),
        "median gap": median(gaps),
        "beside first": first,
        "gaps": [round(gap, 1) for gap in gaps],
    }


def steps_ms(decoder: Decoder, length: int, card: dict[str, float]) -> dict[str, float]:
    """Milliseconds of a step of a long row alone, and beside short ones with its keys split as theirs, and further.

    The floors: weights and live keys and values at the card's measured bandwidth.
    """
    back_end: Any = decoder._cuda
    slots = list(range(SLOTS_HELD))
    for slot in slots:
        decoder.open(slot)
        decoder._reserve([(slot, live := 400 if slot else length)])
        decoder.lengths[slot] = decoder.state.lengths[slot] = live - 1
    found = {}
    for name, size, graphs in (
        ("alone", 1, back_end.graphs.near), ("split alike", SLOTS_HELD, back_end.graphs.near),
        ("split further", SLOTS_HELD, back_end.graphs.far),
    ):  # fmt: skip
        decoder.step(slots[:size]).tokens()  # places the rows
        decoder.state.lengths[:SLOTS_HELD] = torch.tensor(decoder.lengths, dtype=torch.int32)
        found[name] = device_ms(graphs[size].replay, 8)
    for slot in slots:
        decoder.release(slot)
    model: Any = decoder.model
    for name, live in (("floor alone", length), ("floor", length + 400 * (SLOTS_HELD - 1))):
        found[name] = 1e3 * (model.step_bytes() + live * model.kv_bytes_per_token()) / card["bandwidth"]
    return found


def floor_ms(decoder: Decoder, length: int, card: dict[str, float]) -> float:
    """Milliseconds of a prompt's arithmetic at the card's rate, causal attention counted by half, head once."""
    model: Any = decoder.model
    products = sum(each.weight.numel() for each in model.products()[:-1])
    attention = 2 * len(model.layers) * model.heads * model.head_dim * length**2
    return float(1e3 * (2 * products * length + attention) / card["peak"])


def answers(model: Any, lengths: Sequence[int]) -> dict[int, tuple[torch.Tensor, float]]:
    """Logits after a prompt by length, by plain transformers in float32, and the relative error of sdpa in bfloat16."""
    found = {}
    ours = {n: _after(model, n) for n in lengths if n <= EXACT}
    exact = deepcopy(model).float()
    for n, narrow in ours.items():
        wide = _after(exact, n)
        found[n] = wide, float((narrow - wide).norm() / wide.norm())
    return found


def _after(model: Any, length: int) -> torch.Tensor:
    ids = torch.tensor([prompt(length, 99)], device="cuda")
    logits: torch.Tensor = model(ids, use_cache=False, logits_to_keep=1).logits[0, -1].float()
    return logits


def closeness(decoder: Decoder, length: int, told: torch.Tensor) -> float:
    """Relative error of the logits after a prompt."""
    decoder.open(0)
    found = decoder.prefill(0, prompt(length, 99)).float()
    decoder.release(0)
    return float((found - told).norm() / told.norm())


def kernels(decoder: Decoder, length: int) -> dict[str, float]:
    """Milliseconds of the kernels that take the most of a prompt's chunk, by name."""
    from torch.profiler import ProfilerActivity, profile

    back_end: Any = decoder._cuda
    with profile(activities=[ProfilerActivity.CUDA]) as told:
        back_end._enqueue([(decoder.slots, 0, [0] * length)])
        torch.cuda.synchronize()
    times = {each.key[:60]: each.self_device_time_total / 1e3 for each in told.key_averages()}
    return {name: round(ms, 2) for name, ms in sorted(times.items(), key=lambda pair: -pair[1])[:14]}


def _measured(name: str, lengths: Sequence[int], card: dict[str, float]) -> dict[str, Any]:
    model, rows = make(SHAPES[name]), []
    plain = {n: attempt(lambda n=n: sdpa_ms(model, n, 3 if n < 30_000 else 1), f"sdpa {n}") for n in lengths}
    exact = attempt(lambda: answers(model, lengths), "exact") or {}
    gc.collect()
    torch.cuda.empty_cache()
    began = time.perf_counter()
    decoder = Decoder(model, SLOTS_HELD, 131_072, share=0.6)
    decoder.warm_up()
    told: dict[str, Any] = {"prepare s": time.perf_counter() - began, "cost": vars(decoder.prompt_cost)}
    for n in lengths:
        ours = attempt(lambda n=n: first_ms(decoder, n, 3 if n < 30_000 else 1), f"ours {n}")
        floor = floor_ms(decoder, n, card)
        row = {"model": name, "tokens": n, "sdpa": plain[n], "ours": ours, "floor": floor}
        if ours and plain[n]:
            row |= {"over sdpa": ours / plain[n], "floor share": floor / ours}
        if n in exact:
            row |= {"error": closeness(decoder, n, exact[n][0]), "sdpa error": exact[n][1]}
        rows.append(row)
        print(json.dumps(row), flush=True)
    told["beside"] = attempt(lambda: gaps_ms(decoder, BESIDE), "beside")
    told["steps"] = attempt(lambda: steps_ms(decoder, 100_000, card), "steps")
    told["kernels"] = attempt(lambda: kernels(decoder, 8192), "kernels")
    print(json.dumps(told), flush=True)
    return {"rows": rows, **told}


@torch.inference_mode()
def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = Parser(__doc__, gpus=1)
    parser.add_argument("--only", nargs="*", default=list(SHAPES))
    parser.add_argument("--lengths", nargs="*", type=int, default=list(LENGTHS))
    chosen = parser.parse_args()
    card = ceilings()
    models = {}
    for name in chosen.only:
        models[name] = _measured(name, chosen.lengths, card)
        gc.collect()
        torch.cuda.empty_cache()
        write("long_prompts", provenance() | {"ceilings": card, "models": models}, chosen.out)
    print(table(COLUMNS, [row for each in models.values() for row in each["rows"]]))


if __name__ == "__main__":
    main()
