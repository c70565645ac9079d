"""Where streams wait beside a long prompt: what the engine and the front ends did in each wait, over real HTTP.

    python -m benchmarks.waits [--only NAME] [--prompts N ...] [--front-ends N] [--instant] [--out FOLDER]

Serves a shape of `benchmarks.over_http`, or with `--instant` a decoder that computes nothing in the time that a GPU
would take, on any machine. The longest prompt comes with 64 short streams after it, then with streams that run already,
and both once more; then each prompt alone. Of each wait of more than 50 ms it tells the steps, late event loops,
collections, compiled kernels and held interpreters within it, and of each prompt alone the times of its way, beside
plain transformers' forward. Prints a summary and writes waits.json; waits-traces.json.gz has all that was noted.
"""

import argparse
import asyncio
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from benchmarks import step_trace
from benchmarks.command_line import RESULTS
from benchmarks.common import provenance, write
from benchmarks.http_clients import ANSWER_S, NEW, ask, bodies, body, prompt
from benchmarks.over_http import SHAPES, Shape, build

BAR_MS = 50.0
SHORT = 64  # streams beside a long prompt
START_S = 280.0
RUNNING = 640  # tokens of streams that run already: more than come before the prompt is tokenised
_TOLD_S = 0.008  # of a span that is told of a wait
_MOST_TOLD = 3

_SDPA = """
import json, sys, torch
from benchmarks.long_prompts import make, sdpa_ms
config, lengths = json.loads(sys.argv[1])
with torch.inference_mode():
    model = make(config)
    print(json.dumps({n: sdpa_ms(model, n, 2 if n < 30_000 else 1) for n in lengths}))
"""

Stamps = list[float]


@contextmanager
def served(folder: Path, options: argparse.Namespace) -> Iterator[int]:
    """Port of a traced server of the folder's bundle, ready; its traces are there when it has ended."""
    command = [sys.executable, "-m", "benchmarks.step_trace", str(folder / "bundle"), str(folder)]
    command += ["--instant"] if options.instant else []
    command += [] if options.front_ends is None else ["--front-ends", str(options.front_ends)]
    with (options.out / "waits-serve.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            end = time.monotonic() + START_S
            while '"ready"' not in (told := (folder / "ready").read_text() if (folder / "ready").exists() else ""):
                if server.poll() is not None or time.monotonic() > end:
                    raise SystemExit((options.out / "waits-serve.log").read_text()[-4000:])
                time.sleep(0.2)
            yield json.loads(told)["http_port"]
        finally:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGTERM)
                server.wait(60)


async def _after_it(port: int, long: bytes, short: Sequence[bytes]) -> tuple[Stamps, list[Stamps], float]:
    """A long request, and short ones that come when it has been sent: their times, and when it was sent."""
    first = asyncio.create_task(ask(port, long))
    began = time.perf_counter()
    await asyncio.sleep(0.2)
    others = await asyncio.gather(*(ask(port, request) for request in short))
    return (await first)[1], [stamps for good, stamps in others if good], began


async def _before_it(port: int, long: bytes, short: Sequence[bytes]) -> tuple[Stamps, list[Stamps], float]:
    """Streams that run, and a long request that comes when all have begun."""
    others = asyncio.gather(*(ask(port, request) for request in short))
    await asyncio.sleep(0.8)
    began = time.perf_counter()
    found = await ask(port, long)
    return found[1], [stamps for good, stamps in await others if good], began


def beside(port: int, way: Any, tokens: int, seed: int) -> dict[str, Any]:
    """One load, with the waits of its short streams."""
    words = random.Random(seed)
    sent = body(prompt(tokens, words), NEW, "stream")
    running = [body(prompt(100, words), RUNNING, "stream") for _ in range(SHORT)]
    others = bodies(SHORT, "stream", seed) if way is _after_it else running

    async def ask_all() -> Any:
        step_trace.watch_loop()
        return await asyncio.wait_for(way(port, sent, others), ANSWER_S)

    long, short, began = asyncio.run(ask_all())
    waits = [(a, b) for stamps in short for a, b in pairwise(stamps[:-2])]
    ms = [1e3 * (b - a) for a, b in waits]
    cuts = quantiles(ms, n=1000)
    return {
        "way": way.__name__.strip("_"), "long tokens": tokens, "short answered": len(short), "began": began,
        "long first ms": 1e3 * (long[0] - began), "long ms": 1e3 * (long[-1] - began),
        "next p50": median(ms), "next p99": cuts[989], "next p99.9": cuts[998], "next most": max(ms),
        "over the bar": sum(wait > BAR_MS for wait in ms),
        "waits": sorted(pair for pair in waits if 1e3 * (pair[1] - pair[0]) > BAR_MS),
    }  # fmt: skip


def alone(port: int, tokens: int, seed: int) -> dict[str, Any]:
    """A prompt of so many tokens that is answered with one, alone."""
    request = body(prompt(tokens, random.Random(seed)), 1, "whole")
    began = time.perf_counter()
    good, stamps = asyncio.run(asyncio.wait_for(ask(port, request), ANSWER_S))
    return {"tokens": tokens, "answered": good, "began": began, "ended": stamps[-1], "ms": 1e3 * (stamps[-1] - began)}


def way_of(found: dict[str, Any], traces: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Milliseconds from a request's sending to each point of its way."""
    every = [span for each in traces for span in each["spans"]]
    own = sorted(
        (s for s in every if s["begin"] >= found["began"] and s["end"] <= found["ended"]), key=lambda s: s["begin"]
    )
    points: dict[str, float] = {}
    for span in own:
        name = span["name"]
        points.setdefault(f"{name} begins", span["begin"])
        points[f"{name} ends"] = span["end"]
        if "device end" in span and span["tokens"]:
            points["device ends"] = span["device end"]
    times = {name: 1e3 * (at - found["began"]) for name, at in points.items()}
    return dict(sorted(times.items(), key=lambda pair: pair[1]))


def explained(found: dict[str, Any], traces: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The longest waits of a load, those that overlap taken together, each with what lasted within it."""
    groups: list[list[Any]] = []
    for begin, end in found["waits"]:
        if groups and begin < groups[-1][1]:
            groups[-1] = [groups[-1][0], max(end, groups[-1][1]), groups[-1][2] + 1]
        else:
            groups.append([begin, end, 1])
    told = []
    for begin, end, streams in sorted(groups, key=lambda group: group[0] - group[1])[:_MOST_TOLD]:
        within = [
            {**span, "kind": each["kind"], "pid": each["pid"], "ms": 1e3 * (span["end"] - span["begin"])}
            for each in traces for span in each["spans"]
            if span["end"] > begin and span["begin"] < end and span["end"] - span["begin"] > _TOLD_S
        ]  # fmt: skip
        for span in within:
            span["at ms"] = 1e3 * (span.pop("begin") - begin)
            span["device end ms"] = 1e3 * (span.pop("device end") - begin) if "device end" in span else None
            span.pop("end")
        within.sort(key=lambda span: span["at ms"])
        told.append({"at ms": 1e3 * (begin - found["began"]), "ms": 1e3 * (end - begin), "waits": streams,
                     "within": within[:8]})  # fmt: skip
    return told


def sdpa(shape: Any, lengths: Sequence[int]) -> dict[str, float]:
    """Milliseconds of plain transformers' forward of prompts, in a process of its own, whose memory is free after."""
    told = subprocess.run(
        [sys.executable, "-c", _SDPA, json.dumps([shape.config, list(lengths)])],
        check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    found: dict[str, float] = json.loads(told.stdout.splitlines()[-1])
    return found


def _thin(shape: Shape) -> Shape:
    """The shape with next to no weights, its vocabulary and context kept."""
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return replace(shape, dtype="float32", config=shape.config | sizes | {"num_key_value_heads": 2, "head_dim": 8})


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All loads of a shape, on one server."""
    shape = SHAPES[options.only]
    plain = sdpa(shape, options.prompts) if options.sdpa else {}
    print(json.dumps({"sdpa": plain}), flush=True)
    build(_thin(shape) if options.instant else shape, folder, options.instance_type, options.flags)
    with served(folder, options) as port:
        loads: list[dict[str, Any]] = []
        single: list[dict[str, Any]] = []
        for way in (*(_after_it, _before_it) * options.rounds, *options.prompts * 2):
            if time.monotonic() > options.until:
                break
            if callable(way):
                loads.append(beside(port, way, options.prompts[-1], len(loads)))
                print(json.dumps({k: v for k, v in loads[-1].items() if k != "waits"}), flush=True)
            else:
                single.append(alone(port, way, way + len(single)))
                print(json.dumps(single[-1]), flush=True)
    traces = [json.loads(path.read_text()) for path in folder.glob("trace-*.json")]
    traces.append({"kind": "clients", "pid": os.getpid(), "spans": step_trace.spans})
    with gzip.open(options.out / "waits-traces.json.gz", "wt") as packed:
        json.dump({"loads": loads, "alone": single, "traces": traces}, packed)
    for found in loads:
        found["explained"] = explained(found, traces)
        del found["waits"]
    for one in single:
        one["way"] = way_of(one, traces)
        if str(one["tokens"]) in plain:
            one["over sdpa"] = one["ms"] / plain[str(one["tokens"])]
    return {"loads": loads, "alone": single, "sdpa ms": plain, "front ends": len(traces) - 2}


def main() -> None:
    """Measure one shape, and write waits.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="llama-3.2-3b", choices=SHAPES)
    parser.add_argument("--prompts", nargs="+", type=int, default=[8192, 32_768, 100_000])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=3600.0, help="after which no load begins any more")
    parser.add_argument("--front-ends", type=int, help="what serve decides when absent")
    parser.add_argument("--instant", action="store_true", help="a decoder that computes nothing, on any machine")
    parser.add_argument("--sdpa", action="store_true", help="plain transformers' forward too; needs a GPU")
    parser.add_argument("--instance-type", default="Standard_NC40ads_H100_v5")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="of generate; the last option")
    options = parser.parse_args()
    options.until = time.monotonic() + options.seconds
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        found = measure(options, Path(name))
    write("waits", provenance() | {"model": options.only, "flags": options.flags} | found, options.out)


if __name__ == "__main__":
    main()
