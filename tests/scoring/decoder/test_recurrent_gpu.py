"""Models with recurrent layers on a GPU: graphs over states of slots, against plain transformers."""

from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

from transformers import CONFIG_MAPPING

from scoring.decoder.decoder import Decoder
from scoring.decoder.generic.plain import plain_logits
from scoring.decoder.kv_cache import SamplingParams
from scoring.decoder.verify import errors, reference
from scoring.passes.base import TOLERANCE
from scoring.passes.families import RECURRENT, WHOLE_PROMPTS
from scoring.passes.static_decode import StaticDecode
from tests.scoring.conftest import Served
from tests.scoring.decoder.company_of_64 import check_company_of_64
from tests.scoring.decoder.test_adapters import NEW, generated, greedy, prompt
from tests.tiny_causal import tiny_causal

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore::DeprecationWarning")]  # torch uses its own old parts
NAMED = ("falcon_h1", "granitemoehybrid", "jamba", "lfm2", "mamba2", "qwen3_5_text", "qwen3_next")
#: Of these, mixtures, whose experts transformers runs one after the other where torch has no grouped product for them.
MIXTURES = {"granitemoehybrid", "jamba", "qwen3_next"}
LENGTHS = (21, 2, 90, 21, 40, 3)


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions in float32 as a CPU computes them."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def prompts_of(model: Any) -> list[list[int]]:
    return [prompt(model, length, seed) for seed, length in enumerate(LENGTHS)]


def run(decoder: Decoder, prompts: list[list[int]], sampling: SamplingParams, slots: list[int]) -> list[list[int]]:
    """Tokens of prompts, those of half of them in two pieces where they may be; steps of all, each read one late."""
    parts = dict(zip(slots, prompts, strict=True))
    for slot, ids in parts.items():
        decoder.open(slot, sampling, ids)
    if decoder.recurrent is not None and decoder.recurrent.pieces:
        begun = {slot: ids[: len(ids) // 2] for slot, ids in list(parts.items())[::2] if len(ids) > 1}
        decoder.prefill_many(list(begun.items()))
        parts |= {slot: parts[slot][len(ids) :] for slot, ids in begun.items()}
    decoder.prefill_many(list(parts.items()))
    pending = [decoder.sample(slots), *(decoder.step(slots) for _ in range(NEW - 1))]
    rows = [each.tokens() for each in pending]
    return [list(tokens) for tokens in zip(*rows, strict=True)]


@pytest.mark.parametrize("family", RECURRENT)
def test_greedy_tokens_equal_generate_alone_and_in_shuffled_company(family: str) -> None:
    if family not in CONFIG_MAPPING:
        pytest.skip("this transformers does not have it")
    model = tiny_causal(family)
    prompts = prompts_of(model)
    expected = [generated(model, ids, NEW) for ids in prompts]
    decoder = Decoder(model.cuda(), slots=7, max_length=128)
    assert decoder.recurrent is not None
    assert decoder.recurrent.pieces == (family not in WHOLE_PROMPTS)
    decoder.warm_up()
    print(family, decoder.recurrent.told, decoder.notes)
    assert not decoder.notes or family not in NAMED or family in MIXTURES
    for slots in ([5], [2, 0], [6, 1, 3], [6, 2, 0, 5, 1, 3], [0, 1, 2, 3, 4, 5]):
        produced: list[list[int]] = []
        for start in range(0, len(prompts), len(slots)):
            produced += run(decoder, prompts[start : start + len(slots)], greedy(model), slots)
        assert produced == expected, slots


@pytest.mark.parametrize("family", NAMED)
def test_a_graph_that_pads_a_step_leaves_other_slots_their_states(family: str) -> None:
    """Three rows run as four, beside a slot that waits; the scratch slot is stepped many times and stays finite."""
    model = tiny_causal(family)
    waiting, prompts = prompt(model, 30, 9), [prompt(model, length) for length in LENGTHS[3:]]
    expected = generated(model, waiting, NEW)
    decoder = Decoder(model.cuda(), slots=6, max_length=128)
    decoder.open(4, greedy(model))
    decoder.prefill(4, waiting)
    found = [decoder.sample([4]).tokens()[0], decoder.step([4]).tokens()[0]]
    run(decoder, prompts, greedy(model), [5, 0, 3])
    for _ in range(40):
        decoder.step([0, 5, 3])
    found += [decoder.step([4]).tokens()[0] for _ in range(NEW - 2)]
    assert found == expected
    assert decoder.recurrent is not None
    assert all(rows[-1].isfinite().all() for rows in decoder.recurrent.rows)


@pytest.mark.parametrize("family", NAMED)
def test_sixty_four_rows_in_a_small_pool_are_each_as_alone(family: str, lent: Served) -> None:
    """They give up their slots and begin anew."""
    check_company_of_64(lent, tiny_causal(family).cuda(), "generic")


@pytest.mark.parametrize(
    ("family", "dtype"),
    [(family, torch.bfloat16) for family in NAMED if family != "jamba"]
    + [(family, torch.float16) for family in NAMED if family not in MIXTURES],  # a choice of experts flips by rounding
)
def test_in_16_bits_it_is_verified(family: str, dtype: torch.dtype) -> None:
    model = tiny_causal(family).to(dtype).cuda()
    told = reference(model)
    chosen = StaticDecode(slots=3, max_length=128)
    applied = chosen.apply(model)
    print(family, applied.detail)
    assert "recurrent states of" in applied.detail
    assert "without graphs" not in applied.detail
    assert chosen.decoder is not None
    bound = max(TOLERANCE, 1.5 * told().own_error)
    assert max(errors(chosen.decoder, told()).values()) <= bound


def test_a_prompt_longer_than_a_chunk_goes_on_in_its_cache_or_is_computed_whole() -> None:
    for family in ("lfm2", "granitemoehybrid", "jamba", "mamba"):
        model = tiny_causal(family)
        ids = prompt(model, 90)
        expected = generated(model, ids, NEW)
        decoder = Decoder(model.cuda(), slots=2, max_length=128)
        decoder._cuda.prefiller.longest = 40
        decoder.open(1, greedy(model))
        decoder.prefill(1, ids)
        found = [decoder.sample([1]).tokens()[0], *(decoder.step([1]).tokens()[0] for _ in range(NEW - 1))]
        assert found == expected, family


def test_a_step_out_of_memory_leaves_every_slot_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one that no graph holds, since its experts wait for the host; and a piece of a prompt before it."""
    model = tiny_causal("qwen3_next")
    ids = prompt(model, 20)
    expected = generated(model, ids, NEW)
    model.set_experts_implementation("eager")
    decoder = Decoder(model.cuda(), slots=2, max_length=64)
    decoder.warm_up()
    decoder.open(0, greedy(model))
    decoder.prefill(0, ids[:8])
    assert "without graphs" in decoder.notes[0]
    forward, failing = type(model).forward, iter([True, False, True])

    def once(self: Any, *given: Any, **asked: Any) -> Any:
        found = forward(self, *given, **asked)
        if next(failing, False):
            raise torch.OutOfMemoryError
        return found

    monkeypatch.setattr(type(model), "forward", once)
    with pytest.raises(torch.OutOfMemoryError):
        decoder.prefill(0, ids[8:])
    decoder.prefill(0, ids[8:])
    found = [decoder.sample([0]).tokens()[0]]
    with pytest.raises(torch.OutOfMemoryError):
        decoder.step([0])
    found += [decoder.step([0]).tokens()[0] for _ in range(NEW - 1)]
    assert found == expected


def test_a_later_piece_of_a_prompt_is_as_plain_transformers_computes_it() -> None:
    """In float32, logits and not only tokens."""
    for family in NAMED:
        model = tiny_causal(family).cuda()
        ids = prompt(model, 70)
        decoder = Decoder(model, slots=2, max_length=128)
        decoder.open(1, greedy(model))
        for piece in (ids[:33], ids[33:34], ids[34:]) if family not in WHOLE_PROMPTS else (ids,):
            logits = decoder.prefill(1, piece)
        wanted = plain_logits(model, ids, len(ids))[-1]
        assert (logits - wanted).norm() <= 1e-3 * wanted.norm(), family
