"""Attention of a chunk of a long prompt over the paged cache: tilings of our kernel, and torch's over gathered keys.

`python -m benchmarks.prompt_attention [--out FOLDER]` prints the table and writes prompt_attention.json, on which the
choices of scoring/decoder/prompt_attention.py rest. A column is a chunk's tokens and its position; a cell is TFLOP/s.
`spans`: whole spans of earlier keys by cuDNN, the rest by our kernel. `flash`: keys gathered, then torch's flash
attention. All kernels are compiled at once, in processes of their own, then measured one by one.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks.command_line import Parser
from benchmarks.common import device_ms, provenance, table, write
from benchmarks.decoders import attempt
from scoring.decoder import prompt_attention
from scoring.decoder.block_pool import blocks_of
from scoring.decoder.head_shapes import Heads
from scoring.decoder.kv_cache import KVCache
from scoring.decoder.layer_groups import Kept
from scoring.decoder.model import Attention, Linear
from scoring.decoder.prefill import Layout, runs_of
from scoring.decoder.prompt_attention import ChunkAttention, Tiling

LENGTH = 131_072
POINTS = (
    (512, 0), (1024, 7168), (2048, 6144), (8192, 0), (1024, 31_744), (2048, 40_960), (8192, 24_576), (512, 90_112),
    (1024, 90_112), (2048, 90_112), (4096, 90_112), (8192, 90_112),
)  # fmt: skip
HEADS = {128: (24, 8), 64: (32, 8)}
TILED = {
    f"{'d' if described else 'p'}{queries}x{keys} w{warps} s{stages}": Tiling(queries, keys, warps, stages, described)
    for queries, keys, warps, stages, described in (
        (128, 64, 8, 3, False), (128, 64, 4, 3, False), (64, 64, 4, 2, False), (64, 64, 4, 3, False),
        (128, 64, 8, 2, True), (128, 64, 8, 3, True), (128, 64, 8, 4, True), (128, 64, 4, 2, True),
        (128, 64, 4, 3, True), (64, 64, 4, 2, True), (64, 64, 4, 3, True), (64, 64, 4, 4, True),
    )
}  # fmt: skip


class Chunk:
    """A cache of random numbers and the queries of chunks of one slot, of one shape of heads."""

    def __init__(self, head_dim: int, length: int = LENGTH) -> None:
        torch.manual_seed(0)
        heads, kv_heads = HEADS[head_dim]
        linear, self.device = Linear(torch.empty(0, 0)), torch.device("cuda")
        self.model: Any = SimpleNamespace(
            layers=[SimpleNamespace(attention=Attention(linear, linear, head_dim**-0.5))], heads=heads,
            kv_heads=kv_heads, head_dim=head_dim, vocabulary=8, alibi=None, dtype=torch.bfloat16, device=self.device,
            kept=[Kept(0, kv_heads, head_dim)], heads_of=lambda index: Heads(heads, kv_heads, head_dim),
        )  # fmt: skip
        self.state = KVCache(self.model, 1, length)
        self.state.table[0, 0] = torch.randperm(self.state.blocks, device="cuda").int()
        self.slots = torch.zeros(1, dtype=torch.int32, device="cuda")
        self.state.keys.normal_(), self.state.values.normal_()
        self.q = torch.randn(8192, heads, head_dim, device="cuda", dtype=torch.bfloat16)
        self.out = torch.empty_like(self.q)

    def ours(self, tiling: Tiling, spans: bool = False) -> Callable[[int, int], Callable[[], None]]:
        """Calls of our kernel by tokens and position, with spans left to cuDNN or without."""
        prompt_attention.TILINGS[2] = {256: tiling}
        own = ChunkAttention(self.model, self.state, 8192)
        own.slots = self.slots

        def at(count: int, position: int) -> Callable[[], None]:
            layout = Layout(8192, 1, tiling.queries)
            part = (0, position, range(count))
            numbers = torch.zeros(layout.size, dtype=torch.int32)
            apart = own.spans(count, position) if spans else []
            layout.fill(numbers, [part], 1, [apart])
            tiled, tiles = layout.cut(numbers.cuda())[2], count // tiling.queries + 1
            runs = runs_of([part], [apart]) if apart else ()
            return lambda: own.attend(0, self.q, self.out, tiled, tiles, self.q, False, {}, runs)

        return at

    def flash(self, count: int, position: int) -> Callable[[], None]:
        """Keys gathered, then torch's flash attention, whose causal mask is aligned at the end."""
        from scoring.kernels import decode_prefill  # with triton, which a machine without a GPU need not have

        model, state, blocks = self.model, self.state, blocks_of(position + count)
        shape = (2, model.kv_heads, blocks * 64, model.head_dim)
        keys, values = torch.empty(shape, dtype=torch.bfloat16, device="cuda")
        size = 64 * model.head_dim

        def call() -> None:
            decode_prefill.gather[(blocks, model.kv_heads, size // 2048)](
                *state.layer(0), self.slots, keys, values, 0, state.width, 0,
                state.blocks + 1, blocks, SIZE=size, BE=2048, num_warps=4,
            )  # fmt: skip
            k, v = (x[:, : position + count].transpose(0, 1)[None] for x in (keys, values))
            found = torch.ops.aten._flash_attention_forward(
                self.q[None, :count], k, v, None, None, count, position + count, 0.0, True, False,
                scale=model.head_dim**-0.5,
            )  # fmt: skip
            self.out[:count] = found[0][0]

        return call

    def cudnn(self, count: int, position: int) -> Callable[[], None]:
        """cuDNN's causal attention without earlier keys, as transformers calls it; only for position 0."""
        if position:
            raise ValueError("only whole prompts")
        model = self.model
        k, v = torch.randn(2, 1, model.kv_heads, count, model.head_dim, dtype=torch.bfloat16, device="cuda")
        q = self.q[:count].transpose(0, 1)[None]
        call = torch.ops.aten._scaled_dot_product_cudnn_attention
        return lambda: call(q, k, v, None, True, 0.0, True, False, scale=model.head_dim**-0.5)


def flops(model: Any, count: int, position: int) -> float:
    """Operations of a chunk's attention, each query over what it sees."""
    return 4.0 * model.heads * model.head_dim * count * (position + count / 2)


def row(chunk: Chunk, name: str, at: Callable[[int, int], Callable[[], None]], told: torch.Tensor) -> dict[str, Any]:
    """TFLOP/s at every point, and the largest difference from flash attention's results of the second point."""
    found: dict[str, Any] = {"attention": name, "head": chunk.model.head_dim}
    for count, position in POINTS:

        def timed(count: int = count, position: int = position) -> float:
            call = at(count, position)
            call()
            torch.cuda.synchronize()
            return flops(chunk.model, count, position) / device_ms(call, 4) / 1e9

        found[f"{count}@{position}"] = attempt(timed, f"{name} {count}@{position}")
    if name != "cudnn":
        attempt(at(*POINTS[1]), name)
        found["difference"] = float((chunk.out[: POINTS[1][0]].float() - told).abs().max())
    return found


def main() -> None:
    """Compile, measure, print the table, write the JSON."""
    parser = Parser(__doc__, gpus=1)
    parser.add_argument("--compile", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.compile:
        chunk = Chunk(int(chosen.compile[1]), 4096)
        chunk.ours(TILED[chosen.compile[0]])(512, 0)()
        torch.cuda.synchronize()
        return
    command = [sys.executable, "-m", "benchmarks.prompt_attention", "--compile"]
    running = [subprocess.Popen([*command, name, str(head)]) for name in TILED for head in HEADS]
    for each in running:
        each.wait(120)
    rows = []
    for head in HEADS:
        chunk = Chunk(head)
        chunk.flash(*POINTS[1])()
        told = chunk.out[: POINTS[1][0]].float().clone()
        rows += [row(chunk, name, chunk.ours(tiling), told) for name, tiling in TILED.items()]
        rows += [row(chunk, "flash", chunk.flash, told), row(chunk, "cudnn", chunk.cudnn, told)]
        ours = [each for each in rows if each["head"] == head and each["attention"] in TILED]
        best = max(ours, key=lambda each: each.get("8192@24576") or 0.0)["attention"]
        rows.append(row(chunk, f"spans, {best}", chunk.ours(TILED[best], spans=True), told))
        write("prompt_attention", provenance() | {"heads": HEADS, "rows": rows}, chosen.out)
    print(table(["attention", "head", *(f"{count}@{at}" for count, at in POINTS), "difference"], rows))


if __name__ == "__main__":
    main()
