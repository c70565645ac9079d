"""Measured rows of `benchmarks/results` as work and seconds: what `data/speed.json` is fitted to and held against."""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from mii_azure.hardware import roofline
from mii_azure.hardware.skus import all_skus
from mii_azure.hardware.speed import Effort
from mii_azure.planning.expected import decoder_runner

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
H100 = next(sku.gpu for sku in all_skus().values() if sku.gpu and "H100 80 GB SXM" in sku.gpu.name)


class Card(NamedTuple):
    """A measured card: its name among the instance types' data, and its data sheet's ceilings."""

    name: str
    bandwidth: float  # bytes a second
    peak: float  # FLOP a second, dense, 16 bits


#: By the names that drivers have for them; an H200 is an H100 with faster memory.
CARDS = {
    "NVIDIA H100 80GB HBM3": Card(H100.name, H100.bandwidth_gb_s * 1e9, H100.half_tflops * 1e12),
    "NVIDIA H200": Card("NVIDIA H200", 4.8e12, H100.half_tflops * 1e12),
}
_FLOORS_BANDWIDTH = 3.35e12  # what the decoders' floors are over, whatever the card (benchmarks/decoders.py)
_BERT = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}


class Measured(NamedTuple):
    """One measured row: its runner's name in `speed.json`, what was done, on what, and how long it took."""

    runner: str
    name: str
    effort: Effort
    card: Card
    seconds: float


class _Shape(NamedTuple):
    multiplied: int  # parameters in products
    layers: int
    hidden: int


def measured() -> list[Measured]:
    """Every row of the product's own runners that the results hold."""
    return [*_decoders(), *_slices(), *_prompts(), *_encoders(), *_cpu_encoders()]


def _read(name: str) -> dict[str, Any]:
    path = RESULTS / f"{name}.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {"rows": []}


@cache
def _shape(kind: Any, family: str, told: str) -> _Shape:
    """Sizes of a model that is made without memory; `told` is its configuration as JSON."""
    config = AutoConfig.for_model(family, **json.loads(told))
    with torch.device("meta"):
        parameters = sum(each.numel() for each in kind.from_config(config).parameters())
    text = config.get_text_config()
    table = 0 if kind is AutoModelForMaskedLM else text.vocab_size * text.hidden_size
    return _Shape(parameters - table, text.num_hidden_layers, text.hidden_size)


def _decoders() -> Iterator[Measured]:
    for path in sorted(RESULTS.glob("decoders*.json")):
        told = _read(path.stem)
        for row in told["rows"]:
            if row["model"].endswith("int8"):
                continue  # its weights are read in two precisions
            case, rows = told["cases"][row["model"]], row["slots"]
            shape = _shape(AutoModelForCausalLM, case["family"], json.dumps(case["config"]))
            effort = Effort(row["floor"] * 1e-3 * _FLOORS_BANDWIDTH, 2.0 * shape.multiplied * rows, shape.layers)
            runner = decoder_runner(row.get("tier", "fused"), rows)
            yield Measured(runner, row["model"], effort, CARDS[told["device"]], row["ours"] * 1e-3)


def _slices() -> Iterator[Measured]:
    """6.7 B on one GPU: the rows over two are read through other sums."""
    told = _read("slices")
    for row in told["rows"]:
        if row["GPUs"] != 1:
            continue
        card = CARDS[told["device"]]
        effort = Effort(row["floor"] * 1e-3 * card.bandwidth, 2.0 * 6.6e9 * row["slots"], 32)
        runner = decoder_runner("fused", row["slots"])
        yield Measured(runner, f"6.7 B, {row['slots']}", effort, card, row["ms a token"] * 1e-3)


def _prompts() -> Iterator[Measured]:
    told = _read("long_prompts")
    for row in told.get("models", {}).get("llama-3.2-3b", {}).get("rows", ()):
        tokens, shape = row["tokens"], _Shape(2_818_572_288, 28, 3072)
        whole = roofline.flops(shape.multiplied, shape.layers, shape.hidden, tokens, tokens)
        flops = whole / 2 + shape.multiplied * tokens  # half of the attention: a token attends to those before it
        effort = Effort(2.0 * shape.multiplied, flops, shape.layers)
        yield Measured("fused prompt", f"{tokens} tokens", effort, CARDS[told["device"]], row["ours"] * 1e-3)


def _encoders() -> Iterator[Measured]:
    told = _read("encoders")
    for row in told["rows"]:
        words, length = row["work"], int(row["work"].rpartition("S=")[2])
        sizes = (_LARGE if "large" in words else _BERT) | {"vocab_size": 30522}
        shape = _shape(AutoModelForMaskedLM, "bert", json.dumps(sizes))
        multiplied = shape.multiplied - (0 if "fill-mask" in words else 30522 * shape.hidden)
        flops = roofline.flops(multiplied, shape.layers, shape.hidden, length, length)
        effort = Effort(2.0 * multiplied, flops, shape.layers)
        yield Measured("fused encoder", words, effort, CARDS[told["device"]], row["ours"] * 1e-3)


def _cpu_encoders() -> Iterator[Measured]:
    """In float32, which Azure's CPUs have; FLOP are those that the floor stands for at the peak of the chosen type."""
    told = _read("cpu")
    for row in told["rows"]:
        if "ours float32" not in row:
            continue
        card = Card(told["device"], 1.0, told["peaks"]["float32"])
        peaks = told["peaks"]
        flops = row["floor"] * 1e-3 * peaks.get(row["choice"], peaks["float32"])  # "eager" has no peak of its own
        layers = 6 if "MiniLM" in row["work"] else 12
        effort = Effort(0.0, flops, layers)
        yield Measured("cpu encoder", row["work"], effort, card, row["ours float32"] * 1e-3)
