"""Rotary positions that differ for long sequences (longrope), against plain transformers, which turns all anew."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from scoring.decoder.block_pool import BLOCK
from scoring.decoder.decoder import Decoder
from scoring.decoder.native_step import unfit
from scoring.decoder.verify import errors, reference
from scoring.generation.scheduler import Scheduler
from tests.conftest import Tiny
from tests.scoring.conftest import Served
from tests.scoring.decoder.test_adapters import TOLERANCE, plain_logits, prompt
from tests.tiny_causal import tiny_causal

STEADY, CONTEXT = 70, 256
TASK = "text-generation"
ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.5],
    "long_factor": [3.0, 9.0],
    "original_max_position_embeddings": STEADY,
}


def long_model(family: str = "phi3", **changes: Any) -> Any:
    """A tiny model whose rotary positions differ beyond 70 tokens: for half of a head in Phi's families."""
    torch.set_num_threads(1)
    own = {"max_position_embeddings": CONTEXT, "original_max_position_embeddings": STEADY, "rope_parameters": ROPE}
    if family != "phi3":
        own["rope_parameters"] = ROPE | {"short_factor": [1.0, 1.5, 1.0, 1.0], "long_factor": [3.0, 9.0, 2.0, 5.0]}
        return tiny_causal(family, **own, **changes)
    own["rope_parameters"] = ROPE | {"partial_rotary_factor": 0.5}
    return tiny_causal("phi3", **own, **changes)


def check_greedy(model: Any, ids: list[int], answer: list[int]) -> None:
    """Each token is the likeliest after those before it, as a forward over them alone says: what `generate` gives."""
    for count in range(len(answer)):
        assert int(plain_logits(model, ids + answer[:count])[-1].argmax()) == answer[count], count


@pytest.mark.parametrize("family", ["phi3", "llama"])
def test_short_and_long_sequences_are_turned_as_alone(family: str) -> None:
    model = long_model(family)
    decoder = Decoder(model, slots=3, max_length=CONTEXT)
    assert (decoder.tier, decoder.max_length, decoder.speculates) == ("fused", CONTEXT, False)
    assert "does not cover" in unfit(decoder.model, decoder.state)
    prompts = {2: prompt(model, 40), 0: prompt(model, STEADY), 1: prompt(model, STEADY + 1)}
    for slot, ids in prompts.items():
        decoder.open(slot, None, ids, "salt")
        for piece in (ids[:33], ids[33:]):
            logits = decoder.prefill(slot, piece)
        wanted = plain_logits(model, ids)[-1]
        assert (logits - wanted).norm() <= TOLERANCE * wanted.norm(), slot
    assert [decoder.rotary.is_due(slot, decoder.lengths[slot]) for slot in range(3)] == [True, False, False]
    tokens = [decoder.sample([2, 1]).tokens()] + [decoder.step([2, 1]).tokens() for _ in range(3)]
    for slot, answer in zip((2, 1), zip(*tokens, strict=True), strict=True):
        check_greedy(model, prompts[slot], list(answer))
    assert max(errors(decoder, reference(model)()).values()) <= TOLERANCE


def test_a_prefix_is_shared_only_by_sequences_turned_alike() -> None:
    model = long_model()
    decoder = Decoder(model, slots=2, max_length=CONTEXT, tokens=8 * BLOCK)
    ids = prompt(model, STEADY + 20)
    for slot, own, held in ((0, ids[:-30], 0), (1, ids, 0), (0, ids[:-30], 59), (1, ids, 89)):
        assert decoder.tables.match(own, decoder.rotary.salt(own, "salt")) == held
        assert decoder.open(slot, None, own, "salt") == held
        wanted = plain_logits(model, own)[-1]
        assert (decoder.prefill(slot, own[held:]) - wanted).norm() <= TOLERANCE * wanted.norm()
        decoder.release(slot, own)


@pytest.mark.parametrize("late", [False, True])
def test_sequences_that_grow_long_are_computed_anew_and_lose_no_token(tiny: Tiny, late: bool, tmp_path: Path) -> None:
    """As `generate` does at the same token; beside others that stay short, or were long from the start."""
    tokenizer = AutoTokenizer.from_pretrained(tiny("llama", TASK))
    long_model(vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    served = Served(tmp_path, TASK)
    task, model = served.service.task, served.service.loaded.model
    decoder = Decoder(model, 4, 120, tokens=10 * BLOCK)
    scheduler = Scheduler(task, decoder, decoder.capacity)
    scheduler._late = late
    rows, done = [], {}
    for number, (length, new) in enumerate([(60, 20), (STEADY, 5), (STEADY - 1, 1), (90, 9), (12, 9), (64, 7)]):
        [row] = task.encode("The", task.schema.parse_parameters({"max_new_tokens": new, "ignore_eos": True}), 0)
        row.features["input_ids"] = prompt(model, length, number)
        rows.append(row)
    waiting = list(enumerate(rows))
    while waiting or scheduler.active:
        while waiting and scheduler.fits(waiting[0][1]):
            number, row = waiting.pop(0)
            scheduler.add(row, partial(done.__setitem__, number))
        scheduler.step()
    for number, row in enumerate(rows):
        assert not isinstance(done[number], Exception)
        [answer] = done[number]
        assert len(answer) == row.new_tokens
        check_greedy(model, row.features["input_ids"], list(answer))
    assert decoder.tables.pool.used == 0


def test_the_generic_tier_takes_the_short_ones_and_leaves_the_others() -> None:
    model = long_model("olmoe")
    decoder = Decoder(model, slots=1, max_length=CONTEXT)
    assert (decoder.tier, decoder.max_length, decoder.full_length) == ("generic", STEADY, STEADY)
    ids = prompt(model, 60)
    decoder.open(0, None, ids)
    wanted = plain_logits(model, ids)[-1]
    plain_logits(model, prompt(model, 100))  # leaves the module turned by the other frequencies
    assert (decoder.prefill(0, ids) - wanted).norm() <= TOLERANCE * wanted.norm()


def test_dynamic_positions_are_the_same_within_the_models_context() -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    model = tiny_causal("llama", rope_parameters=rope)
    decoder = Decoder(model, slots=1, max_length=CONTEXT)
    assert (decoder.tier, decoder.max_length) == ("fused", 128)
    ids = prompt(model, 128)
    decoder.open(0, None, ids)
    wanted = plain_logits(model, ids)[-1]
    assert (decoder.prefill(0, ids) - wanted).norm() <= TOLERANCE * wanted.norm()
