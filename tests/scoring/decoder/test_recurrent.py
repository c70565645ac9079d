"""Models whose layers keep recurrent states, on a CPU against plain transformers: convolutions, Mamba, delta rules."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from scoring.decoder.decoder import Decoder
from scoring.decoder.generic import proof
from scoring.decoder.generic.recurrent import SlotStates
from scoring.decoder.verify import errors, reference
from scoring.errors import LoadError
from scoring.passes.families import RECURRENT, WHOLE_PROMPTS, decoder_tier
from scoring.passes.static_decode import StaticDecode
from tests.conftest import Tiny
from tests.scoring.conftest import Served
from tests.scoring.decoder.company_of_64 import check_company_of_64
from tests.scoring.decoder.test_adapters import TOLERANCE, generated, greedy, prompt
from tests.scoring.generating import PROMPTS, continuation
from tests.tiny_causal import tiny_causal

NEW = 5
TASK = "text-generation"


@pytest.fixture(scope="module", params=RECURRENT)
def model(request: pytest.FixtureRequest) -> Iterator[Any]:
    torch.set_num_threads(1)
    yield tiny_causal(request.param)


def test_tokens_are_those_of_generate_and_none_is_reused_or_drafted(model: Any) -> None:
    """A prompt in pieces, another that begins like it, one as long, and a short one, in steps together."""
    whole = model.config.model_type in WHOLE_PROMPTS
    decoder = Decoder(model, slots=5, max_length=128, drafts=True)
    assert decoder.tier == "generic"
    assert not decoder.speculates
    assert decoder.recurrent is not None
    assert decoder.recurrent.pieces != whole
    first = prompt(model, 90)
    prompts = {4: first, 0: first[:70] + prompt(model, 9, 1), 2: prompt(model, 3), 3: prompt(model, 90, 2)}
    for slot, ids in prompts.items():
        assert decoder.open(slot, greedy(model), ids, "salt") == 0
    if not whole:
        decoder.prefill_many([(4, first[:40]), (2, prompts[2][:1])])
        prompts[4], prompts[2] = first[40:], prompts[2][1:]
    decoder.prefill_many(list(prompts.items()))
    prompts = {4: first, 2: prompt(model, 3)} | {slot: prompts[slot] for slot in (0, 3)}
    slots = list(prompts)
    produced = [decoder.sample(slots).tokens()] + [decoder.step(slots).tokens() for _ in range(NEW - 1)]
    assert [list(row) for row in zip(*produced, strict=True)] == [
        generated(model, ids, NEW) for ids in prompts.values()
    ]


def test_prefill_and_steps_of_several_slots_are_exact(model: Any) -> None:
    found = errors(Decoder(model, slots=3, max_length=128), reference(model)())
    assert max(found.values()) <= TOLERANCE, found


def test_sixty_four_rows_in_a_small_pool_are_each_as_alone(model: Any, lent: Served) -> None:
    check_company_of_64(lent, model, "generic")


def test_all_are_for_the_generic_tier() -> None:
    assert {decoder_tier(family).tier for family in RECURRENT} == {"generic"}


@pytest.mark.parametrize("family", ["lfm2", "qwen3_5_text"])
def test_a_forward_that_fails_leaves_every_slot_as_it_was(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of prompts of two lengths the second batch fails, and all are tried again; then a step does."""
    model = tiny_causal(family)
    decoder = Decoder(model, slots=2, max_length=64)
    prompts = {0: prompt(model, 6), 1: prompt(model, 9)}
    for slot, ids in prompts.items():
        decoder.open(slot, greedy(model))
        decoder.prefill(slot, ids[:3])
    failing = type(model).forward
    calls = iter(range(100))

    def once(self: Any, *given: Any, **asked: Any) -> Any:
        found = failing(self, *given, **asked)
        if next(calls) in (1, 4):
            raise MemoryError
        return found

    monkeypatch.setattr(type(model), "forward", once)
    parts = [(slot, ids[3:]) for slot, ids in prompts.items()]
    with pytest.raises(MemoryError):
        decoder.prefill_many(parts)
    decoder.prefill_many(parts)
    produced = [decoder.sample([0, 1]).tokens()]
    with pytest.raises(MemoryError):
        decoder.step([0, 1])
    produced += [decoder.step([0, 1]).tokens() for _ in range(NEW - 1)]
    monkeypatch.undo()
    assert [list(row) for row in zip(*produced, strict=True)] == [
        generated(model, ids, NEW) for ids in prompts.values()
    ]


def test_a_step_that_mixes_slots_is_not_served(monkeypatch: pytest.MonkeyPatch) -> None:
    keep = SlotStates.keep
    monkeypatch.setattr(SlotStates, "keep", lambda self, slots, cache: keep(self, slots.flip(0), cache))
    with pytest.raises(LoadError, match="steps of several slots differ from plain transformers by"):
        Decoder(tiny_causal("lfm2"), slots=2, max_length=64)


def test_what_is_not_proven_with_pieces_is_served_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt of such a model is longer than a step's budget, and a further piece is refused."""
    model = tiny_causal("mamba")
    decoder = Decoder(model, slots=2, max_length=512)
    decoder.open(0, greedy(model))
    decoder.prefill(0, prompt(model, 200))
    with pytest.raises(ValueError, match="in one piece"):
        decoder.prefill(0, [5, 6])
    monkeypatch.setattr(proof, "_takes_pieces", lambda *_: False)
    states = Decoder(tiny_causal("lfm2"), slots=2, max_length=64).recurrent
    assert states is not None
    assert "in one piece" in states.told


def test_the_pass_tells_what_such_sequences_do_without() -> None:
    model = tiny_causal("lfm2")
    told = reference(model)
    chosen = StaticDecode(slots=3, max_length=64, speculation="ngram")
    applied = chosen.apply(model)
    size = 32 * 3 * 4  # channels of a convolution, its width, and bytes of a number
    assert (
        f"recurrent states of {size / 2**10:.1f} KiB a slot: no prefix is reused, nothing is drafted" in applied.detail
    )
    assert chosen.verify(model, told) <= 1e-5
    assert chosen.decoder is not None
    states = chosen.decoder.recurrent
    assert states is not None
    assert states.slot_bytes == size
    states.keep = lambda slots, cache: None  # type: ignore[method-assign]
    assert chosen.verify(model, told) > 1e-3  # states that are lost are told


@pytest.mark.parametrize("family", ["lfm2", "qwen3_5_text", "mamba"])
def test_requests_are_answered_from_its_slots_as_plain_transformers_does(
    family: str, tiny: Tiny, tmp_path: Path
) -> None:
    """Several prompts at once, of which one is longer than a step's budget, twice, and a stream."""
    tokenizer = AutoTokenizer.from_pretrained(tiny("llama", TASK))
    names = ("pad_token_id", "bos_token_id", "eos_token_id")
    sizes = {"vocab_size": len(tokenizer)} | ({} if family == "mamba" else {"max_position_embeddings": 512})
    model = tiny_causal(family, **sizes, **{name: getattr(tokenizer, name) for name in names})
    model.save_pretrained(tmp_path)
    tokenizer.model_max_length = 512
    tokenizer.save_pretrained(tmp_path)
    served = Served(tmp_path, TASK)
    loaded = served.service.loaded
    loaded.runtime.decoder = Decoder(loaded.model, 3, 512)
    asked = {"max_new_tokens": 6, "return_full_text": False}
    texts = [*PROMPTS, "Long words come first. " * 12]
    expected = [continuation(tmp_path, TASK, text, max_new_tokens=6) for text in texts]
    for _ in range(2):
        answers = served.ok(texts, **asked)
        assert [[answer["generated_text"]] for [answer] in answers] == expected
    status, events = served({"inputs": PROMPTS[1], "parameters": asked, "stream": True})
    assert status == 200
    assert len(events) > 2
    assert served.service.statistics()["cached_tokens"] == 0
    assert served.service.drain(20)
