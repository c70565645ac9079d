"""The static decoder over two GPUs: against plain transformers on the CPU, in every way of a step, and a lost rank."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from scoring.decoder.kv_cache import SamplingParams
from scoring.decoder.verify import reference
from scoring.errors import RankLost
from scoring.passes.static_decode import StaticDecode
from scoring.passes.tensor_parallel import TensorParallel
from tests.conftest import Tiny
from tests.scoring.decoder.test_adapters import NEW, PROMPTS, generated, greedy, prompt

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
    pytest.mark.filterwarnings("ignore"),  # DeepSpeed warns a lot
]
SLOTS = 6
SAMPLED = SamplingParams(0.9, top_k=40, top_p=0.95, repetition_penalty=1.1, seed=7)


@pytest.fixture(params=["llama", "gpt_neox", "opt"])
def folder(request: pytest.FixtureRequest, tiny: Tiny) -> Path:
    return tiny(request.param, "text-generation")


def _load(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture
def sliced(folder: Path) -> Iterator[tuple[Any, float]]:
    """The static decoder of a model of which each GPU holds a part, and its relative error."""
    model = _load(folder)
    told = reference(model)
    slicing = TensorParallel(2, call_s=20)
    decode = StaticDecode(SLOTS, 128, slicing=slicing)
    applied = [slicing.apply(model), decode.apply(model)]
    yield decode.decoder, decode.verify(model, told)
    for each in reversed(applied):
        each.undo()


def test_slices_over_two_gpus(sliced: tuple[Any, float], folder: Path) -> None:
    """One, two and six sequences at a time: products of single rows, and cuBLAS's; whole prompts and joining ones."""
    (decoder, error), plain = sliced, _load(folder)
    assert error < 1e-4
    held = greedy(plain)
    prompts = [prompt(plain, length) for length in PROMPTS] + [prompt(plain, length, 5) for length in PROMPTS]
    expected = [generated(plain, ids, NEW) for ids in prompts]
    for count in (1, 2, 6):
        produced: list[list[int]] = []
        for start in range(0, len(prompts), count):
            slots = list(range(count))
            for slot in slots:
                decoder.open(slot, held)
            decoder.prefill_many([(slot, prompts[start + slot]) for slot in slots])
            steps = [decoder.sample(slots)] + [decoder.step(slots) for _ in range(NEW - 1)]
            produced += [list(row) for row in zip(*(each.tokens() for each in steps), strict=True)]
        assert produced == expected, count
    whole = StaticDecode(SLOTS, 128).apply(_load(folder).cuda()).made.decoder
    told = []
    for each in (decoder, whole):
        each.open(4, SAMPLED)
        each.prefill(4, prompts[0])
        told.append([each.sample([4]).tokens()] + [each.step([4]).tokens() for _ in range(NEW)])
    assert told[0] == told[1]


def test_a_rank_that_is_gone_ends_a_step(tiny: Tiny) -> None:
    """In a process of its own: the kernel that waits for the lost rank stays on its GPU."""
    command = [
        sys.executable,
        "-m",
        "tests.scoring.tensor_parallel.test_decoder_gpu",
        str(tiny("llama", "text-generation")),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert "rank 1 of 2 ended" in done.stdout, done.stderr[-2000:]
    assert float(done.stdout.split()[-1]) < 10


def lose_a_rank(folder: Path) -> None:
    """Print what a step says of a rank that is gone, and after how many seconds."""
    model = _load(folder)
    slicing = TensorParallel(2, call_s=20)
    ranks = slicing.apply(model).made.ranks
    decoder = StaticDecode(2, 128, slicing=slicing).apply(model).made.decoder
    decoder.open(0)
    decoder.prefill(0, [5, 6, 7])
    decoder.sample([0]).tokens()
    os.kill(ranks.processes[0].pid, signal.SIGKILL)
    began = time.monotonic()
    try:
        for _ in range(100):
            decoder.step([0]).tokens()
    except RankLost as lost:
        print(lost, time.monotonic() - began, flush=True)
    os._exit(0)


if __name__ == "__main__":
    lose_a_rank(Path(sys.argv[1]))
