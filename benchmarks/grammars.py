"""What grammars cost: the time of a step of 64 rows, of which half are bound to a JSON schema, beside one of free rows.

    python -m benchmarks.grammars FOLDER [--rows 64] [--tokens 40]

FOLDER holds a decoder, such as the packaged SmolLM2. Both kinds of rounds take turns; the medians of their steps are
compared, in processor time of all threads, which other processes change least. `--schemas` instead asks a tiny model
for the 500 schemas of the tests, and says how many answers keep them.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from scoring.config import Deployment, Limits
from scoring.decoder.decoder import Decoder
from scoring.generation.scheduler import Scheduler
from scoring.model.loader import load
from scoring.schema.registry import task_class
from tests.scoring.generation.schemas import schemas

_TASK = "text-generation"


def steps(task: Any, decoder: Decoder, bound: int, rows: int, tokens: int) -> list[float]:
    """Processor seconds of each step in which all rows decode, `bound` of them by a grammar."""
    scheduler = Scheduler(task, decoder, decoder.capacity, reuse=False)
    asked = [each for each in schemas() if each.get("type") == "object" and "$ref" not in json.dumps(each)]
    done: list[Any] = []
    for number in range(rows):
        own = {"guided_json": {"type": "array", "items": asked[number % len(asked)], "minItems": 99}}
        parameters = {"max_new_tokens": tokens + 8, "ignore_eos": True} | (own if number < bound else {})
        [row] = task.encode("Some data:", task.schema.parse_parameters(parameters), 0)
        scheduler.add(row, done.append)
    while scheduler._prefilling:
        scheduler.step()
    found = []
    for _ in range(tokens):
        began = time.process_time()
        scheduler.step()
        found.append(time.process_time() - began)
    while scheduler.active:
        scheduler.step()
    failed = [each for each in done if isinstance(each, Exception)]
    if failed:
        raise failed[0]
    return found


def measure(folder: Path, rows: int, tokens: int) -> dict[str, float]:
    """Median milliseconds of processor time of a step, free and half bound, and what the latter takes more."""
    deployment = Deployment("grammars", _TASK, limits=Limits(max_batch_tokens=2**20))
    loaded = load(deployment, folder)
    task = task_class(_TASK)(loaded, _TASK)
    decoder = Decoder(loaded.model, rows, min(512, loaded.context_length))
    loaded.runtime.decoder = decoder
    steps(task, decoder, rows // 2, rows, 2)
    free: list[float] = []
    half: list[float] = []
    for _ in range(3):
        free += steps(task, decoder, 0, rows, tokens)
        half += steps(task, decoder, rows // 2, rows, tokens)
    one, other = statistics.median(free), statistics.median(half)
    return {"free_ms": one * 1e3, "half_bound_ms": other * 1e3, "more_percent": 100 * (other / one - 1)}


def kept() -> dict[str, int]:
    """Of the 500 schemas, those that answers of a tiny model keep."""
    from tests.scoring.conftest import Served
    from tests.scoring.generation.test_grammars import keeps_schemas, roomy
    from tests.tiny_models import tiny_model

    with TemporaryDirectory() as folder:
        tiny_model("qwen2", _TASK, Path(folder))
        model = roomy(Served(Path(folder), _TASK, Limits(queue_size=1024, max_batch_tokens=2**20)))
        model.service.loaded.runtime.decoder = Decoder(model.service.loaded.model, 64, 2048)
        keeps_schemas(model, schemas())
    return {"schemas": len(schemas()), "kept": len(schemas())}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--schemas", action="store_true")
    asked = parser.parse_args()
    print(json.dumps(kept() if asked.schemas else measure(asked.folder, asked.rows, asked.tokens)))


if __name__ == "__main__":
    main()
