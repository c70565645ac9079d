"""Tokens per second and latencies over HTTP beside vLLM: same model folder, prompts, clients and GPU, in turns.

    python -m benchmarks.beside_vllm [--vllm-path FOLDER] [--vllm-flags ... | --url URL] [--out FOLDER]

The model, its bundle and the clients are those of `benchmarks.over_http`. Both servers run at once, and are asked one
after another for the same prompts at `/v1/completions`, streamed and whole, exactly 128 tokens each; ours at `/score`
too. Before that, both must count the same tokens of a prompt and of an answer. vLLM must be importable, as it is or
from the folder that `--vllm-path` names; `--url` names a server that runs already in its place.
"""

import json
import signal
import sys
import tempfile
from argparse import REMAINDER, Namespace
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.command_line import Parser
from benchmarks.common import provenance, table, write
from benchmarks.http_clients import LONGEST, NEW, SHORTEST, body
from benchmarks.over_http import SHAPES, load, served, write_bundle, write_model
from benchmarks.vllm_server import VLLM, Ours, Server

SHARED = ("completions", "openai")  # ways in that both have
ALONE = ("whole", "stream")  # those that ours has beside them
ROUNDS = 5
TIMES = ("first p50", "first p99", "token p50", "next p50", "next p99")
COLUMNS = ("server", "clients", "way", "tokens/s", *TIMES, "processor us", "failed")


def counts(server: Server) -> list[tuple[int, int]]:
    """Tokens that a server counts of a short and of a long prompt, and of their answers."""
    found = []
    for words in (1, SHORTEST, LONGEST - 2):
        request = body(" ".join(f"w{number:05d}" for number in range(words)), NEW, SHARED[0])
        usage = server.ask("/v1/completions", json.loads(request.partition(b"\r\n\r\n")[2]))["usage"]
        found.append((usage["prompt_tokens"], usage["completion_tokens"]))
    return found


def check(servers: dict[str, Server]) -> None:
    """End where the servers would not do the same work."""
    found = {name: counts(server) for name, server in servers.items()}
    if len({str(each) for each in found.values()}) > 1 or any(new != NEW for _, new in found["ours"]):
        raise SystemExit(f"the servers count other tokens of prompts and of their answers: {found}")


def one(name: str, server: Server, clients: int, way: str, seed: int) -> dict[str, Any]:
    """A row of one turn."""
    before = server.processor_s()
    row = {"server": name, **load(server.port, clients, way, seed, server.host)}
    if before is not None and (after := server.processor_s()) is not None:
        row["processor us"] = 1e6 * (after - before) / (clients * NEW)  # of a token
    return row


def take_turns(servers: dict[str, Server], options: Namespace) -> list[dict[str, Any]]:
    """Medians of all turns but the first, which warms the servers."""
    seen: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    for turn in range(options.rounds + 1):
        for clients in options.clients:
            for way in (*SHARED, *ALONE):
                for name, server in servers.items():
                    if name == "ours" or way in SHARED:
                        row = one(name, server, clients, way, turn)
                        print(table(COLUMNS, [row]).splitlines()[-1], flush=True)
                        seen.setdefault((name, clients, way), []).append(row)
    return [middle(rows[1:]) for rows in seen.values()]


def middle(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One row of several of the same kind: medians, all rates, and all failures."""
    told = {
        name: median([row[name] for row in rows]) if isinstance(value, float) else value
        for name, value in rows[0].items()
    }
    told |= {"failed": sum(row["failed"] for row in rows), "all tokens/s": [row["tokens/s"] for row in rows]}
    return told


def beside(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ratios of our rows to the other's of the same way: tokens a second, and times where there are any."""
    found = []
    at = {(row["server"], row["clients"], row["way"]): row for row in rows}
    for (server, clients, way), theirs in at.items():
        if server != "ours":
            ours = at["ours", clients, way]
            shares = {each: ours[each] / theirs[each] for each in ("tokens/s", *TIMES) if theirs[each]}
            found.append({"server": f"ours / {server}", "clients": clients, "way": way, **shares})
    return found


def measure(name: str, options: Namespace) -> dict[str, Any]:
    """Rows of one shape, beside the other server's."""
    shape = SHAPES[name]
    with tempfile.TemporaryDirectory() as own, ExitStack() as stack:
        folder, log = Path(own), options.out.resolve() / f"{name}-vllm.log"
        write_model(shape, folder)
        other = Server(options.url) if options.url else None
        if other is None:
            other = VLLM(folder / "model", log, shape.dtype, options.vllm_path, options.vllm_flags)
        stack.callback(other.close)
        write_bundle(shape, folder, options.instance_type)
        other.wait()  # before ours starts: vLLM sizes its cache by what the GPU has free
        version = other.version()
        told = options.url or f"vLLM {version}"
        servers = {"ours": Ours(*stack.enter_context(served(folder, []))), told: other}
        check(servers)
        rows = take_turns(servers, options)
    print(table(COLUMNS, [*rows, *beside(rows)]), flush=True)
    return {"version": version, "flags": options.vllm_flags, "rows": rows, "beside": beside(rows)}


def main() -> None:
    """Measure every shape, and write beside_vllm.json."""
    parser = Parser(__doc__)
    parser.add_argument("--only", nargs="+", default=["llama-1.1b"], choices=SHAPES)
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 256])
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="counted turns of each row")
    parser.add_argument("--instance-type", default="Standard_NC40ads_H100_v5")
    parser.add_argument("--vllm-path", type=Path, metavar="FOLDER", help="of vLLM's packages; first on its path")
    parser.add_argument("--url", help="of a server that runs already and is asked in vLLM's place")
    parser.add_argument("--vllm-flags", nargs=REMAINDER, default=[], help="of `vllm serve`; the last option")
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no server is left behind
    chosen.out.mkdir(parents=True, exist_ok=True)
    results = {name: measure(name, chosen) for name in chosen.only}
    write("beside_vllm", provenance() | {"load": [SHORTEST, LONGEST, NEW], "models": results}, chosen.out)


if __name__ == "__main__":
    main()
