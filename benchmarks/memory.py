"""What a served model takes of a GPU against what `plan` said it would; random weights of the real shapes.

`python -m benchmarks.memory [--only NAME ...] [--out FOLDER]` prints the table and writes memory.json; `--plan` instead
plans the rows of the results again, which needs no GPU. Each row has a process of its own: a folder is written, planned
for an instance type with this GPU, and served with the passes and limits of that plan; then it is asked for as much as
it may ever be asked for at once: full batches, or every slot at full length. Measured is what the driver says is taken,
the CUDA context included, at its highest while the requests ran.
"""

import gc
import json
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.command_line import RESULTS, Parser
from benchmarks.common import provenance, table, write
from benchmarks.decoder_shapes import CASES
from benchmarks.encoder_service import tokenizer
from benchmarks.encoders import LARGE

INSTANCE_TYPE = "Standard_NC40ads_H100_v5"
BAR = 0.10
COLUMNS = ("model", "slots", "batch tokens", "planned GB", "measured GB", "planned/measured", "weights GB", "start GB")


class Work(NamedTuple):
    """One row: an architecture of transformers, its config, and a task."""

    architecture: str
    config: dict[str, Any]
    task: str


WORK = {
    "bert-large": Work("BertForTokenClassification", LARGE, "token-classification"),
    "bert-base": Work("BertForSequenceClassification", {}, "text-classification"),
    "gpt2-124m": Work("GPT2LMHeadModel", {}, "text-generation"),
    "bloom-560m": Work("BloomForCausalLM", CASES["bloom-560m"].config, "text-generation"),
    "llama-1.1b": Work("LlamaForCausalLM", CASES["llama-1.1b"].config, "text-generation"),
    "opt-1.3b": Work("OPTForCausalLM", CASES["opt-1.3b"].config, "text-generation"),
    "llama-6.7b": Work("LlamaForCausalLM", CASES["llama-6.7b"].config, "text-generation"),
}


def write_folder(work: Work, folder: Path) -> None:
    """A model folder as a hub repository has it, in fp16, drawn on the GPU."""
    import transformers

    cls = getattr(transformers, work.architecture)
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = cls(cls.config_class(**work.config)).half()
    model.cpu().save_pretrained(folder)
    words = tokenizer(model.config.vocab_size, 0, getattr(model.config, "max_position_embeddings", None) or 2048)
    words.save_pretrained(folder)
    del model
    gc.collect()
    torch.cuda.empty_cache()


def sparse_folder(work: Work, folder: Path) -> None:
    """The same folder for planning: config and weights' headers are real, the weights themselves a hole in the file."""
    import transformers

    cls = getattr(transformers, work.architecture)
    with torch.device("meta"):
        model = cls(cls.config_class(**work.config)).half()
    model.config.architectures = [work.architecture]
    model.config.save_pretrained(folder)
    header, end = {}, 0
    for name, parameter in model.named_parameters():
        size = parameter.numel() * parameter.element_size()
        header[name] = {"dtype": "F16", "shape": list(parameter.shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


def replan(row: Mapping[str, Any]) -> dict[str, Any]:
    """A measured row with what `plan` says today of that model and a cache as large as the one that was measured.

    The size of a cache is chosen, not predicted: what is held to the measurement is everything beside it.
    """
    from mii_azure.planning.planner import plan

    work = WORK[row["model"]]
    with tempfile.TemporaryDirectory() as place:
        sparse_folder(work, Path(place))
        made = plan(work.task, place, INSTANCE_TYPE)
    memory = made.memory
    if made.kv_cache_tokens:
        cached = row.get("cache tokens") or row["slots"] * made.context_length
        memory = memory.model_copy(update={"kv_cache": memory.kv_cache // made.kv_cache_tokens * cached})
    needed = memory.needed / 1e9
    return {
        **row,
        "planned": memory.model_dump(),
        "planned GB": needed,
        "planned/measured": needed / row["measured GB"],
    }


class Watch:
    """The most that was taken of the GPU since `reset`, looked at every two milliseconds."""

    def __init__(self) -> None:
        self.most = 0
        self._on = True
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while self._on:
            self.most = max(self.most, taken())
            time.sleep(0.002)

    def stop(self) -> int:
        self._on = False
        self._thread.join()
        return self.most


def taken() -> int:
    """Bytes of the GPU that are not free."""
    free, total = torch.cuda.mem_get_info()
    return total - free


def bodies(task: str, limits: Any, context: int) -> list[str]:
    """Requests that together fill the largest batch, or every slot to its end."""
    if task != "text-generation":
        rows = max(1, min(limits.max_batch_size, limits.max_batch_tokens // context))
        return [json.dumps({"inputs": ["w00012 " * (context - 4)]})] * (2 * rows)
    answer = 32
    parameters = {"max_new_tokens": answer, "ignore_eos": True}
    return [json.dumps({"inputs": "w00012 " * (context - answer - 4), "parameters": parameters})] * limits.slots


def measure(name: str) -> dict[str, Any]:
    """One row."""
    from mii_azure.planning.planner import plan
    from scoring.api.service import Service
    from scoring.config import Deployment, Limits
    from scoring.model.loader import load_with
    from scoring.passes.registry import catalogue
    from scoring.schema.registry import task_class

    work = WORK[name]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / name
        write_folder(work, folder)
        made = plan(work.task, str(folder), INSTANCE_TYPE)
        limits = Limits(
            max_batch_tokens=made.max_batch_tokens,
            max_batch_size=made.max_batch_size,
            slots=made.slots,
            kv_cache_tokens=made.kv_cache_tokens,
            queue_size=1024,
            max_payload_bytes=64 << 20,
            request_timeout_s=300.0,
            context_length=made.context_length,
        )
        deployment = Deployment(name, work.task, dtype=made.dtype, limits=limits)
        before = max(0, taken() - torch.cuda.memory_reserved())  # this process's context, and others'
        watch = Watch()
        loaded, chosen = load_with(catalogue(deployment), deployment, folder)
        service = Service(deployment, loaded, task_class(work.task)(loaded, work.task), {})
        service.start(chosen)
        start = watch.stop()
        watch = Watch()
        requests = bodies(work.task, limits, loaded.context_length)
        with ThreadPoolExecutor(len(requests)) as pool:
            statuses = [reply.status for reply in pool.map(service.answer, requests)]
        most = watch.stop()
    if set(statuses) != {200}:
        raise RuntimeError(f"{name}: the service answered {sorted(set(statuses))}")
    return {
        "model": name,
        "slots": made.slots,
        "cache tokens": made.kv_cache_tokens,
        "batch tokens": made.max_batch_tokens,
        "requests": len(requests),
        "planned": made.memory.model_dump(),
        "planned GB": made.memory.needed / 1e9,
        "measured GB": most / 1e9,
        "start GB": start / 1e9,
        "context GB": before / 1e9,
        "allocated GB": torch.cuda.max_memory_allocated() / 1e9,
        "reserved GB": torch.cuda.memory_reserved() / 1e9,
        "weights GB": made.memory.weights / 1e9,
        "planned/measured": made.memory.needed / most,
        "passes": service.metadata()["passes"],
    }


def main() -> None:
    """Each row in a process of its own."""
    if "--child" in sys.argv:
        print(json.dumps(measure(sys.argv[sys.argv.index("--child") + 1])), flush=True)
        return
    if "--plan" in sys.argv:
        result = json.loads((RESULTS / "memory.json").read_text(encoding="utf-8"))
        _report(result | {"rows": [replan(row) for row in result["rows"]]}, RESULTS)
        return
    parser = Parser(__doc__, gpus=1)
    parser.add_argument("--only", nargs="+", choices=WORK, default=[*WORK], metavar="NAME")
    chosen = parser.parse_args()
    rows = []
    revised = provenance()
    for name in chosen.only:
        command = [sys.executable, "-m", "benchmarks.memory", "--child", name]
        done = subprocess.run(command, capture_output=True, text=True)
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        print(lines[-1] if lines else f"{name} failed: {done.stderr[-2000:]}", flush=True)
        found = json.loads(lines[-1]) if lines else {"model": name, "failed": done.stderr[-500:]}
        rows.append(found | {"revision": revised["revision"]})
    _report(revised | {"instance_type": INSTANCE_TYPE, "rows": rows}, chosen.out)


def _report(result: dict[str, Any], folder: Path) -> None:
    rows = result["rows"]
    bars = {row["model"]: abs(row["planned/measured"] - 1) <= BAR for row in rows if "planned/measured" in row}
    write("memory", result | {"within": bars}, folder)
    print(table(COLUMNS, rows))


if __name__ == "__main__":
    main()
