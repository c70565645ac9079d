"""Layers that see a window on a GPU: every kernel reads its group's table, and answers are those of a CPU."""

from copy import deepcopy
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

from scoring.decoder.block_pool import BLOCK
from scoring.decoder.decoder import Decoder
from scoring.decoder.layer_groups import most_of
from tests.scoring.decoder.test_adapters import prompt
from tests.scoring.decoder.test_layer_groups import MIXED, WINDOW, all_together, mixed, prefill, steps
from tests.scoring.decoder.test_paged_cache import check_greedy

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("family", MIXED)
def test_windowed_layers_keep_their_window_and_tokens_are_those_of_transformers(family: str) -> None:
    """In pieces, steps of two rows and of four, drafts and after a shared prefix, all past several windows."""
    plain = mixed(family)
    decoder = Decoder(deepcopy(plain).cuda(), 5, 1024, tokens=24 * BLOCK, drafts=True)
    groups, pool = decoder.groups, decoder.tables.pool
    windowed = groups.count - groups.windows.count(0)
    assert windowed and groups.windows.count(0)
    ids, other = prompt(plain, 500), prompt(plain, 60, 7)
    decoder.open(1, None, ids, "salt")
    decoder.open(3)
    prefill(decoder, 1, ids)
    decoder.prefill(3, other)
    answers = steps(decoder, [1, 3], 40)
    assert pool.used <= groups.windows.count(0) * (9 + 2) + windowed * 2 * most_of(WINDOW, 1)
    assert decoder.open(2, None, [*ids, 5, 6], "salt") == 500
    decoder.prefill(2, [5, 6])
    decoder.open(0)
    decoder.prefill(0, other[:30])
    third, fourth = decoder.sample([2, 0]).tokens()
    rows: list[list[int]] = [[], [], [third], [fourth]]
    for _ in range(40):
        for row, token in zip(rows, decoder.step([1, 3, 2, 0]).tokens(), strict=True):
            row.append(token)
    told = [answers[0] + rows[0], answers[1] + rows[1], rows[2], rows[3]]
    for begun, answer in zip((ids, other, [*ids, 5, 6], other[:30]), told, strict=True):
        check_greedy(plain, begun, answer)
    drafted = told[0]
    while len(drafted) < 120:
        drafted += decoder.speculate([(1, [drafted[-1], 7, 8, 9])]).runs()[0]
    check_greedy(plain, ids, drafted)


@pytest.mark.parametrize(("fixed", "narrow"), [(False, False), (False, True), (True, False)])
@torch.inference_mode()
def test_answers_are_the_bits_of_one_group(fixed: bool, narrow: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = mixed("gemma3_text")
    model, ids, told = deepcopy(plain).cuda(), prompt(plain, 400), []
    for grouped in (True, False):
        if not grouped:
            monkeypatch.setattr("scoring.decoder.decoder.group_layers", all_together)
        decoder = Decoder(model, 2, 1024, tokens=24 * BLOCK, fixed=fixed, narrow=narrow)
        assert (decoder.groups.count > 1) == grouped
        found: list[Any] = []
        decoder.open(1)
        prefill(decoder, 1, ids, 150)
        found += decoder.sample([1]).tokens()
        for _ in range(80):
            found += decoder.step([1]).tokens()
        told.append((found, decoder.last_logits(1).clone()))
    assert told[0][0] == told[1][0]
    assert torch.equal(told[0][1], told[1][1])
