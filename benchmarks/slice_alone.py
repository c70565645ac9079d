"""What one GPU tells of two: a Llama of 6.7 B, and the step of one of its two slices with the sums left out.

`python -m benchmarks.slice_alone [--out FOLDER]` prints the table and writes slice_alone.json. A slice is a model with
half of the heads and half of the inner size; what it leaves of the bar's time is what each sum over two GPUs may take.
The sum's kernel is timed as well, between two streams of this GPU, where no link lies between the ranks. It takes the
place of no measurement on two GPUs, which is `benchmarks.slices`.
"""

from typing import Any

import torch

from benchmarks.command_line import Parser
from benchmarks.common import provenance, table, write
from benchmarks.decoders import LENGTH, datasheet
from benchmarks.slices import BARS, CASE, DEGREE, SLOTS, step_ms
from scoring.decoder.decoder import Decoder
from scoring.distributed.all_reduce import CAPACITY, AllReduce

SUMS = 64  # in one graph
COLUMNS = ("slots", "whole ms", "a slice ms", "floor of a slice", "bar ms", "left for a sum, us")


def slice_config(config: dict[str, Any]) -> dict[str, Any]:
    """The shape that one of DEGREE ranks holds."""
    heads, kv_heads = config["num_attention_heads"], config.get("num_key_value_heads") or config["num_attention_heads"]
    return config | {
        "head_dim": config["hidden_size"] // heads,
        "num_attention_heads": heads // DEGREE,
        "num_key_value_heads": kv_heads // DEGREE,
        "intermediate_size": config["intermediate_size"] // DEGREE,
    }


def steps(config: dict[str, Any]) -> list[dict[str, float]]:
    """Milliseconds a step and its floor, by slots."""
    import transformers

    torch.manual_seed(0)
    with torch.device("cuda"):
        model = transformers.LlamaForCausalLM._from_config(transformers.LlamaConfig(**config), dtype=torch.float16)
    decoder = Decoder(model.eval(), max(SLOTS), LENGTH)
    floor = 1e3 * decoder.model.step_bytes() / datasheet()
    return [{"slots": slots, "ms": step_ms(decoder, slots), "floor": floor} for slots in SLOTS]


def sum_microseconds() -> dict[str, Any]:
    """One sum of a row of the residual stream between two streams of this GPU, and whether it was right."""
    size = CASE.config["hidden_size"]
    inboxes = [torch.zeros(DEGREE, DEGREE, CAPACITY, dtype=torch.int64, device="cuda") for _ in range(DEGREE)]
    addresses = [inbox.data_ptr() for inbox in inboxes]
    ranks = [AllReduce(rank, addresses, inbox) for rank, inbox in enumerate(inboxes)]
    rows = [torch.zeros(1, size, device="cuda") for _ in ranks]
    graphs = []
    for rank, row in zip(ranks, rows, strict=True):
        rank.sum(row, count=0)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(SUMS):
                rank.sum(row)
        graphs.append(graph)
    streams = [torch.cuda.Stream() for _ in ranks]
    right, times = True, []
    for _ in range(20):
        for number, row in enumerate(rows, 1):
            row.fill_(number * 2.0**-SUMS)
        torch.cuda.synchronize()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        for stream, graph in zip(streams, graphs, strict=True):
            with torch.cuda.stream(stream):
                if stream is streams[-1]:
                    begin.record()
                graph.replay()
        end.record(streams[-1])
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
        right = right and all(bool((row == 1.5).all()) for row in rows)  # (1 + 2) / 2^64, doubled by each later sum
    return {"us": 1e3 * sorted(times)[len(times) // 2] / SUMS, "right": right}


def main() -> None:
    """Both shapes, the sum, the table, the JSON."""
    out = Parser(__doc__, gpus=1).parse_args().out
    config, layers = CASE.config, CASE.config["num_hidden_layers"]
    found = {"whole": steps(config), "slice": steps(slice_config(config))}
    rows = []
    for whole, part in zip(found["whole"], found["slice"], strict=True):
        bar = whole["ms"] / BARS[int(whole["slots"])]
        left = 1e3 * (bar - part["ms"]) / (2 * layers + 1)  # and the tokens
        names = dict(zip(COLUMNS, (whole["slots"], whole["ms"], part["ms"], part["floor"], bar, left), strict=True))
        rows.append(names)
    result = provenance() | {"config": config, "sum_between_streams": sum_microseconds(), "rows": rows}
    write("slice_alone", result, out)
    print(table(COLUMNS, rows), result["sum_between_streams"], sep="\n")


if __name__ == "__main__":
    main()
