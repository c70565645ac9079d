"""Encoders' forwards: plain transformers, ONNX Runtime, OpenVINO with NNCF if they are here, ours, floor.

Times are milliseconds of the model alone, medians of rounds in which every column runs once, in another order each;
the JSON has the minima as well, and how like plain transformers' each way's answers to real text are. MiniLM is real;
the others have its tokenizer and random weights.
"""

import gc
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import table
from benchmarks.cpu.openvino_models import quantised
from benchmarks.onnx_models import sessions
from mii_azure.hardware.roofline import flops
from scoring.encoder.cpu_autotune import cpu_flags, missing, prepare
from scoring.encoder.cpu_ops import Product, bfloat16_pays
from scoring.encoder.real_text import judged
from scoring.encoder.verify import reference, relative_error
from scoring.passes.base import BOUNDS, PassRefused
from scoring.passes.cpu import Cpu

LENGTHS = (32, 128)
FORMATS = ("float32", "bfloat16", "int8")
COLUMNS = (
    "work",
    "eager",
    "ORT",
    "ORT int8",
    "OpenVINO int8",
    "ours float32",
    "ours bfloat16",
    "ours int8",
    "ours",
    "floor",
    "ours/eager",
    "ours/best int8",
)
#: Least speed-up over eager by the format that the rest of an int8 encoder may run in, and the least cosine of text.
OVER_EAGER = {"bfloat16": 3.5, "float32": 2.5}
PEERS = ("ORT int8", "OpenVINO int8")
#: Seconds up to which a call comes after one untimed: what the way before it left in caches and threads is not its own.
WARM_S = 0.1
Batch = dict[str, Tensor]
Answers = dict[str, Tensor]
Call = Callable[[Batch], Answers]


SHAPES: dict[str, dict[str, int]] = {
    "MiniLM": {},
    "BGE-small": {"hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536},
    "BERT-base": {},
}


def model_of(name: str) -> Any:
    """A real MiniLM; of the others the shape, with MiniLM's tokenizer."""
    import transformers

    from mii_azure.model.packaged import packaged_model

    transformers.utils.logging.disable_progress_bar()
    folder = packaged_model("minilm")
    if name == "MiniLM":
        return transformers.AutoModel.from_pretrained(folder).eval()
    torch.manual_seed(0)
    model = transformers.BertModel(transformers.BertConfig(**SHAPES[name])).eval()  # a random head's labels are tosses
    model.name_or_path = str(folder)  # whose tokenizer cuts the text that int8 is judged by
    return model


def batches(model: Any) -> dict[str, Batch]:
    """One text and sixteen of each length, and sixteen of lengths from 8 to 128."""
    wanted = {f"{rows} x {length}": [length] * rows for length in LENGTHS for rows in (1, 16)}
    wanted["16 x 8-128"] = [8 * (n + 1) for n in range(16)]
    return {name: batch_of(lengths, model.config.vocab_size) for name, lengths in wanted.items()}


def batch_of(lengths: list[int], vocabulary: int, first: int = 1000) -> Batch:
    """Random tokens from `first` on, padded behind by zeros."""
    generator = torch.Generator().manual_seed(len(lengths))
    ids = torch.randint(first, vocabulary, (len(lengths), max(lengths)), generator=generator)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def peaks() -> dict[str, float]:
    """FLOP per second of each format's own product, at the best of three shapes."""
    found = {}
    for name in FORMATS:
        if missing(name, cpu_flags()):
            continue
        rates = []
        for rows, width, depth in ((128, 3072, 768), (512, 768, 3072), (1024, 1024, 1024)):
            product = Product(torch.randn(width, depth), None, name)
            x = product_input(product, torch.randn(rows, depth))
            fastest = min(seconds(partial(bare, product, x)) for _ in range(60))
            rates.append(2 * rows * width * depth / fastest)
        found[name] = max(rates)
    return found


def product_input(product: Product, x: Tensor) -> Tensor:
    """What the multiplication itself takes: casts and rounding are not part of the ceiling."""
    return x.to(product.dtype) if product.precision != "int8" else (x * 20 + 128).to(torch.uint8)


def bare(product: Product, x: Tensor) -> Any:
    """The multiplication alone."""
    if product.precision != "int8":
        return product(x)
    p = product
    return torch.ops.onednn.qlinear_pointwise(
        x, 1.0, 128, p.weight, p.scale, p.zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )


def seconds(call: Callable[[], Any]) -> float:
    """One call's."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def floors(model: Any, batch: Batch, peak: dict[str, float]) -> dict[str, float]:
    """Milliseconds that the live tokens' arithmetic takes at each format's peak."""
    base = getattr(model, model.base_model_prefix, model)
    size = sum(m.weight.numel() for m in base.encoder.modules() if isinstance(m, nn.Linear))
    config, lengths = model.config, batch["attention_mask"].sum(1).tolist()
    work = sum(flops(size, config.num_hidden_layers, config.hidden_size, n, n) for n in lengths)
    return {name: 1e3 * work / rate for name, rate in peak.items()}


class Ways:
    """Every way to run a model, built once: what switches it on, and the call."""

    def __init__(self, model: Any, onnx: dict[str, Call]) -> None:
        self.model = model
        self.seconds: dict[str, float] = {}  # that a format's preparation took
        self.refused: dict[str, str] = {}
        self.calls: dict[str, tuple[Callable[[], Any], Call]] = {}
        self._add("eager", lambda b: model(**b))
        for key, call in onnx.items():
            self._add(key, call)
        for key in FORMATS:
            self._ours(key)

    def _add(self, name: str, call: Call, switch: Callable[[], Any] = lambda: None) -> None:
        self.calls[name] = (switch, call)

    def _ours(self, precision: str) -> None:
        reason = missing(precision, cpu_flags())
        if not reason and precision == "bfloat16" and not bfloat16_pays():
            reason = "a product takes longer in it than in float32"
        if reason:
            self.refused[f"ours {precision}"] = reason
            return
        began = time.perf_counter()
        try:
            way = prepare(self.model, precision)
        except PassRefused as refused:
            self.refused[f"ours {precision}"] = str(refused)
            return
        self.seconds[f"ours {precision}"] = time.perf_counter() - began

        def switch() -> Callable[[], None]:
            way.on()
            return way.off

        self._add(f"ours {precision}", lambda b: self.model(**b), switch)

    def each(self) -> dict[str, Call]:
        """Each way as a call that any batch may be given."""
        return {name: partial(self._answer, name) for name in self.calls}

    def _answer(self, name: str, batch: Batch) -> Any:
        return self.timed(name, batch, 0)[1]

    def timed(self, name: str, batch: Batch, before: int) -> tuple[float, Any]:
        """Seconds of a call after some that are not timed, and its answer."""
        switch, call = self.calls[name]
        off = switch()
        for _ in range(before):
            call(batch)
        began = time.perf_counter()
        output = call(batch)
        took = time.perf_counter() - began
        if off:
            off()
        return took, output


class Row:
    """One model and batch, every way timed in turns."""

    def __init__(self, name: str, ways: Ways, batch: Batch) -> None:
        self.ways, self.batch = ways, batch
        self.told = reference(ways.model, [batch])()[0][1]
        self.result: dict[str, Any] = {"work": name, "seconds": ways.seconds, "errors": {}, "refused": ways.refused}

    def measure(self, budget_s: float, peak: dict[str, float]) -> dict[str, Any]:
        """Rounds in which every way runs once, until the seconds are over."""
        order = [*self.ways.calls]
        times: dict[str, list[float]] = {name: [] for name in order}
        warm: dict[str, int] = {}
        with torch.no_grad():
            for name in order:
                self.result["errors"][name] = self._error(self.ways.timed(name, self.batch, 0)[1])
                warm[name] = int(self.ways.timed(name, self.batch, 0)[0] < WARM_S)
            shuffle, end, rounds = random.Random(0).shuffle, time.perf_counter() + budget_s, 0
            while rounds < 3 or time.perf_counter() < end:
                shuffle(order)
                for name in order:
                    times[name].append(self.ways.timed(name, self.batch, warm[name])[0])
                rounds += 1
        result = self.result
        result |= {name: 1e3 * median(values) for name, values in times.items()}
        result["minima"] = {name: 1e3 * min(values) for name, values in times.items()}
        result["rounds"] = rounds
        result["floors"] = floors(self.ways.model, self.batch, peak)
        return result

    def _error(self, output: Any) -> dict[str, float]:
        """Relative error, and one minus the cosine, against float32; live positions only."""
        found: Answers = {key: value.float() for key, value in output.items() if key in self.told}
        live = self.batch["attention_mask"] != 0
        for key, value in found.items():
            if value.dim() == 3:
                found[key] = value * live[..., None]
        told = {key: self.told[key] for key in found}
        cosines = [torch.cosine_similarity(found[k].flatten(), told[k].flatten(), 0) for k in told]
        return {"relative": relative_error(found, told), "1 - cosine": 1 - float(min(cosines))}


def start(name: str, model: Any) -> dict[str, Any]:
    """What the pass does at start: its choice, its words, its seconds."""
    began = time.perf_counter()
    try:
        applied = Cpu().apply(model)
    except PassRefused as refused:
        return {"work": name, "refused": str(refused), "seconds": time.perf_counter() - began}
    took = time.perf_counter() - began
    applied.undo()
    choice = applied.made.precision
    return {"work": name, "choice": choice, "detail": applied.detail, "seconds": took}


def fidelity(model: Any, ways: dict[str, Call]) -> dict[str, dict[str, float]]:
    """Least and mean cosine of each way's text embeddings, or share of equal labels, to plain transformers'."""
    texts = judged(model)
    found: dict[str, dict[str, float]] = {}
    with torch.no_grad():
        told = [model(**text) for text in texts]
        for name, way in ways.items():
            alike = [_alike(way(text), plain) for text, plain in zip(texts, told, strict=True)]
            found[name] = {"least": min(alike), "mean": mean(alike)}
    return found


def _alike(answer: Any, plain: Any) -> float:
    if "logits" in plain:
        return float((answer["logits"].argmax(-1) == plain["logits"].argmax(-1)).float().mean())
    one, other = (each["last_hidden_state"][0].mean(0) for each in (answer, plain))
    return float(torch.cosine_similarity(one, other, 0))


def judge(row: dict[str, Any], choice: str, fidelities: dict[str, dict[str, float]]) -> None:
    """Fill in what the pass had chosen, its ratios and the bars; "eager" is a choice too.

    Int8 of others counts where its answers to text are no worse than ours.
    """
    ours = row["eager"] if choice == "eager" else row[f"ours {choice}"]
    row |= {"choice": choice, "ours": ours, "floor": row["floors"].get(choice, row["floors"]["float32"])}
    row["ours/eager"] = row["eager"] / ours
    best = min(row[name] for name in PEERS if name in row)
    row["ours/best int8"] = best / ours
    least = OVER_EAGER["bfloat16" if bfloat16_pays() else "float32"]
    told = {name: told["mean"] for name, told in fidelities.items()}
    row["bars"] = {
        "no slower than eager": row["eager"] >= ours,
        f"{least} x eager": row["ours/eager"] >= least,
        "the best int8": best >= ours,
    }
    if told and choice != "eager":
        row["bars"]["no less accurate"] = all(told[f"ours {choice}"] >= told[name] for name in PEERS if name in told)


def run(name: str, budget_s: float, keep: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Rows of one model, each batch after another; what there is goes to `keep` after each."""
    peak, model = peaks(), model_of(name)
    began = start(name, model)
    rows = []
    with TemporaryDirectory() as folder:
        peers: dict[str, Call] = dict(sessions(model, Path(folder), torch.get_num_threads()))
        peers |= quantised(model, Path(folder) / "plain.onnx", torch.get_num_threads())
        ways = Ways(model, peers)
        if name == "MiniLM":  # random weights say nothing of texts
            began["fidelity"] = fidelity(model, ways.each())
        for size, batch in batches(model).items():
            rows.append(Row(f"{name}, {size}", ways, batch).measure(budget_s, peak))
            judge(rows[-1], began.get("choice", "eager"), began.get("fidelity", {}))
            result = {"rows": rows, "starts": [began], "peaks": peak, "bounds": BOUNDS}
            keep(result)
            print(table(COLUMNS, rows[-1:]), flush=True)
            gc.collect()
    return result
