"""Tiles of a mixture's products on one GPU: microseconds of a layer's experts by rows and tiles, beside the reading.

`python -m benchmarks.expert_tiles [--only NAME ...]` takes four layers of each shape, with random weights and inputs.
Rows of one and two are products of single rows; more are grouped by expert. Writes expert_tiles.json.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from benchmarks.command_line import Parser
from benchmarks.common import provenance, table, write
from benchmarks.decoder_shapes import CASES, make
from benchmarks.decoders import LENGTH, graph_ms
from scoring.decoder.decoder import Decoder
from scoring.decoder.product_tile import ProductTile

SHAPES = ("qwen3-moe-small", "gpt-oss-small", "mixtral-small")
LAYERS, ROWS = 4, (1, 2, 4, 16, 64, 256)
_COPY = 4.3e12  # bytes a second that a large copy reads on an H200, of which the floor is
COLUMNS = ("model", "rows", "gated", "down", "us", "floor us")
#: Rows, outputs, inputs, warps and stages of the gated product and of the one behind it.
GROUPED = (
    ((16, 32, 128, 4, 4), (16, 64, 128, 4, 4)), ((16, 32, 256, 4, 3), (16, 64, 256, 4, 3)),
    ((16, 64, 128, 4, 4), (16, 64, 128, 4, 4)), ((16, 64, 128, 8, 4), (16, 128, 128, 4, 4)),
    ((32, 32, 128, 4, 4), (32, 64, 128, 4, 4)), ((32, 64, 64, 4, 5), (32, 128, 64, 4, 5)),
    ((32, 64, 128, 4, 4), (32, 128, 128, 4, 4)), ((64, 64, 64, 4, 4), (64, 128, 64, 4, 4)),
    ((64, 128, 64, 4, 4), (64, 256, 64, 4, 4)), ((128, 64, 64, 8, 4), (128, 128, 64, 8, 4)),
    ((128, 128, 64, 8, 3), (128, 256, 64, 8, 3)),
)  # fmt: skip
#: Rows, inputs and warps of a program of a single row's products.
SINGLE = {
    "experts": ((2, 2048, 4), (4, 2048, 8), (4, 512, 2), (2, 512, 2), (2, 4096, 8), (1, 4096, 4)),
    "mixed": ((2, 256, 4), (4, 256, 4), (1, 512, 4), (2, 512, 4), (4, 512, 4), (2, 1024, 8), (2, 2048, 8)),
}


def floor_us(mixture: Any, rows: int) -> float:
    """Microseconds to read the experts that so many rows choose, on average."""
    experts = len(mixture.up)
    read = rows * mixture.chosen if rows <= 2 else experts * (1 - (1 - mixture.chosen / experts) ** rows)
    return float(read * (mixture.up.nbytes + mixture.down.nbytes) / experts / _COPY * 1e6)


def tried(launcher: Any, layers: list[Any], rows: int) -> Iterator[tuple[str, str, float]]:
    """Tiles of both products, and microseconds of a layer; those that are set come first."""
    from scoring.decoder.gemv_config import GemvTile

    def timed(call: Callable[[int], None]) -> float:
        def every() -> None:
            for index in range(len(layers)):
                call(index)

        return 1e3 * graph_ms(every) / len(layers)

    def single(index: int) -> None:
        launcher.experts_gemv(rows, layers[index], layers[index].mlp)

    def grouped(index: int) -> None:
        launcher.experts_grouped(rows, layers[index].mlp)

    yield "as set", "as set", timed(single if rows <= 2 else grouped)
    for kind, tiles in SINGLE.items() if rows <= 2 else ():
        for tile in tiles:
            launcher.tiles[kind] = GemvTile(*tile)
            both = (str(tile), "as set") if kind == "experts" else ("as set", str(tile))
            yield *both, timed(single)
            del launcher.tiles[kind]
    for pair in GROUPED if rows > 2 else ():
        launcher.grouped = {1 << 30: tuple(ProductTile(*tile) for tile in pair)}
        yield str(pair[0]), str(pair[1]), timed(grouped)
        del launcher.grouped


@torch.inference_mode()
def measure(name: str) -> list[dict[str, Any]]:
    """Rows of one shape."""
    case = CASES[name]
    case = replace(case, config={**case.config, "num_hidden_layers": LAYERS}, slots=max(ROWS))
    decoder = Decoder(make(case), case.slots, LENGTH)
    decoder.warm_up(ROWS)
    launcher, layers = decoder._cuda.launcher, list[Any](decoder.model.layers)
    launcher.buffers.normed.normal_(), launcher.buffers.x.normal_()
    found = []
    for rows in ROWS:
        floor = floor_us(layers[0].mlp, rows)
        for gated, down, us in tried(launcher, layers, rows):
            found.append({"model": name, "rows": rows, "gated": gated, "down": down, "us": us, "floor us": floor})
            print(table(COLUMNS, found[-1:]).splitlines()[-1], flush=True)
    return found


def main() -> None:
    """Measure every shape; print the rows as they come, and write them."""
    parser = Parser(__doc__, gpus=1)
    parser.add_argument("--only", nargs="*", default=list(SHAPES), choices=SHAPES)
    chosen = parser.parse_args()
    rows = [row for name in chosen.only for row in measure(name)]
    write("expert_tiles", provenance() | {"rows": rows}, chosen.out)


if __name__ == "__main__":
    main()
