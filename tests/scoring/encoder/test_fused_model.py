"""The fused encoder in plain torch: packing, masks, undo and refusals, against plain transformers."""

from typing import Any

import pytest
import torch

from scoring.encoder.verify import answers, probes, reference, relative_error
from scoring.passes.base import PassRefused
from scoring.passes.fused_encoder import FusedEncoder
from tests.scoring.encoder.encoder_models import COVERED, DEBERTA, MODERN, SIZES, covered, make

FUSED = FusedEncoder()


@pytest.mark.parametrize("name", COVERED)
def test_same_answers_and_undo(name: str) -> None:
    model = covered(name)
    told = reference(model)
    applied = FUSED.apply(model)
    assert applied.count == 2
    assert 0 < FUSED.verify(model, told) < 2e-5  # not zero: another computation than plain transformers'
    applied.undo()
    assert FUSED.verify(model, told) < 1e-6


@pytest.mark.parametrize(
    "name", ["bert fill-mask", "roberta tokens", "deberta-v2 tokens", "deberta-v2 unshared", "modernbert fill-mask"]
)
def test_masked_tokens_anywhere(name: str) -> None:
    model = covered(name)
    (batch, *_) = probes(model, lengths=(20,))
    batch["attention_mask"][:, [0, 7, 8, 19]] = 0
    told = reference(model, [batch])
    FUSED.apply(model)
    assert FUSED.verify(model, told) < 2e-5


def test_padding_token_inside_the_text_takes_no_position() -> None:
    model = covered("roberta tokens")
    (batch, *_) = probes(model, lengths=(20,))
    batch["input_ids"][:, 4:6] = model.config.pad_token_id
    told = reference(model, [batch])
    FUSED.apply(model)
    assert FUSED.verify(model, told) < 2e-5


def test_without_mask_and_types() -> None:
    model = covered("bert embeddings")
    ids = torch.randint(5, 99, (2, 12))
    plain = model(input_ids=ids).last_hidden_state
    FUSED.apply(model)
    torch.testing.assert_close(model(input_ids=ids).last_hidden_state, plain, rtol=1e-4, atol=1e-4)


def test_padding_is_zero() -> None:
    model = covered("bert embeddings")
    _, batch = probes(model)
    FUSED.apply(model)
    with torch.inference_mode():
        hidden = model(**batch).last_hidden_state
    assert (hidden[batch["attention_mask"] == 0] == 0).all()


def test_what_it_does_not_compute_runs_plainly() -> None:
    model = covered("bert embeddings")
    ids = torch.randint(5, 99, (1, 12))
    positions = torch.arange(12)[None].flip(1)
    wanted = model(input_ids=ids, position_ids=positions).last_hidden_state
    FUSED.apply(model)
    assert torch.equal(model(input_ids=ids, position_ids=positions).last_hidden_state, wanted)
    assert len(model(input_ids=ids, output_hidden_states=True).hidden_states) == 3
    assert isinstance(model(input_ids=ids, return_dict=False), tuple)


@pytest.mark.parametrize(
    ("architecture", "config", "reason"),
    [
        ("BertModel", SIZES | {"hidden_act": "gelu_new"}, "gelu_new"),
        ("BertModel", SIZES | {"is_decoder": True}, "decoder"),
        ("ElectraModel", SIZES | {"embedding_size": 32}, "projected"),
        ("AlbertModel", SIZES, "albert"),
        ("DebertaV2Model", DEBERTA | {"relative_attention": False}, "relative attention"),
        ("DebertaV2Model", DEBERTA | {"conv_kernel_size": 3, "conv_act": "gelu"}, "convolution"),
        ("ModernBertModel", MODERN | {"hidden_activation": "silu"}, "silu"),
        ("ModernBertModel", MODERN | {"num_attention_heads": 4}, "less than 32"),
    ],
)
def test_variants_are_refused_unchanged(architecture: str, config: dict[str, Any], reason: str) -> None:
    model = make(architecture, config)
    with pytest.raises(PassRefused, match=reason):
        FUSED.apply(model)
    assert "forward" not in vars(getattr(model, model.base_model_prefix, model))


@pytest.mark.parametrize("change", ["encoder.layer.1.attention.self.key.weight", "embeddings.LayerNorm.bias"])
def test_verification_sees_a_changed_weight(change: str) -> None:
    model = covered("bert embeddings")
    told = reference(model)
    FUSED.apply(model)
    with torch.no_grad():
        model.get_parameter(change).mul_(1.5).add_(0.1)
    broken = FusedEncoder()
    broken.apply(model)
    assert broken.verify(model, told) > 5e-3


def test_verification_fails_on_nan() -> None:
    model = covered("bert embeddings")
    told = reference(model)
    with torch.no_grad():
        model.get_parameter("embeddings.LayerNorm.bias")[0] = float("nan")
    error = FUSED.verify(model, told)
    assert error != error


def test_an_output_that_is_missing_is_an_error() -> None:
    error = relative_error({}, {"logits": torch.ones(1)})
    assert error != error


def test_reference_is_fp32_of_a_half_model() -> None:
    model = covered("bert embeddings").to(torch.bfloat16)
    told = reference(model)
    (batch, wanted), *_ = told()
    assert 0 < relative_error(answers(model, batch), wanted) < 0.1
    assert model.dtype == torch.bfloat16


def test_distances_beyond_the_farthest_are_one() -> None:
    model = make("MPNetModel", SIZES | {"pad_token_id": 1, "max_position_embeddings": 202})
    told = reference(model, probes(model, lengths=(200, 140, 3)))
    FUSED.apply(model)
    assert 0 < FUSED.verify(model, told) < 2e-5
