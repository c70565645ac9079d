"""What the scheduler itself takes of the inference thread: to admit a burst of requests, and for each token of a step.

`python -m benchmarks.admission [--clients N] [--before FILE]` prints microseconds of processor time, of the median
round, and writes admission.json, with an earlier revision's in FILE beside it. The decoder costs nothing, and its cache
keeps the prompts of earlier bursts: in a pool with blocks for every slot at full length, and in one that is bounded;
prompts begin with one system prompt, or share nothing.
"""

import json
import random
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.command_line import Parser
from benchmarks.common import provenance, table, write
from benchmarks.host_side import InstantDecoder

NEW, ROUNDS, EARLIER = 128, 3, 3
CONTEXTS = {"for all": 512, "bounded": 40_960}
HEADS = {"one system prompt": 40, "nothing": 0}  # tokens that all prompts begin with
_SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}


def task_of(folder: Path) -> Any:
    """The task of a tiny model that takes long prompts."""
    from benchmarks.throughput import TASK, write_folder
    from scoring.config import Deployment
    from scoring.model.loader import load_with
    from scoring.schema.registry import task_class

    config = _SIZES | {"vocab_size": 3000, "max_position_embeddings": 40_960}
    write_folder("LlamaForCausalLM", config, torch.float32, "cpu", folder)
    loaded, _ = load_with([], Deployment("admission", TASK, dtype="float32"), folder)
    return task_class(TASK)(loaded, TASK)


def rows_of(task: Any, count: int, head: int, source: random.Random) -> list[Any]:
    """Rows of one burst."""
    parameters = task.schema.parse_parameters({"max_new_tokens": NEW, "ignore_eos": True})
    found = []
    for _ in range(count):
        [row] = task.encode("w00001", parameters, 0)
        ids = [*range(100, 100 + head), *(source.randrange(100, 3000) for _ in range(source.randint(16, 256)))]
        row.features["input_ids"] = ids
        found.append(row)
    return found


def measure(task: Any, clients: int, context: int, head: int) -> dict[str, float]:
    """Microseconds of one row's admission and of one token, in the median of rounds after earlier ones."""
    from scoring.generation.scheduler import Scheduler

    decoder: Any = InstantDecoder(clients, range(1000, 3000), 0.0, context)
    scheduler, source = Scheduler(task, decoder, decoder.capacity), random.Random(0)
    admitting, stepping = list[float](), list[float]()
    for _ in range(EARLIER + ROUNDS):
        rows = rows_of(task, clients, head, source)
        began = time.thread_time()
        for row in rows:
            if not scheduler.fits(row):
                raise RuntimeError("the pool has no room for a burst")
            scheduler.add(row, lambda _: None)
        admitted = time.thread_time()
        while scheduler.active:
            scheduler.step()
        admitting.append(1e6 * (admitted - began) / clients)
        stepping.append(1e6 * (time.thread_time() - admitted) / (clients * NEW))
    return {"us/row admitted": median(admitting[EARLIER:]), "us/token": median(stepping[EARLIER:])}


def main() -> None:
    """Measure every pool with every kind of prompts; print the table and write admission.json."""
    parser = Parser(__doc__)
    parser.add_argument("--clients", type=int, default=256)
    parser.add_argument("--before", type=Path, metavar="FILE", help="admission.json of an earlier revision")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        task = task_of(Path(folder))
    rows = [
        {"pool": pool, "prompts share": shared, **measure(task, chosen.clients, context, head)}
        for pool, context in CONTEXTS.items()
        for shared, head in HEADS.items()
    ]
    print(table(tuple(rows[0]), rows))
    result = provenance() | {"clients": chosen.clients, "new": NEW, "rows": rows}
    if chosen.before:
        earlier = json.loads(chosen.before.read_text(encoding="utf-8"))
        result["before"] = {name: earlier[name] for name in ("revision", "rows")}
    write("admission", result, chosen.out)


if __name__ == "__main__":
    main()
