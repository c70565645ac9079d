"""The tables of docs/performance.md and docs/parity.md, from results alone: `python -m benchmarks.tables` writes them.

No number in a table is typed by hand.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import parity_tables, serving_tables
from benchmarks.command_line import RESULTS
from benchmarks.serving_tables import where

ROOT = Path(__file__).resolve().parent.parent
PAGES = tuple(ROOT / "docs" / name for name in ("performance.md", "parity.md"))

FLOOR = "grpc-echo"

Result = dict[str, Any]


def hosts(result: Result) -> str:
    """What each host adds over in-process."""
    rows = [
        "| host | p50 ms | p90 ms | p99 ms | added p50 ms | requests/s, 8 clients |",
        "|---|---|---|---|---|---|",
    ]
    floor = next((row["p50_ms"] for row in result["rows"] if row["target"] == FLOOR), None)
    for row in result["rows"]:
        if row["target"] == FLOOR:
            continue
        added = "" if row["added_p50_ms"] is None else f"{row['added_p50_ms']:.2f}"
        figures = [f"{row[key]:.2f}" for key in ("p50_ms", "p90_ms", "p99_ms")]
        rows.append(f"| {row['target']} | {' | '.join(figures)} | {added} | {row['requests_per_s']:.0f} |")
    rows.append("")
    rows.append(
        f"{result['model']}, two sentences a request, {result['machine']}, {result['date']}, revision "
        f"{result['revision']}. One client for the latencies; the client shares the cores."
    )
    if floor is not None:
        rows[-1] += (
            f" Of what gRPC adds, {floor:.2f} ms is what a server takes that only echoes an answer of that size."
        )
    return "\n".join(rows)


def encoders(result: Result) -> str:
    """One forward of an encoder at batch 1, model only, and a whole answer in the process."""
    rows = [
        "| encoder, batch 1 | eager ms | best stock ms | DeepSpeed ms | ours ms | over stock | floor ms | answer ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        figures = [row["eager"], row["stock"], row["deepspeed"], row["ours"]]
        cells = " | ".join(f"{value:.2f}" for value in figures)
        rows.append(
            f"| {row['work']} | {cells} | {row['stock'] / row['ours']:.2f}× | {row['floor']:.2f} "
            f"| {row['end to end']:.2f} |"
        )
    worst = max(row["errors"]["ours"] for row in result["rows"])
    note = "Stock: the fastest of a CUDA graph, `torch.compile` reduce-overhead, and Inductor with freezing in a graph."
    return "\n".join([*rows, "", f"{where(result)}, fp16. {note} Largest relative error of ours: {worst:.1e}."])


def eight_bits(result: Result) -> str:
    """Encoders' products in int8 and FP8 against 16 bits: times, and errors against float32."""
    rows = [
        "| encoder | 16 bits ms | int8 ms | FP8 ms | error, 16 bits | int8 | FP8 |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        errors = " | ".join(f"{row['errors'][kind]:.1e}" for kind in ("ours", "int8", "fp8"))
        rows.append(f"| {row['work']}, batch 1 | {row['ours']:.2f} | {row['int8']:.2f} | {row['fp8']:.2f} | {errors} |")
        for shape in row["shapes"]:
            if shape["batch"] > 1:
                wide = min(shape["triton"], shape["cublas"])
                name = f"{row['work'].split()[0]}, batch {shape['batch']} x {shape['length']}"
                rows.append(f"| {name} | {wide:.2f} | {shape['int8']:.2f} | {shape['fp8']:.2f} | | | |")
    note = "In larger batches every second row is half padding; 16 bits: the faster of our products and cuBLAS's."
    return "\n".join([*rows, "", f"{where(result)}, random weights. Query, key, value and up in eight bits. {note}"])


def products(result: Result) -> str:
    """One product of an encoder in every format, ours beside torch's."""
    columns = ("cuBLAS 16", "ours 16", "ours int8", "ours fp8", "torch int8", "torch fp8, a scale a row")
    heads = "16 bits, cuBLAS | 16 bits, ours | int8, ours | FP8, ours | int8, torch | FP8, torch"
    rows = [f"| rows x outputs x inputs | {heads} | floor |", "|---" * 8 + "|"]
    for row in result["rows"]:
        cells = " | ".join(f"{row[name]:.1f}" for name in columns)
        rows.append(f"| {row['rows']} x {row['outputs']} x {row['inputs']} | {cells} | {row['floor']:.1f} |")
    worst = {name: max(row["errors"][f"ours {name}"] for row in result["rows"]) for name in ("int8", "fp8")}
    note = (
        "Microseconds in a graph, GELU included where there is one (3072 x 768, 4096 x 1024); torch's int8 product has "
    )
    note += "neither scales nor GELU. "
    note += f"Relative errors of one product: int8 {worst['int8']:.1e}, FP8 {worst['fp8']:.1e}."
    return "\n".join([*rows, "", f"{where(result)}. {note}"])


def decoders(result: Result) -> str:
    """One decode step, all slots."""
    rows = [
        "| decoder step | `generate` ms | best stock ms | ours ms | over stock | floor ms | of the floor |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        stock = row["best_stock"]
        name = row["model"].removesuffix(f"-{row['slots']}")
        slots = "" if row["slots"] == 1 else f", {row['slots']} slots"
        gain = "" if stock is None else f"{stock / row['ours']:.2f}×"
        tier = ", generic" if row.get("tier") == "generic" else ""
        rows.append(
            f"| {name}{tier}{slots} | {_number(row.get('generate'))} | {_number(stock)} | {row['ours']:.2f} "
            f"| {gain} | {row['floor']:.2f} | {row['floor'] / row['ours']:.0%} |"
        )
    stocked = any(row["best_stock"] for row in result["rows"])
    note = "Stock: the faster of a CUDA graph and a compiled step in one, over transformers' static cache."
    note = (
        note
        if stocked
        else "No stock option but `generate` takes these: transformers' static cache has no such states."
    )
    note = f"{note} {result['note']}" if "note" in result else note
    narrow = {result["cases"][row["model"]].get("dtype", "float16") for row in result["rows"]} == {"bfloat16"}
    form = "bfloat16" if narrow else "fp16"
    return "\n".join(
        [*rows, "", f"{where(result)}, {form} unless int8 is said, random weights of the real shapes. {note}"]
    )


def peers(result: Result) -> str:
    """Servers side by side at several numbers of clients."""
    counts = sorted({row["clients"] for row in result["rows"]})
    found = {(row["server"], row["clients"]): row for row in result["rows"]}
    heads = "".join(f" {count} |" for count in counts)
    rows = [f"| requests/s, p50 / p99 ms at clients: |{heads}", "|---" * (len(counts) + 1) + "|"]
    for server in dict.fromkeys(row["server"] for row in result["rows"]):
        cells = []
        for count in counts:
            row = found[server, count]
            lost = f" ({row['refused']} refused)" if row["refused"] else ""
            cells.append(f"{row['requests_per_s']:.0f}, {row['p50_ms']:.1f} / {row['p99_ms']:.1f}{lost}")
        rows.append(f"| {server} | {' | '.join(cells)} |")
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    load = max(row["load_ms"] for row in result["rows"])
    rows.append("")
    rows.append(
        f"{result['model']}, one text of 6 to 64 words a request; {result['machine']}, OpenMP threads of a server: "
        f"{result['threads']}, {result['date']}, revision {result['revision']}; {versions}. One server runs at a time; "
        f"the load generator shares the cores and takes up to {load:.2f} ms of processor time a request. LitServe "
        "forms batches, Azure's server takes requests one by one in 16 threads, both over plain transformers in "
        "float32. Two processes of ours (`--replicas 2`) have a core each; the last row has our passes off."
    )
    return "\n".join(rows)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


TABLES: dict[str, tuple[str, Callable[[Result], str]]] = {
    "hosts": ("hosts.json", hosts),
    "peers": ("peers.json", peers),
    "encoders": ("encoders.json", encoders),
    "eight-bits": ("encoders.json", eight_bits),
    "products": ("products.json", products),
    "decoders": ("decoders-h100.json", decoders),
    "families": ("decoders-families-h100.json", decoders),
    "families-h200": ("decoders-families-h200.json", decoders),
    "mixtures": ("decoders-mixtures-h200.json", decoders),
    "generic-others": ("decoders-generic-others-h200.json", decoders),
    "recurrent-steps": ("recurrent_steps-h200.json", decoders),
    "beside-vllm": ("beside_vllm.json", serving_tables.beside_vllm),
    "over-http": ("over_http.json", serving_tables.over_http),
    "waits": ("waits.json", serving_tables.waits),
    "throughput": ("throughput.json", serving_tables.throughput),
    "long-prompts": ("long_prompts.json", serving_tables.long_prompts),
    "diffusion": ("diffusion.json", serving_tables.diffusion),
    "admission": ("admission.json", serving_tables.admission),
    "grammars": ("grammars.json", serving_tables.grammars),
    "memory": ("memory.json", serving_tables.memory),
    "offload": ("offload.json", serving_tables.offload),
    "slice-alone": ("slice_alone.json", serving_tables.slice_alone),
    "quantised": ("quantised.json", serving_tables.quantised),
    "cpu": ("cpu.json", serving_tables.cpu),
    "cache-forms": ("cache_forms.json", serving_tables.cache_forms),
    "cpu-vnni": ("cpu-vnni.json", serving_tables.cpu),
    "cpu-zen3": ("cpu-zen3.json", serving_tables.cpu),
    "cpu-zen4": ("cpu-zen4.json", serving_tables.cpu),
    "cpu-zen4-vnni": ("cpu-zen4-vnni.json", serving_tables.cpu),
    "cpu-families": ("cpu-families.json", serving_tables.cpu_families),
    "neighbour": ("neighbour.json", serving_tables.neighbour),
    "streams": ("streams.json", serving_tables.streams),
    "faults": ("parity_faults.json", parity_tables.faults),
    "margins": ("token_margins.json", parity_tables.margins),
}


def render(name: str) -> str:
    """One table from its results."""
    file, make = TABLES[name]
    return make(json.loads((RESULTS / file).read_text(encoding="utf-8")))


def shown(name: str, text: str) -> str:
    """What stands between a table's markers."""
    return text.split(f"<!-- {name}:begin -->")[1].split(f"<!-- {name}:end -->")[0].strip()


def tables_of(text: str) -> list[str]:
    """The tables that a document has markers for."""
    return [name for name in TABLES if f"<!-- {name}:begin -->" in text]


def write() -> None:
    """Replace what stands between the markers of every table in the documents."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for name in tables_of(text):
            begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
            head, rest = text.split(begin)
            text = f"{head}{begin}\n{render(name)}\n{end}{rest.split(end)[1]}"
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write()
