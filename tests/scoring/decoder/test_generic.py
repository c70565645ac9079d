"""The generic tier on a CPU against plain transformers: families without an adapter, and some that have one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from scoring.decoder.adapters.builders import FAMILIES as ADAPTED
from scoring.decoder.decoder import Decoder
from scoring.decoder.generic.compiled import compiled_forwards, layers_with
from scoring.decoder.generic.interface import configs_of
from scoring.decoder.generic.model import GenericModel
from scoring.decoder.generic.probe import Unlike, window_of
from scoring.errors import LoadError
from scoring.passes.base import PassRefused
from scoring.passes.families import GENERIC_DECODE, decoder_tier
from scoring.passes.static_decode import StaticDecode
from tests.conftest import Tiny
from tests.scoring.conftest import Served
from tests.scoring.decoder.as_generate import check_as_generate
from tests.scoring.decoder.company_of_64 import check_company_of_64
from tests.scoring.decoder.test_adapters import plain_logits, prompt
from tests.scoring.generating import PROMPTS, continuation
from tests.scoring.generation.test_details import check
from tests.tiny_causal import tiny_causal
from tools.decoder_tiers import PAGE

#: Of each kind: dense, experts, windows, latent attention, sinks, learned and sinusoidal positions.
SERVED = (
    "afmoe", "apertus", "arcee", "biogpt", "bitnet", "cohere", "ctrl", "deepseek_v2", "deepseek_v3", "dots1",
    "ernie4_5_moe", "exaone4", "flex_olmo", "glm", "glm4_moe", "gpt_bigcode", "granitemoe", "helium",
    "hunyuan_v1_moe", "jetmoe", "llama4_text", "longcat_flash", "minicpm3", "ministral3", "modernbert-decoder",
    "nanochat", "nemotron", "olmo", "olmoe", "persimmon", "phi", "phimoe", "qwen2_moe", "seed_oss", "stablelm",
    "vaultgemma",
)  # fmt: skip
FORCED = ("llama", "gpt2", "gemma2", "gpt_oss", "mistral", "mixtral")
REFUSED = {
    "bert": "neither causal nor a window",
    "codegen": "does not go through transformers' attention interface",
    "deepseek_v32": "DynamicIndexedLayer",
    "diffllama": "attends more than once",
    "inkling_text": "is given position_bias",
}
NEW = 5
CPU = torch.device("cpu")
TASK = "text-generation"


@pytest.fixture(scope="module", params=(*SERVED, *FORCED))
def model(request: pytest.FixtureRequest) -> Iterator[Any]:
    torch.set_num_threads(1)
    yield tiny_causal(request.param)


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral"])
def test_a_step_reads_the_experts_that_a_row_chooses(family: str) -> None:
    """As the fused tier counts them, whose products are the matrices alone."""
    module = tiny_causal(family)
    generic, fused = (Decoder(module, 2, 64, tier=tier).model for tier in ("generic", "fused"))
    vectors = sum(weight.nbytes for weight in module.parameters() if weight.ndim == 1)
    assert generic.step_bytes() == fused.step_bytes() + vectors


def test_none_of_the_families_served_has_an_adapter() -> None:
    assert not set(SERVED) & set(ADAPTED)
    assert all(decoder_tier(family).tier == "generic" for family in SERVED)
    assert all(decoder_tier(family).tier == "fused" for family in ADAPTED)
    assert not set(GENERIC_DECODE.refused) & (set(SERVED) | set(ADAPTED))


def test_plans_refuse_the_types_that_were_found_to_be_refused() -> None:
    """But for one of sound, of which no text is asked, and one whose configuration is GPT-2's."""
    rows = [line.strip("| ").split(" | ") for line in PAGE.read_text(encoding="utf-8").splitlines() if line[:2] == "| "]
    found = {family: outcome for family, outcome, *_ in rows if outcome in ("fused", "generic", "generate")}
    assert len(found) > 170
    wanted = {family: None if outcome == "generate" else outcome for family, outcome in found.items()}
    del wanted["moss_transcribe_diarize"], wanted["gpt-sw3"]
    assert {family: decoder_tier(family).tier for family in wanted} == wanted


def test_tokens_and_logits_are_those_of_generate(model: Any) -> None:
    check_as_generate(Decoder(model, slots=4, max_length=128, tier="generic"), model, model, NEW)


def test_sixty_four_rows_in_a_small_pool_are_each_as_alone(model: Any, lent: Served) -> None:
    check_company_of_64(lent, model, "generic")


def test_the_model_answers_and_is_configured_as_before(model: Any) -> None:
    ids = prompt(model, 12)
    before = plain_logits(model, ids)
    names = [config._attn_implementation for config in configs_of(model)]
    decoder = Decoder(model, slots=1, max_length=64, tier="generic")
    decoder.open(0)
    decoder.prefill(0, ids)
    assert [config._attn_implementation for config in configs_of(model)] == names
    assert torch.equal(plain_logits(model, ids), before)


@pytest.mark.parametrize("family", REFUSED)
def test_what_is_not_standard_is_refused_with_the_reason(family: str) -> None:
    model = tiny_causal(family, **({"is_decoder": False} if family == "bert" else {}))
    with pytest.raises(LoadError, match=REFUSED[family]):
        Decoder(model, slots=1, max_length=64, tier="generic")
    with pytest.raises(PassRefused, match=REFUSED[family]):
        StaticDecode(slots=1, max_length=64).apply(model)


def test_attention_in_both_directions_is_refused_where_a_mask_is_causal() -> None:
    model = tiny_causal("gemma", use_bidirectional_attention=True)
    with pytest.raises(LoadError, match="both directions"):
        Decoder(model, slots=1, max_length=64)


def test_the_pass_serves_and_verifies_it() -> None:
    from scoring.decoder.verify import reference

    model = tiny_causal("gpt_oss")
    told = reference(model)
    chosen = StaticDecode(slots=3, max_length=64, tier="generic")
    applied = chosen.apply(model)
    assert applied.detail.startswith("3 slots")
    assert chosen.decoder is not None
    assert chosen.decoder.tier == "generic"
    assert chosen.verify(model, told) <= 1e-5
    for layer in chosen.decoder.model.layers:
        layer.attention.sinks = None  # a wrong answer is told
    assert chosen.verify(model, told) > 1e-3


def test_requests_are_answered_from_its_slots_as_plain_transformers_does(tiny: Tiny, tmp_path: Path) -> None:
    """Several prompts at once, log-probabilities, a stream, and a prompt again from its cached prefix."""
    tokenizer = AutoTokenizer.from_pretrained(tiny("llama", TASK))
    names = ("pad_token_id", "bos_token_id", "eos_token_id")
    model = tiny_causal("olmoe", vocab_size=len(tokenizer), **{name: getattr(tokenizer, name) for name in names})
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    served = Served(tmp_path, TASK)
    loaded = served.service.loaded
    loaded.runtime.decoder = Decoder(loaded.model, 3, loaded.context_length)
    assert loaded.runtime.decoder.tier == "generic"
    asked = {"max_new_tokens": 6, "return_full_text": False}
    expected = [continuation(tmp_path, TASK, text, max_new_tokens=6) for text in PROMPTS]
    for _ in range(2):
        answers = served.ok(list(PROMPTS), **asked, return_details=True)
        assert [[answer["generated_text"]] for [answer] in answers] == expected
    check(answers[2][0]["details"], tmp_path, PROMPTS[2], 0)
    status, events = served({"inputs": PROMPTS[1], "parameters": asked, "stream": True})
    assert status == 200
    assert len(events) > 2
    assert served.service.drain(20)


def test_masks_are_known_over_the_whole_length() -> None:
    causal = lambda b, h, q, k: k <= q  # noqa: E731
    assert window_of(causal, 1000, CPU) == 0
    assert window_of(lambda b, h, q, k: (k <= q) & (k > q - 300), 1000, CPU) == 300
    assert window_of(lambda b, h, q, k: (k <= q) & (k // 1024 == q // 1024), 1000, CPU) == 0  # one chunk
    for strange in (
        lambda b, h, q, k: (k <= q) & (k // 300 == q // 300),
        lambda b, h, q, k: (k <= q) | (k < 7),
        lambda b, h, q, k: k >= 0,
    ):
        with pytest.raises(Unlike, match="neither causal nor a window"):
            window_of(strange, 1000, CPU)


def test_layers_are_found_once_though_one_holds_a_list_of_attentions() -> None:
    hf_model = tiny_causal("longcat_flash")
    model = Decoder(hf_model, slots=1, max_length=64, tier="generic").model
    assert isinstance(model, GenericModel)
    assert layers_with(hf_model, model.places) == list(hf_model.model.layers)
    assert len(model.places) == 2 * len(hf_model.model.layers)


def test_layers_that_a_compiler_traced_answer_alike_and_are_left_as_they_were() -> None:
    hf_model = tiny_causal("llama")
    model = Decoder(hf_model, slots=1, max_length=64, tier="generic").model
    assert isinstance(model, GenericModel)

    def logits() -> torch.Tensor:
        tokens = torch.arange(7) + 1
        return model.forward(tokens, tokens - 1, tokens[-1:] - 1, lambda index, q, k, v: q.flatten(1))

    plain = logits()
    model.compiled = compiled_forwards(layers_with(hf_model, model.places), "eager")
    try:
        assert torch.equal(logits(), plain)
    finally:
        torch.compiler.reset()
    assert not any("forward" in vars(layer) for layer in hf_model.model.layers)
