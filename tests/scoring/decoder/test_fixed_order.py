"""Decoders with fixed-order sums on a CPU: an answer is the same bits alone and in company."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from scoring.decoder import fixed_torch
from scoring.decoder.adapters.builders import FAMILIES
from scoring.decoder.decoder import Decoder
from scoring.decoder.fixed_torch import cut, equal_sizes
from scoring.decoder.kv_cache import SamplingParams
from scoring.decoder.verify import errors, reference
from tests.scoring.decoder.test_adapters import prompt, tiny


def made(hf_model: Any, fixed: bool = True, tokens: int = 0) -> Decoder:
    return Decoder(hf_model, 8, 256, tokens=tokens, tier="fused", fixed=fixed)


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_answers_are_the_same_bits_alone_and_in_company(family: str, tmp_path: Path) -> None:
    """A prompt whole and alone, against pieces beside others, a cached prefix, and steps among others'."""
    hf_model = tiny(family, tmp_path)
    ids, other = prompt(hf_model, 90), prompt(hf_model, 45, 3)
    alone, busy = made(hf_model), made(hf_model, tokens=1024)
    alone.open(2)
    found = [alone.prefill(2, ids)]
    for token in (7, 9, 11):
        alone.feed(2, token)
        alone.step([2])
        found.append(alone.last_logits(1)[0].clone())
    for slot in (0, 1, 3, 5, 6):
        busy.open(slot)
    busy.prefill_many([(0, other), (1, other[:9]), (3, ids[:33]), (5, other[:30]), (6, other[:2])])
    told = [busy.prefill_many([(1, other[:5]), (3, ids[33:]), (6, other[:7])])[1]]
    for token in (7, 9, 11):
        for slot in (0, 1, 3, 5, 6):
            busy.feed(slot, token if slot == 3 else 5)
        busy.step([6, 0, 1, 3, 5])
        told.append(busy.last_logits(5)[3].clone())
    busy.release(3, ids)
    assert busy.open(4, ids=[*ids, 7], salt="") == 0  # nothing was shared: no salt
    busy.open(7)
    busy.prefill(7, ids[:80])
    for token in ids[80:]:  # token by token what came as a prompt
        busy.feed(7, token)
        busy.step([0, 7])
    told.append(busy.last_logits(2)[1].clone())
    for one, two in zip([*found, found[0]], told, strict=True):
        assert torch.equal(one, two)


@torch.inference_mode()
def test_a_cached_prefix_gives_the_same_bits(tmp_path: Path) -> None:
    hf_model = tiny("llama", tmp_path)
    decoder, ids = made(hf_model), prompt(hf_model, 120)
    decoder.open(0, ids=ids, salt="a")
    whole = decoder.prefill(0, ids)
    decoder.release(0, ids)
    held = decoder.open(1, SamplingParams(), [*ids[:100], 5, 6], "a")
    assert held >= 64
    decoder.release(1)
    held = decoder.open(2, SamplingParams(), ids, "a")
    assert held and torch.equal(decoder.prefill(2, ids[held:]), whole)


def test_without_it_company_changes_bits(tmp_path: Path) -> None:
    """What the flag is for: else the tests above could not fail."""
    hf_model = tiny("llama", tmp_path)
    decoder, ids = made(hf_model, fixed=False), prompt(hf_model, 60)
    for slot in range(8):
        decoder.open(slot)
    alone = decoder.prefill(0, ids)
    with_others = decoder.prefill_many([(slot, ids) for slot in range(1, 8)])
    stepped = [decoder.prefill(slot, [5]) for slot in (0, 1)]
    assert not (torch.equal(alone, with_others[3]) and torch.equal(*stepped))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "bloom"])
def test_answers_are_those_of_plain_transformers(family: str, tmp_path: Path) -> None:
    hf_model = tiny(family, tmp_path)
    assert max(errors(made(hf_model), reference(hf_model)()).values()) <= 1e-5


def test_products_run_over_numbers_of_rows_that_agree() -> None:
    weight = torch.randn(96, 64, generator=torch.Generator().manual_seed(1))
    sizes = equal_sizes(weight)
    assert sizes == tuple(sorted(sizes, reverse=True))
    x = torch.randn(333, 64, generator=torch.Generator().manual_seed(2))
    whole = torch.cat([functional.linear(part, weight) for part in cut(x, sizes)])[:333]
    for first, last in ((0, 1), (5, 6), (7, 90), (100, 333)):
        own = torch.cat([functional.linear(part, weight) for part in cut(x[first:last], sizes)])[: last - first]
        assert torch.equal(own, whole[first:last])


def test_rows_are_products_of_their_own_where_no_number_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fixed_torch, "_steady", lambda x, weight, size: None)
    assert equal_sizes(torch.ones(8, 8)) == (1,)
    assert [len(part) for part in cut(torch.ones(3, 8), (1,))] == [1, 1, 1]


def test_pieces_are_padded_up_to_the_smallest_number() -> None:
    pieces = cut(torch.ones(91, 2), (64, 16, 4))
    assert [len(piece) for piece in pieces] == [64, 16, 4, 4, 4]
    assert pieces[-1][-1].sum() == 0
