"""Servers of tiny models, what each must answer to texts that carry a nonce, and what each takes of the machine."""

import os
import secrets
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import linear_regression
from typing import Any

import mii_azure
from local_runner.process.launch import Runner
from tests.scoring.conftest import Served
from tests.scoring.generating import continuation
from tests.tiny_models import tiny_model

NAME = "soaked"
TOKENS = 12
#: task: the tiny model that does it
MODELS = {"text-generation": "llama", "text-classification": "bert", "sentence-embeddings": "bert"}
#: No two expected vectors or scores are as near as this, and no reply may be further than a tenth of it.
APART = 1e-3
_WORDS = ["sun", "moon", "river", "stone", "bread", "wind", "letter", "garden", "winter", "market", "silver", "paper"]


def bundle(task: str, folder: Path) -> Path:
    """The bundle of the task's model, in float32, so that what it answers does not depend on the batch."""
    model = tiny_model(MODELS[task], task, folder / f"model-{task}")
    return mii_azure.generate(task=task, model=str(model), deployment_name=NAME, output=folder / task, dtype="float32")


def texts(count: int) -> list[str]:
    """Texts that each begin with a nonce."""
    return [
        f"{secrets.token_hex(4)} {' '.join(_WORDS[(at + i) % 12] for i in range(2 + at % 5))}" for at in range(count)
    ]


def expectations(task: str, folder: Path, count: int) -> dict[str, Any]:
    """Texts and what plain transformers, or the service in this process, answers to each; no two alike."""
    model = folder / f"model-{task}"
    found: dict[str, Any] = {}
    if task == "text-generation":
        for text in texts(count):
            answer = continuation(model, task, text, max_new_tokens=TOKENS)[0]
            if answer.strip() and answer not in found.values():
                found[text] = answer
        return found
    served = Served(model, task)
    for text in texts(count):
        answer = served.ok(text, **({"top_k": None} if task == "text-classification" else {}))
        if all(distance(answer, other) > APART for other in found.values()):
            found[text] = answer
    served.service.drain(5)
    return found


def distance(answer: Any, other: Any) -> float:
    """The furthest that two answers' numbers are apart; infinite where they are not of one form."""
    ours, theirs = _numbers(answer), _numbers(other)
    if len(ours) != len(theirs) or not ours:
        return float("inf")
    return max(abs(one - two) for one, two in zip(ours, theirs, strict=True))


def _numbers(answer: Any) -> list[float]:
    """A vector, or the scores in the order of their labels."""
    if answer and isinstance(answer[0], dict):
        return [entry["score"] for entry in sorted(answer, key=lambda entry: str(entry["label"]))]
    return [float(number) for number in answer]


@dataclass
class Sample:
    """What a process takes at one moment."""

    at: float  # seconds since the start
    rss: int  # bytes
    threads: int
    files: int


@dataclass
class Watched:
    """A server under load, looked at now and then."""

    task: str
    runner: Runner
    expected: dict[str, Any]
    samples: list[Sample] = field(default_factory=list)

    def sample(self, began: float) -> None:
        """Take a sample, while the process lives."""
        pid = self.runner.process.pid
        status = Path(f"/proc/{pid}/statm").read_text().split()
        threads = sum(1 for _ in Path(f"/proc/{pid}/task").iterdir())
        files = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
        page = os.sysconf("SC_PAGE_SIZE")
        self.samples.append(Sample(time.monotonic() - began, int(status[1]) * page, threads, files))

    def after(self, warm_s: float) -> list[Sample]:
        """The samples from `warm_s` on."""
        return [sample for sample in self.samples if sample.at >= warm_s]

    def growth(self, warm_s: float) -> float:
        """Bytes by which the fitted line rises from `warm_s` to the last sample."""
        seen = self.after(warm_s)
        times = [sample.at for sample in seen]
        slope, _ = linear_regression(times, [sample.rss for sample in seen])
        return float(slope * (times[-1] - times[0]))


class Watch:
    """Takes a sample of every server each `period_s` while the block runs."""

    def __init__(self, servers: list[Watched], period_s: float = 1.0) -> None:
        self.began = time.monotonic()
        self._servers = servers
        self._period = period_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._stop.wait(self._period):
            for server in self._servers:
                if server.runner.process.poll() is None:
                    server.sample(self.began)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()
