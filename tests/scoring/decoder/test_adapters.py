"""The static decoder on a CPU against plain transformers: every family, float32."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from scoring.decoder.adapters.builders import FAMILIES, unsupported
from scoring.decoder.decoder import Decoder
from scoring.decoder.kv_cache import SamplingParams
from scoring.decoder.verify import errors, reference
from scoring.errors import LoadError, PromptTooLong
from tests.scoring.conftest import Served
from tests.scoring.decoder.company_of_64 import check_company_of_64
from tests.tiny_causal import tiny_causal
from tests.tiny_models import load_tiny, tiny_model

TOLERANCE = 1e-4
PROMPTS = (3, 21, 40)  # the longest passes the windows of Mistral (32) and GPT-Neo (16)
NEW = 14


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    yield tiny(request.param, tmp_path_factory.mktemp(request.param))


def tiny(family: str, folder: Path) -> Any:
    """A tiny model whose norms and experts have gains, shifts and biases of their own, as a trained model's do."""
    torch.set_num_threads(1)
    model = load_tiny(tiny_model(family, "text-generation", folder), "text-generation")[0]
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if (parameter.ndim == 1 and "norm" in name) or "proj_bias" in name or "router.bias" in name:
            parameter.data += 0.5 * torch.rand(parameter.shape, generator=generator) - 0.25
    if getattr(model.config, "attn_logit_softcapping", None):
        model.set_attn_implementation("eager")  # transformers 5.17's other one leaves the cap out
    return model


def prompt(model: Any, length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed * 1000 + length)
    return torch.randint(5, model.config.vocab_size, (length,), generator=generator).tolist()


def generated(model: Any, ids: list[int], new: int, **options: Any) -> list[int]:
    """What plain transformers generates; ends at nothing, so that lengths are known."""
    output = model.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        max_new_tokens=new,
        min_new_tokens=new,
        **({"do_sample": False} | options),
    )
    return output[0, len(ids) :].tolist()


def plain_logits(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0]


def greedy(model: Any) -> SamplingParams:
    """Greedy with the end tokens held back, as `generated` asks for."""
    ends = model.generation_config.eos_token_id
    return SamplingParams(forbidden=tuple(ends if isinstance(ends, list) else [ends]), forbidden_until=10**6)


def test_prefill_and_every_cached_step_match(model: Any) -> None:
    decoder = Decoder(model, slots=1, max_length=128)
    ids = prompt(model, 60)
    expected = plain_logits(model, ids)
    decoder.open(0)
    logits = decoder.prefill(0, ids[:22])
    assert (logits - expected[21]).abs().max() <= TOLERANCE
    for position in range(22, 60):
        decoder.feed(0, ids[position])
        decoder.step([0])
        assert (decoder.last_logits(1)[0] - expected[position]).abs().max() <= TOLERANCE, position


def test_tokens_match_generate_in_slots_of_mixed_lengths(model: Any) -> None:
    prompts = [prompt(model, length) for length in PROMPTS]
    expected = [generated(model, ids, NEW) for ids in prompts]
    decoder = Decoder(model, slots=4, max_length=128)
    slots = [2, 0, 3]
    for slot, ids in zip(slots, prompts, strict=True):
        decoder.open(slot, greedy(model))
        decoder.prefill(slot, ids)
    produced = [decoder.sample(slots).tokens()]
    produced += [decoder.step(slots).tokens() for _ in range(NEW - 1)]
    assert [list(row) for row in zip(*produced, strict=True)] == expected


def test_a_prompt_in_pieces_gives_the_same_logits(model: Any) -> None:
    decoder = Decoder(model, slots=1, max_length=128)
    ids = prompt(model, 50)
    decoder.open(0)
    for start in (0, 1, 20, 43):
        logits = decoder.prefill(0, ids[start : {0: 1, 1: 20, 20: 43, 43: 50}[start]])
    assert (logits - plain_logits(model, ids)[-1]).abs().max() <= TOLERANCE


def test_sixty_four_rows_in_a_small_pool_are_each_as_alone(model: Any, lent: Served) -> None:
    check_company_of_64(lent, model, "fused")


def test_slots_leave_join_and_are_used_again(model: Any) -> None:
    decoder = Decoder(model, slots=2, max_length=128)
    first, second, third = prompt(model, 30, 1), prompt(model, 9, 2), prompt(model, 5, 3)
    decoder.open(0, greedy(model))
    decoder.prefill(0, first)
    tokens = {"first": decoder.sample([0]).tokens(), "second": [], "third": []}
    tokens["first"] += decoder.step([0]).tokens()
    decoder.open(1, greedy(model))  # joins while the first runs
    decoder.prefill(1, second)
    tokens["second"] += decoder.sample([1]).tokens()
    for _ in range(3):
        one, other = decoder.step([1, 0]).tokens()
        tokens["second"].append(one)
        tokens["first"].append(other)
    decoder.open(0, greedy(model))  # the first is done; its slot serves a shorter sequence
    decoder.prefill(0, third)
    tokens["third"] += decoder.sample([0]).tokens()
    for _ in range(3):
        one, other = decoder.step([0, 1]).tokens()
        tokens["third"].append(one)
        tokens["second"].append(other)
    assert tokens["first"] == generated(model, first, 5)
    assert tokens["second"] == generated(model, second, 7)
    assert tokens["third"] == generated(model, third, 4)


def test_the_model_itself_still_answers_as_before(tmp_path: Path) -> None:
    for family in FAMILIES:
        model = tiny(family, tmp_path / family)
        ids = prompt(model, 12)
        before = plain_logits(model, ids)
        decoder = Decoder(model, slots=1, max_length=64)
        assert torch.allclose(plain_logits(model, ids), before, atol=1e-5), family
        storages = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        copies = [p for p in decoder.model.products() if p.weight.untyped_storage().data_ptr() not in storages]
        assert copies == [], family


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("gemma3_text", {"attn_logit_softcapping": 2.0}),
        ("smollm3", {"sliding_window": 7, "layer_types": ["sliding_attention", "full_attention"]}),
    ],
)
def test_settings_that_modules_pass_over_are_followed_as_transformers_follows_them(
    family: str, settings: dict[str, Any]
) -> None:
    plain = tiny_causal(family, **settings)
    assert max(errors(Decoder(plain, 3, 96), reference(plain)()).values()) <= TOLERANCE


def test_a_full_slot_is_refused_before_anything_changes(tmp_path: Path) -> None:
    model = tiny("llama", tmp_path)
    decoder = Decoder(model, slots=2, max_length=10)
    decoder.open(0)
    with pytest.raises(PromptTooLong, match="11 tokens; a slot holds 10"):
        decoder.prefill(0, prompt(model, 11))
    decoder.prefill(0, prompt(model, 10))
    decoder.sample([0])
    with pytest.raises(PromptTooLong, match="11 tokens"):
        decoder.step([0])
    assert decoder.lengths == [10, 0]


def test_positions_bound_the_slots(tmp_path: Path) -> None:
    assert Decoder(tiny("gpt2", tmp_path), slots=1, max_length=4096).max_length == 128


def test_what_is_not_covered_is_named(tmp_path: Path) -> None:
    model = tiny("opt", tmp_path)
    assert unsupported(model.config) == ""
    model.config.do_layer_norm_before = False
    with pytest.raises(LoadError, match="norms after the blocks"):
        Decoder(model, slots=1, max_length=16, tier="fused")
    model.config.model_type = "codegen"
    assert "codegen is none of bloom" in unsupported(model.config)
