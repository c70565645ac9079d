"""Generation on a decoder's slots: the same answers as `generate`, whatever shares the batch."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from scoring.config import Limits
from scoring.decoder.decoder import Decoder
from scoring.generation.sequence import capacity
from tests.scoring.conftest import Served
from tests.scoring.generating import PROMPTS, Forwards, continuation

Tiny = Callable[[str, str], Path]
FAMILIES = ("gpt2", "gpt_neo", "gptj", "gpt_neox", "opt", "bloom", "llama", "mistral", "qwen2", "gemma")
TASK = "text-generation"


def slotted(folder: Path, slots: int = 4) -> Served:
    served = Served(folder, TASK, Limits(max_batch_size=8))
    loaded = served.service.loaded
    loaded.runtime.decoder = Decoder(loaded.model, slots, loaded.context_length)
    return served


@pytest.fixture(params=FAMILIES)
def folder(request: pytest.FixtureRequest, tiny: Tiny) -> Path:
    return tiny(request.param, TASK)


@pytest.fixture
def served(folder: Path) -> Iterator[Served]:
    served = slotted(folder)
    yield served
    served.service.drain(5)


def texts(answer: list[list[dict[str, str]]]) -> list[str]:
    return [entry[0]["generated_text"] for entry in answer]


def test_greedy_answers_equal_generate(served: Served, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forwards = Forwards(served, monkeypatch)  # rows on slots go past them
    called = []
    monkeypatch.setattr(served.service.loaded.model, "generate", lambda **_: called.append(1))
    # More texts than slots, so that slots are used again.
    answer = served.ok(list(PROMPTS), max_new_tokens=7, return_full_text=False)
    assert texts(answer) == [continuation(folder, TASK, prompt, max_new_tokens=7)[0] for prompt in PROMPTS]
    assert not forwards.sizes
    assert not called


@pytest.fixture
def gpt2(tiny: Tiny) -> Iterator[tuple[Served, Path]]:
    folder = tiny("gpt2", TASK)
    served = slotted(folder)
    yield served, folder
    served.service.drain(5)


@pytest.mark.parametrize(
    "parameters",
    [
        {"repetition_penalty": 1.7, "max_new_tokens": 9},
        {"min_new_tokens": 6, "max_new_tokens": 9},
        {"max_new_tokens": 1},
        {"max_new_tokens": 5, "ignore_eos": True},
    ],
)
def test_parameters_mean_the_same(gpt2: tuple[Served, Path], parameters: dict[str, object]) -> None:
    served, folder = gpt2
    wanted = dict(parameters)
    if wanted.pop("ignore_eos", False):
        wanted["min_new_tokens"] = wanted["max_new_tokens"]
    for prompt in PROMPTS:
        answer = served.ok(prompt, return_full_text=False, **parameters)
        assert answer[0]["generated_text"] == continuation(folder, TASK, prompt, **wanted)[0]


def test_rows_with_different_parameters_share_a_batch(gpt2: tuple[Served, Path]) -> None:
    served, folder = gpt2
    task = served.service.task
    rows = [
        task.encode(prompt, task.schema.parse_parameters({"max_new_tokens": 3 + i}), i)[0]
        for i, prompt in enumerate(PROMPTS)
    ]
    assert len({row.key for row in rows}) == 1
    outputs = task.forward(rows)
    for i, (prompt, output) in enumerate(zip(PROMPTS, outputs, strict=True)):
        assert task.text(output[0], rows[i].parameters) == continuation(folder, TASK, prompt, max_new_tokens=3 + i)[0]


def test_a_seed_gives_one_answer_whatever_else_runs(gpt2: tuple[Served, Path]) -> None:
    served, _ = gpt2
    asked = {"do_sample": True, "seed": 11, "temperature": 1.3, "top_p": 0.9, "max_new_tokens": 12}
    alone = served.ok("The", **asked)
    assert served.ok("The", **(asked | {"seed": 12})) != alone
    with ThreadPoolExecutor(6) as pool:
        others = [pool.submit(served.ok, prompt, max_new_tokens=20) for prompt in PROMPTS]
        again = [pool.submit(served.ok, "The", **asked) for _ in range(3)]
        assert all(future.result() == alone for future in again)
        assert all(future.result() for future in others)


def test_streams_add_up_to_the_answer(gpt2: tuple[Served, Path]) -> None:
    served, _ = gpt2
    request = {"inputs": "Hello", "parameters": {"max_new_tokens": 12, "return_full_text": False}}
    _, whole = served(request)
    _, events = served({**request, "stream": True})
    pieces = [event["token"]["text"] for event in events if "token" in event]
    assert "".join(pieces) == whole[0]["generated_text"]
    assert events[-1] == "[DONE]"


def test_a_stop_text_ends_its_row_alone(gpt2: tuple[Served, Path]) -> None:
    served, _ = gpt2
    whole = served.ok("Hello there, how are you?", max_new_tokens=20, return_full_text=False)[0]["generated_text"]
    stop = whole[3:6]
    cut = served.ok("Hello there, how are you?", max_new_tokens=20, return_full_text=False, stop=stop)
    assert cut[0]["generated_text"] == whole[: whole.index(stop)]


@pytest.mark.parametrize("parameters", [{"num_beams": 2}, {"no_repeat_ngram_size": 2}])
def test_what_slots_cannot_do_is_left_to_generate(gpt2: tuple[Served, Path], parameters: dict[str, int]) -> None:
    served, folder = gpt2
    answer = served.ok("The", max_new_tokens=6, return_full_text=False, **parameters)
    assert answer[0]["generated_text"] == continuation(folder, TASK, "The", max_new_tokens=6, **parameters)[0]


def test_a_cancelled_row_frees_its_slot(gpt2: tuple[Served, Path]) -> None:
    served, _ = gpt2
    task = served.service.task
    row = task.encode("The", task.schema.parse_parameters({"max_new_tokens": 100, "ignore_eos": True}), 0)[0]
    row.cancelled.set()
    assert len(task.forward([row])[0][0]) == 1


@pytest.mark.parametrize(("device", "tokens"), [("cuda", 128 * 2048), ("cpu", 16_384)])
def test_slots_may_be_full_where_their_memory_is_taken_already(device: str, tokens: int) -> None:
    decoder = SimpleNamespace(capacity=128 * 2048, model=SimpleNamespace(device=torch.device(device)))
    assert capacity(decoder, Limits(max_batch_tokens=16_384, slots=128)) == tokens
