"""The generic tier on a GPU: graphs over transformers' modules, against plain transformers on the CPU."""

from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

from scoring.decoder.decoder import Decoder
from scoring.decoder.generic.cuda_backend import waits_for_the_host
from scoring.decoder.kv_cache import SamplingParams
from scoring.decoder.verify import errors, reference
from scoring.passes.base import TOLERANCE
from scoring.passes.static_decode import StaticDecode
from tests.scoring.decoder.test_adapters import NEW, PROMPTS, generated, greedy, prompt
from tests.scoring.decoder.test_decoder_gpu import run
from tests.scoring.decoder.test_generic import FORCED, SERVED
from tests.tiny_causal import tiny_causal

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore::DeprecationWarning")]  # torch uses its own old parts


@pytest.mark.parametrize("family", [*SERVED, *FORCED])
def test_greedy_tokens_equal_generate_in_every_bucket(family: str) -> None:
    model = tiny_causal(family)
    held = greedy(model)
    prompts = [prompt(model, length) for length in PROMPTS] + [prompt(model, length, 5) for length in PROMPTS]
    expected = [generated(model, ids, NEW) for ids in prompts]
    decoder = Decoder(model.cuda(), slots=7, max_length=128, tier="generic")
    for count in (1, 2, 6):  # one by one, by twos, and padded up to the next size
        produced: list[list[int]] = []
        for start in range(0, len(prompts), count):
            produced += run(decoder, prompts[start : start + count], held)
        assert produced == expected, count


#: Of these torch 2.11's Inductor does not compile every tiny model's grouped products: their layers stay as they are.
EXPERTS = ("deepseek_v3", "mixtral", "qwen3_moe")


@pytest.mark.parametrize("family", ["llama", "olmo", "phi", "deepseek_v3", "mixtral", "qwen3_moe"])
def test_in_16_bits_its_forward_is_captured_and_verified(family: str) -> None:
    model = tiny_causal(family).to(torch.bfloat16).cuda()
    told = reference(model)
    chosen = StaticDecode(slots=3, max_length=128, tier="generic")
    applied = chosen.apply(model)
    assert "without graphs" not in applied.detail
    if family not in EXPERTS:
        assert "layers compiled" in applied.detail
    assert "layers" in applied.detail
    print(applied.detail)
    bound = max(TOLERANCE, 1.5 * told().own_error)
    assert max(errors(chosen.decoder, told()).values()) <= bound


def test_sampled_tokens_equal_the_cpu_decoders() -> None:
    def sampled(model: Any) -> list[list[int]]:
        decoder = Decoder(model, slots=3, max_length=128, tier="generic")
        prompts = [prompt(model, length) for length in PROMPTS]
        return run(decoder, prompts, SamplingParams(1.1, 40, 0.9, 1.2, seed=17))

    model = tiny_causal("olmo")
    assert sampled(model) == sampled(model.cuda())


def test_experts_that_wait_for_the_host_are_launched_without_graphs() -> None:
    model = tiny_causal("mixtral")
    expected = generated(model, prompt(model, 21), NEW)
    model.set_experts_implementation("eager")  # loops over the experts that were chosen
    decoder = Decoder(model.cuda(), slots=2, max_length=128, tier="generic")
    decoder.warm_up()
    assert "without graphs" in decoder.notes[0]
    assert "synchroniz" in decoder.notes[0]
    assert run(decoder, [prompt(model, 21)], greedy(model)) == [expected]


def test_what_waits_is_told_and_the_debug_mode_is_restored() -> None:
    x = torch.ones(3, device="cuda")
    assert waits_for_the_host(lambda: x.add_(1)) == ""
    assert "synchroniz" in waits_for_the_host(lambda: x.sum().item())
    assert torch.cuda.get_sync_debug_mode() == 0
