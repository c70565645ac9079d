"""The text part of multimodal checkpoints in the fused tier, against the whole model of plain transformers."""

import pytest
import torch

from scoring.decoder.adapters.builders import unsupported
from scoring.decoder.decoder import Decoder
from scoring.decoder.verify import errors, reference
from scoring.passes.families import WRAPPED, decoder_tier
from tests.scoring.decoder.test_adapters import TOLERANCE, generated, greedy, plain_logits, prompt
from tests.tiny_causal import CONTEXT, tiny_config, tiny_multimodal

TASK = "text-generation"


@pytest.mark.parametrize("family", WRAPPED)
def test_a_text_is_answered_as_the_whole_model_does(family: str) -> None:
    torch.set_num_threads(1)
    model = tiny_multimodal(family)
    ids, other = prompt(model.get_decoder(), 40), prompt(model.get_decoder(), 3, 1)
    decoder = Decoder(model, slots=3, max_length=1000)
    assert (decoder.tier, decoder.unfit, decoder.max_length) == ("fused", "", CONTEXT)
    for slot, own in ((2, ids), (0, other)):
        decoder.open(slot, greedy(model))
        for piece in (own[:2], own[2:]):
            logits = decoder.prefill(slot, piece)
        wanted = plain_logits(model, own)[-1]
        assert (logits - wanted).norm() <= TOLERANCE * wanted.norm()
    rows = [decoder.sample([2, 0]).tokens()] + [decoder.step([2, 0]).tokens() for _ in range(5)]
    assert [list(row) for row in zip(*rows, strict=True)] == [generated(model, own, 6) for own in (ids, other)]
    assert max(errors(decoder, reference(model)()).values()) <= TOLERANCE


def test_another_type_around_a_known_family_is_not_fused() -> None:
    config = tiny_config("gemma3")
    assert unsupported(config) == ""
    config.model_type = "paligemma"
    assert "not known to pass text to its gemma3_text unchanged" in unsupported(config)
    assert decoder_tier("paligemma").reason == "paligemma: its attention is in both directions"
    assert decoder_tier("aya_vision").tier == "generic"
    assert decoder_tier("gemma3").reason == "fused tier, as the gemma3_text in it"
