"""Products of encoders in 16 and in eight bits on one GPU: ours and torch's, with their activation, and their errors.

`python -m benchmarks.products [--out FOLDER]` prints the table and writes products.json. A time is of one product in
a CUDA graph of many, in microseconds. The floor reads the matrix once, or multiplies at twice the measured 16-bit rate.
"""

from collections.abc import Callable
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from benchmarks.command_line import Parser
from benchmarks.common import ceilings, provenance, table, write
from mii_azure.hardware.roofline import forward_floor
from scoring.encoder.ops import GELU, NONE, Hidden, Narrow, Packing
from scoring.encoder.smoothquant import FORMATS
from scoring.encoder.triton_ops import TritonOps
from scoring.quantization.int8 import quantize_per_row

SHAPES = ((3072, 1024, NONE), (4096, 1024, GELU), (2304, 768, NONE), (3072, 768, GELU))  # outputs, inputs, then
ROWS = (128, 384, 512, 1024, 4096)
CALLS = 40  # of a product in one graph
COLUMNS = (
    *("rows", "outputs", "inputs", "cuBLAS 16", "ours 16", "ours int8", "ours fp8"),
    *("torch int8", "torch fp8, a scale a row", "torch fp8, one scale", "floor"),
)


def microseconds(call: Callable[[], Any]) -> float:
    """Median over replays of one call's share of a graph."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            call()
    times = []
    for _ in range(15):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return 1e3 * median(times[3:]) / CALLS


class Product:
    """One shape: its numbers in every format."""

    def __init__(self, rows: int, outputs: int, inputs: int, act: int) -> None:
        self.rows, self.act = rows, act
        self.x = torch.randn(rows, inputs, device="cuda", dtype=torch.float16)
        self.weight = torch.randn(outputs, inputs, device="cuda", dtype=torch.float16)
        self.bias = torch.randn(outputs, device="cuda", dtype=torch.float16)
        places = torch.arange(rows, dtype=torch.int32, device="cuda")
        bounds = torch.tensor([0, rows // 2, rows], dtype=torch.int32, device="cuda")
        self.packing = Packing(2, rows // 2, rows, places, places, bounds)
        self.wanted = self.then(F.linear(self.x.float(), self.weight.float(), self.bias.float()))

    def then(self, y: Tensor) -> Tensor:
        return F.gelu(y) if self.act == GELU else y

    def ours(self, kind: str) -> Callable[[], Tensor]:
        """Our kernel at the tile that it chooses."""
        ops = TritonOps(hopper=torch.cuda.get_device_capability() >= (9, 0), library_rows=1 << 30)
        if not kind:
            return lambda: ops.linear(Hidden(self.x), self.weight, self.bias, self.act, self.packing)
        weight, scale = quantize_per_row(self.weight.float(), FORMATS[kind])
        matrix = Narrow(weight, scale[:, 0].contiguous(), torch.ones(weight.shape[1], device="cuda"))
        values, scales = quantize_per_row(self.x.float(), FORMATS[kind])
        hidden = Hidden(self.x, values, scales[:, 0].contiguous())
        return lambda: ops.linear(hidden, matrix, self.bias, self.act, self.packing)

    def torch_int8(self) -> Callable[[], Tensor]:
        """Without scales and activation, which it leaves to another kernel."""
        (x, _), (weight, _) = (
            quantize_per_row(self.x.float(), torch.int8),
            quantize_per_row(self.weight.float(), torch.int8),
        )
        return lambda: torch._int_mm(x, weight.t())

    def torch_fp8(self, a_row: bool) -> Callable[[], Tensor]:
        """With its scales, then the activation."""
        kind = FORMATS["fp8"]
        (x, xs), (weight, ws) = quantize_per_row(self.x.float(), kind), quantize_per_row(self.weight.float(), kind)
        one = torch.ones((), device="cuda")
        scales = {"scale_a": xs, "scale_b": ws.t().contiguous()} if a_row else {"scale_a": one, "scale_b": one}
        out = torch.bfloat16 if a_row else torch.float16
        options: dict[str, Any] = scales | {"bias": self.bias.to(out), "out_dtype": out, "use_fast_accum": True}
        return lambda: self.then(torch._scaled_mm(x, weight.t(), **options))

    def measure(self, card: dict[str, float]) -> dict[str, Any]:
        outputs, inputs = self.weight.shape
        work = 2.0 * self.rows * outputs * inputs
        floor = forward_floor(
            self.weight.numel(), work, card["bandwidth"], 2 * card["peak"]
        )  # eight bits, twice the rate
        ways = {
            "cuBLAS 16": lambda: self.then(F.linear(self.x, self.weight, self.bias)),
            "ours 16": self.ours(""),
            **{f"ours {kind}": self.ours(kind) for kind in FORMATS},
            "torch int8": self.torch_int8(),
            "torch fp8, a scale a row": self.torch_fp8(True),
            "torch fp8, one scale": self.torch_fp8(False),
        }
        times = {name: microseconds(way) for name, way in ways.items()}
        errors = {name: self._error(ways[name]()) for name in ways if name.startswith(("cuBLAS", "ours"))}
        shape = {"rows": self.rows, "outputs": outputs, "inputs": inputs}
        return shape | times | {"floor": 1e6 * floor, "errors": errors}

    def _error(self, found: Tensor) -> float:
        return float((found.float() - self.wanted).norm() / self.wanted.norm())


def main() -> None:
    """Every shape, the table, the JSON."""
    out = Parser(__doc__, gpus=1).parse_args().out
    torch.manual_seed(0)
    result, card = provenance(), ceilings()
    rows = [Product(count, *shape).measure(card) for shape in SHAPES for count in ROWS]
    write("products", result | {"card": card, "rows": rows}, out)
    print(table(COLUMNS, rows))


if __name__ == "__main__":
    main()
