"""Heads of 256 and of 512, and layers that share keys and values, on a GPU: against plain transformers on the CPU."""

from copy import deepcopy
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

from scoring.decoder.block_pool import BLOCK
from scoring.decoder.decoder import Decoder
from scoring.decoder.verify import errors, reference
from scoring.passes.base import TOLERANCE
from scoring.passes.static_decode import StaticDecode
from tests.scoring.conftest import Served
from tests.scoring.decoder.company_of_64 import check_company_of_64
from tests.scoring.decoder.gemma4 import SIZES, gemma4
from tests.scoring.decoder.test_adapters import NEW, PROMPTS, generated, greedy, prompt
from tests.scoring.decoder.test_decoder_gpu import run
from tests.scoring.decoder.test_layer_groups import prefill
from tests.scoring.decoder.test_paged_cache import check_greedy, steps

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore::DeprecationWarning")]  # torch uses its own old parts


@pytest.fixture(scope="module", params=SIZES)
def plain(request: pytest.FixtureRequest) -> Any:
    """Model on the CPU."""
    return gemma4(request.param)


def test_greedy_tokens_equal_generate_in_every_bucket(plain: Any) -> None:
    prompts = [prompt(plain, length, seed) for seed in (0, 5) for length in PROMPTS]
    expected = [generated(plain, ids, NEW) for ids in prompts]
    decoder = Decoder(deepcopy(plain).cuda(), slots=7, max_length=128)
    assert decoder.tier == "generic" and decoder.state.overlaid
    for count in (1, 2, 6):
        produced: list[list[int]] = []
        for start in range(0, len(prompts), count):
            produced += run(decoder, prompts[start : start + count], greedy(plain))
        assert produced == expected, count


def test_sixty_four_rows_in_a_small_pool_are_each_as_alone(plain: Any, lent: Served) -> None:
    """Shuffled, some preempted, some after a shared prefix."""
    check_company_of_64(lent, deepcopy(plain).cuda(), "generic", plain)


def test_windows_are_given_up_prefixes_shared_and_drafts_taken(plain: Any) -> None:
    decoder = Decoder(deepcopy(plain).cuda(), 4, 1024, tokens=22 * BLOCK, drafts=True)
    ids, other = prompt(plain, 400), prompt(plain, 30, 7)
    decoder.open(1, None, ids, "salt")
    prefill(decoder, 1, ids)
    decoder.open(3)
    decoder.prefill(3, other)
    answer, beside = steps(decoder, [1, 3], 40)
    check_greedy(plain, ids, answer)
    check_greedy(plain, other, beside)
    full = decoder.groups.windows.count(0)
    assert len(decoder.tables.blocks(1)) <= full * 7 + (decoder.groups.count - full) * 3
    known = [*ids, *answer[:-1]]
    drafted = answer[-1:]
    while len(drafted) < 20:
        drafted += decoder.speculate([(1, [drafted[-1], 7, 8, 9])]).runs()[0]
    check_greedy(plain, known, drafted)
    decoder.release(1, [*known, *drafted[:-1]])
    assert decoder.open(0, None, [*known, 5, 6], "salt") >= len(known)
    held = decoder.lengths[0]
    decoder.prefill(0, [*known, 5, 6][held:])
    check_greedy(plain, [*known, 5, 6], steps(decoder, [0], 5)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_16_bits_it_is_captured_and_verified(plain: Any, dtype: torch.dtype) -> None:
    """By the tiles of keys and queries that 16 bits have."""
    model = deepcopy(plain).to(dtype).cuda()
    told = reference(model)
    chosen = StaticDecode(slots=3, max_length=128)
    applied = chosen.apply(model)
    print(applied.detail)
    assert "3 slots" in applied.detail and "without graphs" not in applied.detail
    bound = max(TOLERANCE, 1.5 * told().own_error)
    assert max(errors(chosen.decoder, told()).values()) <= bound


def test_a_narrow_cache_holds_both_shapes(plain: Any) -> None:
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("a cache in FP8 needs compute capability 8.9")
    model = deepcopy(plain).cuda()
    told = reference(model)()
    assert max(errors(Decoder(model, 3, 128), told).values()) < 1e-3
    found = errors(Decoder(model, 3, 128, narrow=True), told)
    assert 1e-3 < max(found.values()) < 0.4  # of random weights


def test_the_cache_takes_no_more_memory_than_its_blocks(plain: Any) -> None:
    model = deepcopy(plain).cuda()
    held = torch.cuda.memory_allocated()
    decoder = Decoder(model, 4, 1024, tokens=4 * 1024)
    assert sum(each.nbytes for each in decoder.state.memory) == decoder.state.bytes()
    assert decoder.state.bytes() <= torch.cuda.memory_allocated() - held
