"""What grammars and adapters cost a CPU over HTTP: a served bundle of SmolLM2, its rows in turn with them and without.

    python -m benchmarks.http_calls [--rounds 4] [--tokens 24] [--out FOLDER]

64 requests at once of which none, or half, are bound to JSON schemas; 64 at once which share 32 adapters, or have none,
beside as many of a server of the base alone. Told are medians of the server's processor time a token, which other
processes change least, and of tokens a second.
"""

import argparse
import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.command_line import RESULTS
from benchmarks.common import provenance, write
from benchmarks.host_side import processor_s
from benchmarks.over_http import served
from mii_azure import generate
from mii_azure.model.packaged import packaged_model
from tests.scoring.generation.schemas import schemas
from tests.tiny_adapters import tiny_adapter

_TASK, _ROWS, _ADAPTERS = "text-generation", 64, 32


#: Folder of the bundle that answers, and parameters of requests that are sent at once, by what they are called.
Kinds = dict[str, tuple[Path, list[dict[str, Any]]]]


def bound() -> list[dict[str, Any]]:
    """Parameters of requests of which every other one is bound to a schema, of an array that does not end."""
    asked = [each for each in schemas() if each.get("type") == "object" and "$ref" not in json.dumps(each)]
    arrays = [{"type": "array", "items": asked[number], "minItems": 99} for number in range(_ROWS // 2)]
    return [own for array in arrays for own in ({"guided_json": array}, {})]


def adapted(base: Path, folder: Path) -> dict[str, Path]:
    """Adapters of rank 8 on q and v, of random numbers, by name."""
    names = [f"a{number}" for number in range(_ADAPTERS)]
    targets = ("q_proj", "v_proj")
    return {
        name: tiny_adapter(base, _TASK, folder / name, targets, 8, seed, lora_alpha=0.05)
        for seed, name in enumerate(names)
    }


def ask(port: int, asked: Sequence[dict[str, Any]], tokens: int) -> float:
    """Seconds in which all of these requests, sent at once, are answered."""

    def one(own: dict[str, Any]) -> None:
        body = {"inputs": "Some data:", "parameters": {"max_new_tokens": tokens, "ignore_eos": True, **own}}
        connection = HTTPConnection("127.0.0.1", port, timeout=600)
        connection.request("POST", "/score", json.dumps(body), {"Content-Type": "application/json"})
        reply = connection.getresponse()
        answer = reply.read()
        if reply.status != 200:
            raise RuntimeError(answer.decode())

    began = time.perf_counter()
    with ThreadPoolExecutor(len(asked)) as pool:
        list(pool.map(one, asked))
    return time.perf_counter() - began


def compare(kinds: Kinds, rounds: int, tokens: int) -> list[dict[str, Any]]:
    """A row for each kind of requests, which take turns."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in kinds}
    with ExitStack() as stack:
        servers = {folder: stack.enter_context(served(folder, [])) for folder in {own for own, _ in kinds.values()}}
        for turn in range(rounds + 1):
            for name, (folder, asked) in kinds.items():
                pid, port = servers[folder]
                before = processor_s(pid)
                seconds, count = ask(port, asked, tokens), len(asked) * tokens
                if turn:  # the first compiles grammars, and warms
                    found[name].append((1e3 * (processor_s(pid) - before) / count, count / seconds))
    told = []
    for name, pairs in found.items():
        ms, speed = (list(each) for each in zip(*pairs, strict=True))
        told.append({"requests": name, "processor_ms": median(ms), "tokens/s": median(speed), "all": pairs})
    for row in told:
        row["more_percent"] = 100 * (row["processor_ms"] / told[0]["processor_ms"] - 1)
        row["slower_percent"] = 100 * (1 - row["tokens/s"] / told[0]["tokens/s"])
        print(json.dumps({name: value for name, value in row.items() if name != "all"}), flush=True)
    return told


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    base = packaged_model("smollm2")
    common: dict[str, Any] = {"task": _TASK, "model": str(base), "server": "http", "instance_type": "Standard_F8s_v2"}
    with TemporaryDirectory() as temporary:
        alone, many = Path(temporary) / "alone", Path(temporary) / "many"
        generate(**common, name="alone", output=alone / "bundle", max_concurrency=_ROWS)
        adapters = adapted(base, Path(temporary) / "adapters")
        told = [f"{name}={path}" for name, path in adapters.items()]
        generate(**common, name="many", output=many / "bundle", max_concurrency=_ROWS, adapters=told)
        free: list[dict[str, Any]] = [{}] * _ROWS
        shared = [{"adapter": name} for name in adapters] * (_ROWS // _ADAPTERS)
        grammars = compare({"free": (alone, free), "half bound": (alone, bound())}, asked.rounds, asked.tokens)
        kinds = {"base alone": (alone, free), "base beside 32 adapters": (many, free), "32 adapters": (many, shared)}
        shares = compare(kinds, asked.rounds, asked.tokens)
    for name, rows in (("http_calls", grammars), ("http_adapters", shares)):
        write(name, {**provenance(), "model": "SmolLM2-135M", "tokens": asked.tokens, "rows": rows}, asked.out)


if __name__ == "__main__":
    main()
