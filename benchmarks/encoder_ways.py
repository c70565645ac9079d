"""What an answer costs over its model at batch 1: in process, by gRPC and by /score, through generate and serve.

    python -m benchmarks.encoder_ways [--shape NAME] [--calls N] [--word FILE] [--out FOLDER]

A folder with random weights of the real shape becomes a bundle by `mii-azure generate`; a text of 128 tokens is asked
one at a time. "model" is the service's own forward of that row: padding, copies, graph and the wait for its answer.
"""

import http.client
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import encoder_inside
from benchmarks.command_line import Parser
from benchmarks.common import provenance, table, write
from benchmarks.over_http import served

BARS = {"over the model": 0.5, "gRPC over in process": 0.7}  # milliseconds
_ENCODER = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
#: Task, architecture and config; "tiny" is for a machine without a GPU.
SHAPES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "xlm-roberta-large": (
        "text-classification",
        "XLMRobertaForSequenceClassification",
        _ENCODER
        | {"vocab_size": 250002, "max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5,
           "pad_token_id": 1, "num_labels": 3},
    ),
    "bert-large": ("text-classification", "BertForSequenceClassification", _ENCODER | {"num_labels": 3}),
    "bert-large embeddings": ("sentence-embeddings", "BertModel", _ENCODER),
    "tiny": (
        "text-classification",
        "BertForSequenceClassification",
        {"vocab_size": 22000, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 128},
    ),
}  # fmt: skip
COLUMNS = ("way", "p50", "p99", "over the model", "over in process")


def build(name: str, folder: Path) -> None:
    """Write the shape's bundle, as a user does."""
    import torch
    import transformers

    from benchmarks.encoder_service import tokenizer

    task, architecture, config = SHAPES[name]
    cls = getattr(transformers, architecture)
    gpu = torch.cuda.is_available()
    torch.manual_seed(0)
    with torch.device("cuda" if gpu else "cpu"):
        model = cls(cls.config_class(**config))
    (model.half() if gpu else model).cpu().save_pretrained(folder / "model")
    tokenizer(config.get("vocab_size", 30522), config.get("pad_token_id", 0), 512).save_pretrained(folder / "model")
    command = [sys.executable, "-m", "mii_azure.cli.app", "generate", "--task", task, "--model", str(folder / "model")]
    command += ["--name", "bench", "--output", str(folder / "bundle")]
    command += ["--instance-type", "Standard_NC40ads_H100_v5" if gpu else "Standard_F4s_v2"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def started(bundle: Path, calls: int) -> "subprocess.Popen[str]":
    """A process that holds the bundle and waits for the word to time score.run."""
    command = [sys.executable, "-m", "benchmarks.encoder_inside", str(bundle), str(calls)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    if not any(line == "ready\n" for line in process.stdout):
        raise RuntimeError("the bundle did not start")
    return process


def in_process(process: "subprocess.Popen[str]") -> dict[str, Any]:
    """Times of score.run, of its parts, and a profile of Python's share."""
    found, _ = process.communicate("go\n", timeout=120)
    told: dict[str, Any] = json.loads(found.splitlines()[-1])
    return told


def measure(name: str, calls: int, folder: Path, word: Path | None) -> dict[str, Any]:
    """All ways of one bundle, one after another on one machine; with `word`, once that file exists."""
    build(name, folder)
    inside = started(folder / "bundle", calls)
    with served(folder, []) as (_, port):
        print("started", flush=True)
        while word is not None and not word.exists():
            time.sleep(0.2)
        found = in_process(inside)
        log = (folder / "serve.log").read_text(encoding="utf-8")
        rows = [{"way": "in process", **found["run"]}]
        rows += [{"way": way, **encoder_inside.timed(call, calls)} for way, call in ways(port, grpc_port(log))]
    for row in rows:
        row["over the model"] = row["p50"] - found["parts"]["model"]
        row["over in process"] = row["p50"] - rows[0]["p50"]
    return {"shape": name, "tokens": encoder_inside.LENGTH, "model": found["parts"]["model"], **found, "rows": rows}


def ways(port: int, grpc_port: int) -> list[tuple[str, Callable[[], Any]]]:
    """Calls over kept connections, by name."""
    from local_runner.client.client import Client

    raw = encoder_inside.body()
    request = json.loads(raw)
    client = Client(f"127.0.0.1:{grpc_port}")
    kept = http.client.HTTPConnection("127.0.0.1", port)

    def post() -> bytes:
        kept.request("POST", "/score", raw, {"Content-Type": "application/json"})
        answer = kept.getresponse()
        found = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"/score answered {answer.status}: {found!r}")
        return found

    return [("gRPC", lambda: client.query(request)), ("/score", post)]


def grpc_port(log: str) -> int:
    """Port that a server's log names."""
    text = log.rpartition("grpc://127.0.0.1:")[2] if "grpc://" in log else log.partition("gRPC")[2].partition(":")[2]
    digits = "".join(c for c in text[:6] if c.isdigit())
    return int(digits)


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="xlm-roberta-large")
    parser.add_argument("--calls", type=int, default=300)
    parser.add_argument("--word", type=Path, help="start, and measure once this file exists")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = provenance() | measure(asked.shape, asked.calls, Path(folder), asked.word)
    result["bars"] = BARS
    write("encoder_ways", result, asked.out)
    print(table(COLUMNS, result["rows"]))
    print({"model": result["model"], **result["parts"]})


if __name__ == "__main__":
    main()
