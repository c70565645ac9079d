"""The static decoder on a GPU: graphs, slots and asynchronous results, against plain transformers on the CPU."""

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

from scoring.decoder.adapters.families import FAMILIES
from scoring.decoder.decoder import Decoder
from scoring.decoder.kv_cache import SamplingParams
from tests.scoring.decoder.test_adapters import NEW, PROMPTS, generated, greedy, prompt, tiny

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_equal_generate_in_every_bucket(family: str, tmp_path: Path) -> None:
    model = tiny(family, tmp_path)
    held = greedy(model)
    prompts = [prompt(model, length) for length in PROMPTS] + [prompt(model, length, 5) for length in PROMPTS]
    expected = [generated(model, ids, NEW) for ids in prompts]
    decoder = Decoder(model.cuda(), slots=7, max_length=128)
    for count in (1, 2, 6):  # one by one, by twos, and padded up to the next size
        produced: list[list[int]] = []
        for start in range(0, len(prompts), count):
            produced += run(decoder, prompts[start : start + count], held)
        assert produced == expected, count


def run(decoder: Decoder, prompts: list[list[int]], sampling: SamplingParams) -> list[list[int]]:
    """Tokens of several prompts in slots taken from the end, every result read one step late."""
    slots = [decoder.slots - 1 - row for row in range(len(prompts))]
    for slot, ids in zip(slots, prompts, strict=True):
        decoder.open(slot, sampling)
        decoder.prefill(slot, ids[: len(ids) // 2] or ids[:1])
        if ids[max(len(ids) // 2, 1) :]:
            decoder.prefill(slot, ids[max(len(ids) // 2, 1) :])
    pending = [decoder.sample(slots)]
    rows = []
    for _ in range(NEW - 1):
        pending.append(decoder.step(slots))
        rows.append(pending.pop(0).tokens())
    rows.append(pending.pop(0).tokens())
    return [list(tokens) for tokens in zip(*rows, strict=True)]


def test_sampled_tokens_equal_the_cpu_decoders(tmp_path: Path) -> None:
    def sampled(model: Any) -> list[list[int]]:
        decoder = Decoder(model, slots=3, max_length=128)
        prompts = [prompt(model, length) for length in PROMPTS]
        return run(decoder, prompts, SamplingParams(1.1, 40, 0.9, 1.2, seed=17))

    model = tiny("llama", tmp_path)
    assert sampled(model) == sampled(model.cuda())


def test_prompts_of_more_slots_and_tokens_than_a_piece_holds(tmp_path: Path) -> None:
    model = tiny("llama", tmp_path)
    prompts = [prompt(model, 1 + 13 * number % 110, number) for number in range(80)]
    results = []
    for device in ("cpu", "cuda"):
        decoder = Decoder(model.to(device), slots=80, max_length=128)
        for slot in range(80):
            decoder.open(slot)
        logits = decoder.prefill_many(list(enumerate(prompts)))
        results.append((logits.cpu(), decoder.sample(range(80)).tokens(), decoder.state.lengths.tolist()))
    assert (results[0][0] - results[1][0]).abs().max() <= 1e-4
    assert results[0][1:] == results[1][1:]
