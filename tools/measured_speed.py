"""Measured rows of `benchmarks/results` as work and seconds: what `data/speed.json` is fitted to and held against."""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from benchmarks.over_http import SHAPES
from mii_azure.hardware import roofline
from mii_azure.hardware.skus import all_skus
from mii_azure.hardware.speed import Effort
from mii_azure.model.experts import Experts, experts_of
from mii_azure.model.families import find_family
from mii_azure.model.profile import row_parameters
from mii_azure.planning.expected import READING, decoder_runner, hands_on
from mii_azure.platform import limits

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
#: Revisions whose decoders' floors are over an H100's bandwidth whatever the card was; later ones are over the card's.
_OVER_AN_H100S = {"38028cf", "6314433"}
_LLAMA_8B = (7_504_658_432, 32)  # parameters in products, and layers, of benchmarks/int4.py
_STABLE_DIFFUSION = 1_066_235_307  # parameters of version 1.4: UNet, VAE and text encoder
#: Results that hold no time of a whole forward of a deployment's own runner, and why.
OTHER_RESULTS = {
    "adapters": "what adapters beside a model add",
    "admission": "what the scheduler takes of the host",
    "beside_vllm": "another server, and what ours adds",
    "cache_forms": "what forms of the cache and of sums cost",
    "cache_forms-bfloat16": "what forms of the cache and of sums cost",
    "cpu-families": "families beside stock options on a CPU",
    "cpu-service": "what a service adds",
    "cpu_clients": "what several processes add, and clients that share the cores",
    "cpu-zen3": "another machine's cores; plans follow the Xeon's",
    "cpu-zen4": "another machine's cores; plans follow the Xeon's",
    "cpu-zen4-vnni": "another machine's cores; plans follow the Xeon's",
    "cpu_decoders-zen4": "another machine's cores, beside llama.cpp; its bandwidth swung by half between runs",
    "encoders-kernels": "kernels",
    "encoder_families": "random weights of four shapes beside stock options",
    "encoder_ways": "what hosts add",
    "host_floors": "what hosts add",
    "expert_tiles": "kernels",
    "first_hour": "an installation",
    "grammars": "what a grammar adds",
    "hosts": "what hosts add",
    "http_adapters": "what adapters add to a CPU's requests",
    "http_calls": "what grammars add to a CPU's requests",
    "http_calls-zen3": "what grammars add to a CPU's requests",
    "memory": "bytes",
    "neighbour": "what another program on the cores adds",
    "offload": "weights in host memory, which no plan chooses by itself",
    "parity_faults": "verdicts",
    "peers": "other servers, and what hosts add",
    "peers-zen3": "other servers, and what hosts add",
    "products": "kernels",
    "prompt_attention": "kernels",
    "quantised": "bytes and errors",
    "recurrent-granite4": "slots with recurrent states beside plain generate on a CPU",
    "recurrent-qwen3.5": "slots with recurrent states beside plain generate on a CPU",
    "recurrent_steps-h200": "steps with recurrent states, in few wide layers",
    "sampling": "kernels",
    "slice_alone": "one of two slices, without the other",
    "soak": "endurance",
    "speculation_draft": "drafts, which depend on the text",
    "speculation": "drafts, which depend on the text",
    "streams": "plain generate on a CPU, whose basis is assumed",
    "streams_http": "plain generate on a CPU, and clients that share its cores",
    "throughput": "throughput: tests/mii_azure/planning/test_expected.py predicts it",
    "waits": "waits beside a long prompt",
    "token_margins": "numbers, not times",
}
_BERT = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}


class Part(NamedTuple):
    """What another runner did within a row, so many times."""

    runner: str
    effort: Effort
    times: int


class Measured(NamedTuple):
    """One measured row: its runner's name in `speed.json`, what was done, on what, and how long it took.

    One that is not `fitted` is held against the constants only. `parts` took their share of the seconds before.
    """

    runner: str
    name: str
    effort: Effort
    card: Card
    seconds: float
    fitted: bool = True
    parts: tuple[Part, ...] = ()


class _Shape(NamedTuple):
    multiplied: int  # parameters in products, all experts included
    layers: int
    hidden: int
    scores: int = 0  # parameters of the output matrix, which a step multiplies as well
    kept: int = 0  # bytes of keys and values that a token leaves, in 16 bits
    experts: Experts = Experts()


def measured() -> list[Measured]:
    """Every row of the product's own runners that the results hold."""
    on_gpu = [*_decoders(), *_int4(), *_slices(), *_prompts(), *_encoders(), *_requests_read(), *_images(), *_served()]
    return [*on_gpu, *_cpu_encoders(), *_cpu_encoders_in_int8(), *_cpu_decoders(), *_cpu_decoders_of_avx2()]


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
    layers, hidden = text.num_hidden_layers, text.hidden_size
    looked_up = table + row_parameters(text.to_dict(), layers, parameters)
    experts = experts_of(text.to_dict(), find_family(text.to_dict()), layers, hidden, parameters)
    return _Shape(parameters - looked_up, layers, hidden, table, _kept(text), experts)


def _kept(text: Any) -> int:
    """Bytes that a token leaves in the cache; 0 for an encoder."""
    told = text.to_dict()  # whose heads may differ by layer, which an attribute would not tell
    heads, size = (told.get(name) or 0 for name in ("num_key_value_heads", "head_dim"))
    size = size or text.hidden_size // text.num_attention_heads
    return 4 * int(text.num_hidden_layers * heads * size)


def _decoders() -> Iterator[Measured]:
    for path in sorted(RESULTS.glob("decoders*.json")):
        told = _read(path.stem)
        for row in told.get("rows", ()):  # one that tries variants of a kernel has none
            case, rows, card = told["cases"][row["model"]], row["slots"], CARDS[told["device"]]
            shape = _shape(AutoModelForCausalLM, case["family"], json.dumps(case["config"]))
            experts, share = shape.experts
            bandwidth = H100.bandwidth_gb_s * 1e9 if told["revision"] in _OVER_AN_H100S else card.bandwidth
            # The floors are of the experts that one row chooses, and a step reads those of all its rows.
            read = row["floor"] * 1e-3 * bandwidth + 2.0 * experts * (1 - share) * (1 - (1 - share) ** (rows - 1))
            flops = 2.0 * (shape.multiplied + shape.scores - experts * (1 - share)) * rows
            runner = decoder_runner(row.get("tier", "fused"), rows, "int8" if case["int8"] else "")
            yield Measured(runner, row["model"], Effort(read, flops, shape.layers), card, row["ours"] * 1e-3)


def _int4() -> Iterator[Measured]:
    """An 8 B model's step by its numbers; rows of other tiles are trials."""
    told = _read("int4")
    for row in told.get("steps", ()):
        shipped = {"int4": "int4", "int8": "int8", "16 bits": ""}.get(row["weights"])
        if shipped is not None:
            effort = Effort(row["GB"] * 1e9, 2.0 * _LLAMA_8B[0], _LLAMA_8B[1])
            name = f"8 B, {row['weights']}"
            yield Measured(decoder_runner("fused", 1, shipped), name, effort, CARDS[told["device"]], row["ms"] * 1e-3)


def _slices() -> Iterator[Measured]:
    """6.7 B on one GPU, and sliced over two, which are held only: a plan takes their sums for nothing."""
    told = _read("slices")
    for row in told["rows"]:
        if row["sums"] == "NCCL":
            continue  # what ours are measured beside
        card, gpus = CARDS[told["device"]], row["GPUs"]
        effort = Effort(row["floor"] * 1e-3 * card.bandwidth, 2.0 * 6.6e9 * row["slots"] / gpus, 32)
        runner, name = decoder_runner("fused", row["slots"]), f"6.7 B, {row['slots']}, GPUs {gpus}"
        yield Measured(runner, name, effort, card, row["ms a token"] * 1e-3, gpus == 1)


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


def _requests_read() -> Iterator[Measured]:
    """One text read and answered beside the model; fill-mask's answers pick among a vocabulary's scores: left out."""
    told = _read("encoders")
    for row in told["rows"]:
        if "fill-mask" not in row["work"]:
            tokens = int(row["work"].rpartition("S=")[2])
            seconds = 1e-3 * (row["stages"]["encode"] + row["stages"]["decode"])
            effort = Effort(0.0, 0.0, tokens)
            yield Measured(READING, f"{row['work']}, its text", effort, CARDS[told["device"]], seconds)


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


def _cpu_encoders_in_int8() -> Iterator[Measured]:
    """On a processor held to what Azure's have."""
    told = _read("cpu-vnni")
    card = Card(told["device"], 1.0, told["peaks"]["int8"])
    for row in told["rows"]:
        layers = 6 if "MiniLM" in row["work"] else 12
        effort = Effort(0.0, row["floor"] * 1e-3 * card.peak, layers)
        yield Measured("cpu encoder, int8", f"{row['work']}, int8", effort, card, row["ours int8"] * 1e-3)


def _cpu_decoders() -> Iterator[Measured]:
    """Steps in process, of one stream and of a batch, over the best bandwidth that the machine showed in their run.

    Llama-1b's eight rows in int8 took more than twice int4's time in both runs, and are left out until it is known why.
    """
    told = _read("cpu_decoders")
    return _cpu_steps(told, "cpu", told["peaks"]["int8"], "llama-1b, int8, 8")


def _cpu_decoders_of_avx2() -> Iterator[Measured]:
    """Steps on a processor without VNNI, whose peak in eight bits is taken as a plan takes it: four times float32's."""
    peaks = _read("cpu-zen3")["peaks"]
    return _cpu_steps(_read("cpu_decoders-zen3"), "cpu AVX2", 4 * peaks["float32"])


def _cpu_steps(told: dict[str, Any], runner: str, peak: float, odd: str = "") -> Iterator[Measured]:
    for row in told["rows"]:
        card = Card(told["device"], row["GB/s"] * 1e9, peak)
        side, kind = row["side"], "int4" if "int4" in row["side"] else "int8"
        what = f"{row['model']}, {kind}, {row['rows']}"
        if side.startswith(f"ours, {kind}") and "HTTP" not in side and what != odd:
            effort = Effort(
                row["bytes"], 2.0 * told["prompts"][row["model"]]["parameters"] * row["rows"], row["layers"]
            )
            name, seconds = f"{what}, {runner.upper()}", row["ms a token"] * 1e-3
            yield Measured(decoder_runner(runner, row["rows"], kind), name, effort, card, seconds)


def _images() -> Iterator[Measured]:
    """Stable Diffusion's images, in FLOP as a plan counts them."""
    told = _read("diffusion")
    for row in told["rows"]:
        size, steps = int(row["work"].split(", ")[1].partition(" ")[0]), int(row["work"].split()[-2])
        positions = (size // limits.LATENT_SCALE) ** 2
        one_pass = 2.0 * _STABLE_DIFFUSION * limits.LATENT_SHARE * positions
        effort = Effort(0.0, one_pass * (2 * steps + limits.VAE_PASSES), 0)
        yield Measured("diffusion", row["work"], effort, CARDS[told["device"]], row["ours"] * 1e-3)


def _served() -> Iterator[Measured]:
    """Tokens of many clients over HTTP: the engine's time, then the hand-over of each; and the steps that they see.

    One client's are left out: several tokens come at once there, drafted where a text repeats itself.
    """
    told = _read("over_http")
    shortest, longest, new = told["load"]
    for name, model in told["models"].items():
        shape, card = SHAPES[name], CARDS[model["device"]]
        family = getattr(transformers, shape.architecture).config_class.model_type
        sizes = _shape(AutoModelForCausalLM, family, json.dumps(shape.config))
        for row in model["rows"]:
            if row["clients"] == 1:
                continue
            tokens, count = row["clients"] * new, row["clients"]
            prompt, kept = (shortest + longest) // 2, sizes.kept * count
            whole = roofline.flops(sizes.multiplied, sizes.layers, sizes.hidden, count * prompt, prompt)
            flops = whole / 2 + sizes.multiplied * count * prompt
            weights = 2.0 * (sizes.multiplied + sizes.scores)
            read = Effort(weights, flops, sizes.layers)
            # Keys and values that the average step reads.
            step = Effort(weights + kept * (prompt + new // 2), weights * count, sizes.layers)
            decode = decoder_runner("fused", count)
            parts = Part("fused prompt", read, 1), Part(decode, step, new)
            handing = hands_on(row["front ends"] > 0, row["way"] != "whole")
            what, seconds = f"{name}, {row['way']}", tokens / row["tokens/s"]
            yield Measured(handing, what, Effort(0.0, 0.0, tokens), card, seconds, parts=parts)
            if row["front ends"] and row["next p50"]:
                yield Measured(decode, f"{what}, a step", step, card, row["next p50"] * 1e-3)
