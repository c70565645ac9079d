"""Times a bundle in this process, on a word: its score.run and the parts of it; `benchmarks.encoder_ways` starts it.

It imports nothing of the checkout but the runner: the bundle's own scoring package is what is measured.
"""

import cProfile
import io
import json
import pstats
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

LENGTH = 128


def body() -> str:
    """A request of LENGTH tokens, special ones included."""
    words = [f"w{(7919 * number) % 20000:05d}" for number in range(LENGTH - 2)]
    return json.dumps({"inputs": " ".join(words)})


def timed(call: Callable[[], Any], calls: int) -> dict[str, float]:
    """Milliseconds of a call, one at a time."""
    for _ in range(20):
        call()
    times = []
    for _ in range(calls):
        began = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - began))
    return {"p50": median(times), "p99": quantiles(times, n=100)[-1]}


def inside(bundle: str, calls: int) -> None:
    """Print times of score.run, of its parts, and a profile of Python's share, as JSON."""
    from local_runner.bundle import manifest

    manifest.enter(Path(bundle))
    from local_runner.bundle.script import ScoreScript

    script = ScoreScript(Path(bundle))
    script.init()
    raw = body()
    print("ready", flush=True)
    sys.stdin.readline()
    if (reply := script.run(raw)).status != 200:
        raise SystemExit(f"the bundle answered {reply.status}: {reply.read()!r}")
    found: dict[str, Any] = {"run": timed(lambda: script.run(raw).read(), calls)}
    service = script.entry._service
    found["parts"] = parts(service, raw, calls)
    profile = cProfile.Profile()
    profile.enable()
    for _ in range(calls):
        script.run(raw)
    profile.disable()
    told = io.StringIO()
    pstats.Stats(profile, stream=told).strip_dirs().sort_stats("tottime").print_stats(25)
    found["profile"] = told.getvalue().splitlines()
    found["passes"] = json.loads(json.dumps(service.metadata().get("passes"), default=str))
    sys.stdout.write(json.dumps(found) + "\n")


def parts(service: Any, raw: str, calls: int) -> dict[str, float]:
    """Median milliseconds of each part of an answer, on the threads that do it."""
    from scoring.api.dialects import parse
    from scoring.engine.row import Row
    from scoring.strict_json.body import read_json

    task = service.task
    call = parse(read_json(raw), task.schema)
    rows = task.encode(call.inputs[0], call.parameters, 0)
    forward: list[float] = []
    plain = task.forward

    def watched(given: list[Row], *rest: Any) -> Any:
        began = time.perf_counter()
        found = plain(given, *rest)
        forward.append(1e3 * (time.perf_counter() - began))
        return found

    task.forward = watched
    outputs = service.engine.submit(rows).future.result(30)
    found = {
        "read and check": timed(lambda: parse(read_json(raw), task.schema), calls)["p50"],
        "encode": timed(lambda: task.encode(call.inputs[0], call.parameters, 0), calls)["p50"],
        "queue and model": timed(lambda: service.engine.submit(rows).future.result(30), calls)["p50"],
        "decode": timed(lambda: task.decode(call.inputs[0], call.parameters, rows, outputs), calls)["p50"],
    }
    del task.forward
    return {**found, "model": median(forward)}


if __name__ == "__main__":
    inside(sys.argv[1], int(sys.argv[2]))
