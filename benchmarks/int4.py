"""int4 weights on one GPU: products of an 8 B decoder's shapes by our kernel and by torch's, and a whole step.

`python -m benchmarks.int4 [OUTPUT FOLDER]` prints tables and writes int4.json. A product's time is of one in a CUDA
graph of many, over weights that the caches do not hold, in microseconds; a step's is of one sequence, in milliseconds.
"""

import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.command_line import Parser
from benchmarks.common import provenance, table, write
from benchmarks.decoders import datasheet
from benchmarks.products import CALLS, microseconds
from scoring.decoder.int4 import Int4, pack
from scoring.quantization.dequantize import Grid

GROUP = 128
SHAPES = ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336))  # query to value, output, gate and up, down
#: Rows, warps for 4,096 inputs, and programs a multiprocessor (0: one a tile) of our kernel.
TILES = ((4, 4, 0), (2, 4, 4), (4, 4, 2), (4, 4, 3), (4, 4, 4), (4, 4, 6), (8, 4, 2), (8, 4, 4))
PROCESSORS = 132
ROWS = (1, 2, 4, 8, 16)


def quantised(weight: Tensor) -> Grid:
    """Symmetric int4 in groups, of a weight [N, K]."""
    shaped = weight.float().view(len(weight), -1, GROUP)
    scale = (shaped.abs().amax(2) / 7).to(weight.dtype)
    values = (shaped / scale.float()[..., None] + 8).round().clamp(0, 15).to(torch.uint8).view(weight.shape)
    return Grid(values, scale, (1, GROUP), torch.full_like(scale, 8))


def tile_of(inputs: int, rows: int, warps: int, programs: int) -> Any:
    """Tile of so many rows; of more than 4,096 inputs, four times the warps and a quarter of the programs."""
    from scoring.decoder.gemv_config import GemvTile

    wide = 4096 if inputs <= 4096 else 16384
    return GemvTile(rows, wide, warps * wide // 4096, programs * PROCESSORS * 4096 // wide)


def ours(x: Tensor, weights: list[Int4], out: Tensor, tile: Any) -> Callable[[], None]:
    """Our kernel over one weight after the other."""
    from scoring.kernels import decode_int4_gemv

    rows, inputs = x.shape
    state = {"turn": 0}

    def call() -> None:
        state["turn"] = (state["turn"] + 1) % len(weights)
        weight = weights[state["turn"]]
        outputs = len(weight.words)
        decode_int4_gemv.gemv[tile.grid(outputs, rows)](
            x, x, x, x, x, weight.words, weight.scale, x, x, out, outputs, inputs, 0.0, 0.0, 1.0, x, BN=tile.rows,
            BK=tile.inputs, NORM="none", ACT="none", BIAS=False, GROUP=GROUP, ZERO=False, ADD=False, POST=False,
            ROWS=rows, PDL=False, num_warps=tile.warps,
        )  # fmt: skip

    return call


def over(weights: list[Any], product: Callable[[Any], Any]) -> Callable[[], Any]:
    """A product over one weight after the other."""
    state = {"turn": 0}

    def call() -> Any:
        state["turn"] = (state["turn"] + 1) % len(weights)
        return product(weights[state["turn"]])

    return call


def of_torch(grid: Grid) -> tuple[Tensor, Tensor]:
    """A weight as torch's `_weight_int4pack_mm` takes it: packed, and scales and zeros [G, N, 2] in bfloat16."""
    octets = grid.values[:, ::2] << 4 | grid.values[:, 1::2]
    packed = torch._convert_weight_to_int4pack(octets.contiguous(), 8)
    scales = torch.stack((grid.scale.t(), torch.zeros_like(grid.scale.t())), -1)
    return packed, scales.bfloat16().contiguous()


def product_row(outputs: int, inputs: int) -> dict[str, Any]:
    """One shape: a single row by every tile of ours and by torch, and more rows by torch."""
    copies = max(2, int(4e8 / (outputs * inputs)))
    wide = [torch.randn(outputs, inputs, device="cuda", dtype=torch.bfloat16) for _ in range(copies)]
    grids = [quantised(each) for each in wide]
    packed = [each for grid in grids if (each := pack(grid)) is not None]
    theirs = [of_torch(grid) for grid in grids]
    exact = grids[0].widen(torch.float32)
    row: dict[str, Any] = {"outputs": outputs, "inputs": inputs}
    x = torch.randn(1, inputs, device="cuda", dtype=torch.float32)
    out = torch.empty(1, outputs, device="cuda", dtype=torch.float32)
    for tile in TILES:
        name, taken = "ours " + "x".join(map(str, tile)), tile_of(inputs, *tile)
        try:
            ours(x, packed[:1], out, taken)()
            error = float((out - x @ exact.t()).norm() / out.norm())
            row[name] = microseconds(ours(x, packed, out, taken))
            row["worst error"] = max(row.get("worst error", 0.0), error)
        except Exception:
            traceback.print_exc()
    for rows in ROWS:
        many = torch.randn(rows, inputs, device="cuda", dtype=torch.bfloat16)
        row[f"cuBLAS {rows}"] = microseconds(over(wide, lambda w, y=many: y @ w.t()))
        row[f"torch int4 {rows}"] = microseconds(
            over(theirs, lambda w, y=many: torch._weight_int4pack_mm(y, w[0], GROUP, w[1]))
        )
    found = torch._weight_int4pack_mm(x.bfloat16(), theirs[0][0], GROUP, theirs[0][1]).float()
    row["torch's error"] = float((found - x @ exact.t()).norm() / found.norm())
    row["floor"] = 1e6 * outputs * inputs * 0.53 / datasheet()
    return row


def step_rows() -> list[dict[str, Any]]:
    """A whole step of an 8 B decoder in 16 bits, int8 and int4, the latter by several numbers of programs."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from scoring.decoder.decoder import Decoder
    from scoring.decoder.int4 import use
    from scoring.decoder.model import dequantize_weights
    from scoring.decoder.verify import step_ms

    config = LlamaConfig(hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
                         intermediate_size=14336, vocab_size=128256, max_position_embeddings=2048)  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model = model.to_empty(device="cuda").eval()
    for name, parameter in model.named_parameters():
        parameter.data.fill_(1.0) if "norm" in name else parameter.data.normal_(0, 0.02)
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to("cuda")
    decoder = Decoder(model, slots=1, max_length=512)
    decoder_model: Any = decoder.model
    for product in decoder_model.products()[:-1]:
        product.weight.copy_(quantised(product.weight).widen(torch.bfloat16))
    rows = []

    def measured(what: str, tiles: dict[str, Any] | None = None) -> None:
        decoder._start()
        decoder._cuda.launcher.tiles = tiles or {}
        milliseconds = min(step_ms(decoder, 60) for _ in range(3))
        decoder.open(0)
        decoder.prefill(0, [5, 6, 7])
        decoder.sample([0]).tokens()
        decoder.feed(0, 9)
        decoder.step([0]).tokens()
        logits = decoder.last_logits(1).float().clone()
        decoder.release(0)
        row = {"weights": what, "ms": milliseconds, "GB": decoder_model.step_bytes() / 1e9}
        row["GB/s"] = row["GB"] / milliseconds * 1e3
        rows.append(row | {"differs": float((logits - first.get("logits", logits)).norm() / logits.norm())})
        first.setdefault("logits", logits)
        print(rows[-1], flush=True)

    first: dict[str, Tensor] = {}
    measured("16 bits")
    for product in decoder_model.products()[:-1]:
        found = pack(quantised(product.weight))
        assert found is not None
        use(product, [found])
    measured("int4")
    for programs in (0, 2, 3, 6):  # 4 are chosen
        tiles = {name: tile_of(4096, rows, 4, programs) for name, rows in (("qkv", 2), ("gated", 2), ("out", 4))}
        tiles["down"] = tile_of(14336, 4, 4, 4 if programs else 0)
        measured(f"int4, {programs} programs a multiprocessor" if programs else "int4, a program a tile", tiles)
    dequantize_weights(decoder_model)
    decoder.use_int8()
    measured("int8")
    return rows


def main() -> None:
    """Every shape, the step, the tables, the JSON."""
    out = Parser(__doc__, gpus=1).parse_args().out
    torch.manual_seed(0)
    result: dict[str, Any] = provenance()
    rows = []
    for shape in SHAPES:
        try:
            rows.append(product_row(*shape))
            print(rows[-1], flush=True)
        except Exception:
            traceback.print_exc()
        torch.cuda.empty_cache()
    with torch.inference_mode():
        steps = step_rows()
    write("int4", result | {"products": rows, "steps": steps, "calls": CALLS}, out)
    print(table(tuple(steps[0]), steps))


if __name__ == "__main__":
    main()
