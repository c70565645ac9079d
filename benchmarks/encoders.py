"""Encoders at batch 1 on one GPU, fp16, random weights of the real shapes: eager, stock, DeepSpeed, ours, floor.

`python -m benchmarks.encoders [OUTPUT FOLDER]` prints the table and writes encoders.json. Each row runs in its own
process: all compile side by side, then they are timed one after another while the others wait.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.command_line import Parser
from benchmarks.common import call_ms, ceilings, device_ms, encoder_floor_ms, provenance, table, write
from scoring.encoder.cuda_graphs import GraphedForward
from scoring.encoder.smoothquant import FORMATS, narrow_layers
from scoring.encoder.triton_ops import TritonOps
from scoring.encoder.verify import probes, reference, relative_error, verify_encoder
from scoring.passes.base import TOLERANCE, PassRefused

LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
ROBERTA = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
SHAPES = ((1, 32), (1, 64), (1, 256), (1, 512), (2, 128), (4, 128), (8, 128), (32, 128))


@dataclass(frozen=True)
class Work:
    """One row: a model shape, a task and a length."""

    name: str
    architecture: str
    config: dict[str, Any]
    task: str
    length: int
    max_ms: float | None  # the bar, model only
    over_stock: float  # the bar, times the best stock option
    shapes: tuple[tuple[int, int], ...] = ()  # further (batch, length), every second row half padding


WORK = (
    Work("BERT-large fill-mask S=128", "BertForMaskedLM", LARGE, "fill-mask", 128, 1.0, 1.5, SHAPES),
    Work(
        "RoBERTa-large token classification S=128",
        "RobertaForTokenClassification",
        LARGE | ROBERTA | {"num_labels": 9},
        "token-classification",
        128,
        None,
        1.3,
    ),
    Work("BERT-base classification S=128", "BertForSequenceClassification", {}, "text-classification", 128, None, 1.3),
    Work("BERT-base classification S=384", "BertForSequenceClassification", {}, "text-classification", 384, None, 1.3),
)
COLUMNS = (
    "work",
    "eager",
    "graph",
    "compile",
    "freezing",
    "deepspeed",
    "ours",
    "int8",
    "floor",
    "ours/stock",
    "end to end",
)


def build(work: Work) -> Any:
    """The model on the GPU in fp16 with seeded random weights."""
    import transformers

    cls = getattr(transformers, work.architecture)
    torch.manual_seed(0)
    with torch.device("cuda"):
        return cls(cls.config_class(**work.config)).half().eval()


def inputs(model: Any, batch: int, length: int, live: int | None = None) -> dict[str, torch.Tensor]:
    """Random token ids; every second row has only `live` tokens."""
    ids = torch.randint(5, model.config.vocab_size, (batch, length), device="cuda")
    mask = torch.ones_like(ids)
    if live is not None:
        mask[1::2, live:] = 0
    return {"input_ids": torch.where(mask == 1, ids, model.config.pad_token_id), "attention_mask": mask}


class Row:
    """Everything about one row: `prepare` compiles, `measure` times."""

    def __init__(self, work: Work, card: dict[str, float]) -> None:
        self.work, self.card = work, card
        self.model = build(work)
        self.batch = inputs(self.model, 1, work.length)
        padded = probes(self.model, (work.length, work.length // 3, 5))
        self.told = reference(self.model, [*padded, self.batch])
        self.result: dict[str, Any] = {"work": work.name, "errors": {}, "refused": {}}
        self.compiled: dict[str, Callable[..., Any]] = {}

    def prepare(self) -> None:
        for name in ("compile", "freezing"):
            began = time.perf_counter()
            call: Callable[..., Any]
            if name == "compile":
                call = torch.compile(self.model.forward, mode="reduce-overhead", dynamic=False)
            else:  # Inductor's own graphs are off with freezing: a graph around it is its best
                frozen = torch.compile(self.model.forward, options={"freezing": True}, dynamic=False)
                shape = self.batch["input_ids"].shape
                call = GraphedForward(self.model, frozen, lengths=shape[1:], batches=shape[:1])
            with torch.no_grad():
                for _ in range(4):
                    call(**self.batch)
            self.compiled[name] = call
            self.result[f"{name}_seconds"] = time.perf_counter() - began
        began = time.perf_counter()
        with self._passes("fused_encoder"), torch.inference_mode():
            self.model(**self.batch)
        torch.cuda.synchronize()
        self.result["ours_first_call_seconds"] = time.perf_counter() - began
        for shape in self.work.shapes:  # compiles their kernels
            with self._passes("fused_encoder", ops=TritonOps(True, library_rows=1 << 30)), torch.inference_mode():
                self.model(**inputs(self.model, *shape, shape[1] // 2))

    def measure(self) -> dict[str, Any]:
        result, model, batch = self.result, self.model, self.batch
        with torch.inference_mode():
            result["eager"] = call_ms(lambda: model(**batch), 20)
        with torch.no_grad():
            for name, call in self.compiled.items():
                result[name] = call_ms(lambda call=call: call(**batch))
                output = {key: value.float().cpu() for key, value in call(**batch).items()}
                result["errors"][name] = relative_error(output, self.told()[-1][1])
        for key, passes in (("graph", ()), ("ours", ("fused_encoder",))):
            with self._passes(*passes, graph=True):
                result[key] = call_ms(lambda: model(**batch))
                result["errors"][key] = verify_encoder(model, self.told)
                if passes:
                    result["ours_device"] = self._replay_ms()
        for kind in FORMATS:
            with self._passes("fused_encoder", graph=True, narrow=kind):
                result[kind] = call_ms(lambda: model(**batch))
                result["errors"][kind] = verify_encoder(model, self.told)
        with self._passes("fused_encoder", graph=True):  # graphs anew: they belong to the service's own thread
            result["end to end"] = self._end_to_end()
        result["floor"] = encoder_floor_ms(model, 1, self.work.length, self.card)
        stock = min(result[name] for name in ("graph", "compile", "freezing"))
        result["ours/stock"] = stock / result["ours"]
        result["stock"] = stock
        result["shapes"] = [self._shape(*shape) for shape in self.work.shapes]
        result["bars"] = self._bars()
        self._deepspeed()
        return result

    def _bars(self) -> dict[str, bool]:
        result, work = self.result, self.work
        bars = {f"{work.over_stock} x best stock": result["ours/stock"] >= work.over_stock}
        if work.max_ms is not None:
            bars[f"{work.max_ms} ms"] = result["ours"] <= work.max_ms
        bars["end to end within 0.5 ms"] = result["end to end"] <= result["ours"] + 0.5
        bars["errors within 5e-3"] = result["errors"]["ours"] <= TOLERANCE
        return bars

    @contextmanager
    def _passes(self, *names: str, graph: bool = False, narrow: str = "", **options: Any) -> Iterator[None]:
        from scoring.passes.cuda_graph import CudaGraph
        from scoring.passes.deepspeed_kernels import DeepSpeedKernels
        from scoring.passes.fused_encoder import FusedEncoder

        made: list[Any] = []
        if "fused_encoder" in names:
            made.append(FusedEncoder(**options))
        if "deepspeed_kernels" in names:
            made.append(DeepSpeedKernels())
        if graph:
            made.append(CudaGraph())
        undo = []
        for each in made:
            undo.append(each.apply(self.model).undo)
            if narrow and isinstance(each, FusedEncoder) and each.stack is not None:
                each.stack.layers = narrow_layers(each.stack, probes(self.model, seed=1), narrow)
        try:
            yield
        finally:
            for each in reversed(undo):
                each()

    def _replay_ms(self) -> float:
        """The graph alone, on the device's clock."""
        forward: GraphedForward = self.model.forward
        shape = tuple(self.batch["input_ids"].shape)
        captured = next(graph for key, graph in forward._graphs.items() if key[:2] == shape)
        return device_ms(captured.graph.replay)

    def _shape(self, size: int, length: int) -> dict[str, Any]:
        """Another shape: the stock graph against ours, products by Triton and by cuBLAS."""
        batch = inputs(self.model, size, length, length // 2)
        row: dict[str, Any] = {"batch": size, "length": length}
        with self._passes(graph=True):
            row["graph"] = call_ms(lambda: self.model(**batch), 30)
        for name, rows in (("triton", 1 << 30), ("cublas", 1)):
            with self._passes("fused_encoder", graph=True, ops=TritonOps(True, library_rows=rows)):
                row[name] = call_ms(lambda: self.model(**batch), 30)
        for kind in FORMATS:
            with self._passes("fused_encoder", graph=True, narrow=kind):
                row[kind] = call_ms(lambda: self.model(**batch), 30)
        row["floor"] = encoder_floor_ms(self.model, size, length, self.card)
        return row

    def _deepspeed(self) -> None:
        try:
            with self._passes("deepspeed_kernels", graph=True):
                self.result["errors"]["deepspeed"] = verify_encoder(self.model, self.told)
                self.result["deepspeed"] = call_ms(lambda: self.model(**self.batch))
            self.result["errors"]["after_undo"] = verify_encoder(self.model, self.told)
        except PassRefused as refused:
            self.result["refused"]["deepspeed_kernels"] = str(refused)

    def _end_to_end(self) -> float:
        """Text in, JSON out, through the service in this process, with every pass applied."""
        from benchmarks.encoder_service import serve, stages

        service, body = serve(self.model, self.work.task, self.work.length)
        try:
            reply = service.answer(body)
            if reply.status != 200:
                raise RuntimeError(f"the service answered {reply.status}: {reply.body!r}")
            self.result["stages"] = stages(service, body)
            return call_ms(lambda: service.answer(body))
        finally:
            service.drain(5)


def _child(index: int, card: dict[str, float]) -> None:
    """Prepare, say so, wait for the word, measure, print the result as the last line."""
    row = Row(WORK[index], card)
    row.prepare()
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(row.measure()), flush=True)


def _build_deepspeed() -> "subprocess.Popen[bytes]":
    """DeepSpeed's kernels are built once, before the rows need them."""
    code = "from deepspeed.ops.op_builder import InferenceBuilder; InferenceBuilder().load()"
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def run() -> dict[str, Any]:
    """Measure all rows and return them with their provenance."""
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "{}.{}".format(*torch.cuda.get_device_capability()))
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "4")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # as scoring.entry sets it
    result = provenance()
    card = ceilings()
    torch.cuda.empty_cache()
    building = _build_deepspeed()
    command = [sys.executable, "-m", "benchmarks.encoders", "--child"]
    rows = [
        subprocess.Popen(
            [*command, str(index), json.dumps(card)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for index in range(len(WORK))
    ]
    for row in rows:
        _line(row, "ready")
    building.wait()
    result |= {"card": card, "rows": []}
    for work, row in zip(WORK, rows, strict=True):
        assert row.stdin is not None
        print("go", file=row.stdin, flush=True)
        line = _line(row, "{")
        result["rows"].append(json.loads(line) if line else {"work": work.name, "failed": True})
        print(line, flush=True)
    return result


def _line(process: "subprocess.Popen[str]", start: str) -> str:
    """The next line that begins with `start`; "" when the process ended without one."""
    assert process.stdout is not None
    return next((line for line in process.stdout if line.startswith(start)), "")


def main() -> None:
    if "--child" in sys.argv:
        at = sys.argv.index("--child")
        return _child(int(sys.argv[at + 1]), json.loads(sys.argv[at + 2]))
    out = Parser(__doc__, gpus=1).parse_args().out
    result = run()
    write("encoders", result, out)
    print(table(COLUMNS, result["rows"]))
    return None


if __name__ == "__main__":
    main()
