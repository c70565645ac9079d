"""What grammars cost: the time of a step of 64 rows, of which half are bound to a JSON schema, beside one of free rows.

    python -m benchmarks.grammars FOLDER [--rows 64] [--tokens 40]
    python -m benchmarks.grammars --made [--peak 16] [--sampled] [--out FOLDER]

FOLDER holds a decoder, such as the packaged SmolLM2; `--made` draws one of 0.6B and 151,936 tokens, whose logits are
multiplied by `--peak`, as a trained model's have peaks. Both kinds of rounds take turns; the medians of their steps are
compared: on a CPU in processor time of all threads, which other processes change least, on a GPU in time. `--schemas`
instead asks a tiny model for the 500 schemas of the tests, and says how many answers keep them.
"""

import json
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

import torch

from benchmarks.command_line import Parser
from benchmarks.common import provenance, write
from scoring.config import Deployment, Limits
from scoring.decoder.decoder import Decoder
from scoring.generation.scheduler import Scheduler
from scoring.model.loader import load
from scoring.schema.registry import task_class
from tests.scoring.generation.schemas import schemas

_TASK = "text-generation"
SAMPLINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "top-k 50, top-p 0.9": {"temperature": 0.7, "top_p": 0.9, "seed": 1},
    "top-p 0.9": {"temperature": 0.7, "top_k": -1, "top_p": 0.9, "seed": 1},
}


def steps(
    task: Any, decoder: Decoder, bound: int, rows: int, tokens: int, sampling: Mapping[str, Any] = MappingProxyType({})
) -> list[float]:
    """Seconds of each step in which all rows decode, `bound` of them by a grammar."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    scheduler = Scheduler(task, decoder, decoder.capacity, reuse=False)
    asked = [each for each in schemas() if each.get("type") == "object" and "$ref" not in json.dumps(each)]
    done: list[Any] = []
    for number in range(rows):
        own = {"guided_json": {"type": "array", "items": asked[number % len(asked)], "minItems": 99}}
        parameters = {"max_new_tokens": tokens + 8, "ignore_eos": True, **sampling} | (own if number < bound else {})
        [row] = task.encode("Some data:", task.schema.parse_parameters(parameters), 0)
        scheduler.add(row, done.append)
    while scheduler._prefilling:
        scheduler.step()
    found = []
    for _ in range(tokens):
        began = clock()
        scheduler.step()
        found.append(clock() - began)
    while scheduler.active:
        scheduler.step()
    failed = [each for each in done if isinstance(each, Exception)]
    if failed:
        raise failed[0]
    return found


def make(folder: Path, peak: float) -> None:
    """A folder with a Qwen3 of 0.6B of random weights and a byte-level tokenizer of made-up words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    from benchmarks.decoder_shapes import CASES

    config = CASES["qwen3-0.6b"].config | {"tie_word_embeddings": False}
    if not torch.cuda.is_available():
        config |= {"num_hidden_layers": 2}
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3", **config), dtype=torch.bfloat16)
    model.lm_head.weight.data *= peak
    model.cpu().save_pretrained(folder)
    characters, random = sorted(pre_tokenizers.ByteLevel.alphabet()), Random(0)
    words = {"".join(random.choices("etaoinshrdlucmfwypvbgkjqxz ", k=random.randint(2, 7))) for _ in range(400_000)}
    space = {word.replace(" ", "\u0120") for word in words}
    ids = {word: at for at, word in enumerate([*characters, *sorted(space)[: config["vocab_size"] - 257], "<|end|>"])}
    backend = Tokenizer(models.BPE(vocab=ids, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|end|>", pad_token="<|end|>"  # a text's end
    ).save_pretrained(folder)  # fmt: skip


def measure(folder: Path, rows: int, tokens: int, sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Median milliseconds of a step, free and half bound, and what the latter takes more."""
    dtype = "bfloat16" if torch.cuda.is_available() else "float32"
    deployment = Deployment("grammars", _TASK, dtype=dtype, limits=Limits(max_batch_tokens=2**20))
    loaded = load(deployment, folder)
    task = task_class(_TASK)(loaded, _TASK)
    decoder = Decoder(loaded.model, rows, min(512, loaded.context_length))
    loaded.runtime.decoder = decoder
    decoder.warm_up()
    steps(task, decoder, rows // 2, rows, 2, sampling)
    free: list[float] = []
    half: list[float] = []
    for _ in range(3):
        free += steps(task, decoder, 0, rows, tokens, sampling)
        half += steps(task, decoder, rows // 2, rows, tokens, sampling)
    one, other = statistics.median(free), statistics.median(half)
    told = {"free_ms": one * 1e3, "half_bound_ms": other * 1e3, "more_percent": 100 * (other / one - 1)}
    return {"dtype": dtype, **told}


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
    parser = Parser(__doc__)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--schemas", action="store_true")
    parser.add_argument("--made", action="store_true")
    parser.add_argument("--peak", type=float, default=1.0)
    parser.add_argument("--sampled", action="store_true", help="measure sampled rows after greedy ones")
    asked = parser.parse_args()
    if asked.schemas:
        print(json.dumps(kept()))
        return
    rows: list[dict[str, Any]] = []
    with TemporaryDirectory() as made:
        if asked.made:
            make(Path(made), asked.peak)
        folder = Path(made) if asked.made else asked.folder
        for name, sampling in SAMPLINGS.items() if asked.sampled else [("greedy", {})]:
            rows.append({"peak": asked.peak, "sampling": name} | measure(folder, asked.rows, asked.tokens, sampling))
            print(json.dumps(rows[-1]), flush=True)
            write("grammars", {**provenance(), "slots": asked.rows, "rows": rows}, asked.out)


if __name__ == "__main__":
    main()
