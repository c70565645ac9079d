"""Adapters beside their base in a step's rows: the tokens of plain peft, and what a batch of as many adapters costs.

    python -m benchmarks.adapters [--shapes 1b 8b] [--adapters 32] [--check] [--out FOLDER]

Steps of the base and of rows that each have an adapter of their own take turns; their medians are compared. The floor
is what the adapters' bytes alone add to those of the base, each read once. `--check` generates with peft beside it.
"""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.command_line import Parser
from benchmarks.common import provenance, write
from scoring.decoder.decoder import Decoder
from scoring.lora.bank import AdapterBank
from scoring.lora.loading import load_bank
from scoring.lora.stacks import LowRankStack
from tests.tiny_adapters import tiny_adapter

_TASK = "text-generation"
_ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
KINDS = {"r8-qv": (8, _ALL[0:3:2]), "r16-qkvo": (16, _ALL[:4]), "r8-all": (8, _ALL), "r16-all": (16, _ALL)}
_COMMON = {"num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 2048}
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512},
    "1b": {"vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, **_COMMON},
    "8b": {"vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, **_COMMON},
}  # fmt: skip
_PROMPT, _NEW, _STEPS, _ROUNDS = 32, 24, 60, 4
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def model_of(shape: str, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(DEVICE):
            return LlamaForCausalLM(LlamaConfig(**SHAPES[shape], tie_word_embeddings=shape == "1b")).eval()
    finally:
        torch.set_default_dtype(before)


def attach(model: Any, count: int, rank: int, targets: Sequence[str]) -> AdapterBank:
    """Adapters of random numbers on the modules named so, in place of those before; their products are as large."""
    stacks: dict[Any, LowRankStack] = {}
    for name, module in model.named_modules():
        module._forward_hooks.clear()
        if name.rpartition(".")[2] in targets:
            outputs, inputs = module.weight.shape
            draw: dict[str, Any] = {"device": DEVICE, "dtype": module.weight.dtype}
            down, up = torch.randn(count, rank, inputs, **draw), torch.randn(count, rank, outputs, **draw)
            pairs = {place: (down[place] / inputs**0.5, 0.1 * up[place]) for place in range(count)}
            stacks[module] = LowRankStack(inputs, outputs, module.weight, pairs)
    bank = AdapterBank([f"a{number}" for number in range(count)], stacks)
    bank.attach()
    return bank


def prompt(vocabulary: int, seed: int) -> list[int]:
    made = torch.Generator().manual_seed(seed)
    return torch.randint(5, vocabulary, (_PROMPT,), generator=made).tolist()


def start(decoder: Decoder, names: Sequence[str]) -> list[int]:
    """Open a slot for each row and prefill its prompt; the first tokens."""
    for slot, name in enumerate(names):
        decoder.open(slot)
        decoder.adapters.use(slot, name)
    decoder.prefill_many([(slot, prompt(decoder.model.vocabulary, slot)) for slot in range(len(names))])
    return list(decoder.sample(range(len(names))).tokens())


def check(shape: str, dtype: torch.dtype) -> dict[str, Any]:
    """Tokens of rows of three adapters and of the base in one batch, against peft's, row by row."""
    import peft

    model = model_of(shape, dtype)
    names = ("b", "", "a", "c", "a")
    with TemporaryDirectory() as place:
        model.config.save_pretrained(place)
        for seed, (name, targets) in enumerate({"a": _ALL, "b": _ALL[0:3:2], "c": _ALL[4:]}.items()):
            folder = Path(place) / "adapters" / name
            alpha = 0.3 * SHAPES[shape]["hidden_size"] ** -0.5
            tiny_adapter(Path(place), _TASK, folder, targets, rank=(16, 8, 4)[seed], seed=seed, lora_alpha=40 * alpha)
        plain: Any = peft.PeftModel.from_pretrained(model, Path(place) / "adapters" / "a", "a")
        for name in ("b", "c"):
            plain.load_adapter(str(Path(place) / "adapters" / name), name)
        expected = []
        for row, name in enumerate(names):
            ids = torch.tensor([prompt(SHAPES[shape]["vocab_size"], row)], device=DEVICE)
            wanted = {"max_new_tokens": _NEW, "min_new_tokens": _NEW, "do_sample": False, "pad_token_id": 0}
            if name:
                plain.set_adapter(name)
                made = plain.generate(input_ids=ids, **wanted)
            else:
                with plain.disable_adapter():
                    made = plain.generate(input_ids=ids, **wanted)
            expected.append(made[0, _PROMPT:].tolist())
        model = model_of(shape, dtype)
        load_bank({name: Path(place) / "adapters" / name for name in ("a", "b", "c")}, model)
    decoder = Decoder(model, len(names), 256)
    found = [start(decoder, names)]
    while len(found) < _NEW:
        found.append(list(decoder.step(range(len(names))).tokens()))
    rows = [list(row) for row in zip(*found, strict=True)]
    equal = [next((n for n, (a, b) in enumerate(zip(x, y, strict=True)) if a != b), _NEW)
             for x, y in zip(rows, expected, strict=True)]  # fmt: skip
    kinds = len({tuple(row) for row in rows})
    return {"shape": shape, "dtype": str(dtype), "rows": names, "tokens": _NEW, "equal": equal, "distinct": kinds}


def steps_ms(decoder: Decoder, rows: int) -> Callable[[], float]:
    """A function that returns milliseconds of a step, tokens read one step late, averaged over some."""

    def measured() -> float:
        pending = decoder.step(range(rows))
        pending.tokens()
        began = time.perf_counter()
        for _ in range(_STEPS):
            later = decoder.step(range(rows))
            pending.tokens()
            pending = later
        pending.tokens()
        return 1e3 * (time.perf_counter() - began) / _STEPS

    return measured


def cost(model: Any, shape: str, kind: str, count: int) -> dict[str, Any]:
    """Steps of as many rows as adapters, beside steps of the base."""
    rank, targets = KINDS[kind]
    bank = attach(model, count, rank, targets)
    decoder = Decoder(model, count, 2 * _ROUNDS * (_STEPS + 1) + _PROMPT + 8)
    decoder.warm_up([count])
    sides: dict[str, list[float]] = {"base": [], "adapters": []}
    for name, names in (("base", [""] * count), ("adapters", [f"a{number}" for number in range(count)])):
        start(decoder, names)
        steps_ms(decoder, count)()
        for slot in range(count):
            decoder.release(slot)
        sides[name] = []
    for _ in range(_ROUNDS):
        for name, names in (("base", [""] * count), ("adapters", [f"a{number}" for number in range(count)])):
            start(decoder, names)
            sides[name].append(steps_ms(decoder, count)())
            for slot in range(count):
                decoder.release(slot)
    base, other = median(sides["base"]), median(sides["adapters"])
    size = sum(each.numel() * each.element_size() for each in model.parameters())
    return {
        "shape": shape, "kind": kind, "adapters": count, "base_ms": base, "adapters_ms": other,
        "tokens_per_s_below_percent": 100 * (1 - base / other),
        "floor_below_percent": 100 * (1 - size / (size + bank.bytes)), "sides": sides,
    }  # fmt: skip


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--shapes", nargs="*", default=["1b"])
    parser.add_argument("--kinds", nargs="*", default=list(KINDS))
    parser.add_argument("--adapters", type=int, default=32)
    parser.add_argument("--check", action="store_true")
    asked = parser.parse_args()
    result: dict[str, Any] = provenance() | {"checks": [], "rows": []}
    torch.set_grad_enabled(False)
    if asked.check:
        for shape in ("tiny", *asked.shapes[:1]):
            for dtype in (torch.float32, torch.bfloat16) if DEVICE == "cuda" else (torch.float32,):
                result["checks"].append(check(shape, dtype))
                print(json.dumps(result["checks"][-1]), flush=True)
    for shape in asked.shapes:
        model = model_of(shape, torch.bfloat16 if DEVICE == "cuda" else torch.float32)
        for kind in asked.kinds:
            result["rows"].append(cost(model, shape, kind, asked.adapters))
            told = {name: value for name, value in result["rows"][-1].items() if name != "sides"}
            print(json.dumps(told), flush=True)
            write("adapters", result, asked.out)
        del model


if __name__ == "__main__":
    main()
