"""Encoders' products in eight bits, in plain torch: choosing, errors on real weights, refusals and the way back."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers

from mii_azure.model.packaged import packaged_model
from scoring.config import Optimisation
from scoring.encoder.ops import Narrow, TorchOps
from scoring.encoder.smoothquant import FORMATS, narrow, narrow_layers
from scoring.encoder.verify import answers, probes, reference, relative_error, verify_encoder
from scoring.errors import PassNotServed
from scoring.model.loaded import Runtime
from scoring.passes.base import TOLERANCE, Applicability, Facts, Hardware, PassRefused
from scoring.passes.fused_encoder import FusedEncoder
from scoring.passes.registry import encoder_passes
from scoring.passes.runner import choose, run_passes
from scoring.passes.w8a8 import W8A8
from tests.scoring.encoder.encoder_models import POST_NORM, covered

BERT = Facts("bert", "BertModel", "encoder", 110_000_000, 220_000_000, 12, 12, 12, 768)
H100 = Hardware("cuda", "NVIDIA H100", (9, 0), 80 << 30, 1, True)
T4 = Hardware("cuda", "Tesla T4", (7, 5), 16 << 30, 1, True)


def timed(*milliseconds: float) -> Callable[..., float]:
    """A clock that says the time in 16 bits, then in eight."""
    told = iter(milliseconds)
    return lambda *_: next(told)


def on(model: Any, *milliseconds: float) -> W8A8:
    """The pass over a model's fused encoder, in plain torch."""
    fused = FusedEncoder(TorchOps())
    fused.apply(model)
    return W8A8(fused, timer=timed(*(milliseconds or (2.0, 1.0))))


@pytest.fixture
def minilm() -> Any:
    return transformers.AutoModel.from_pretrained(packaged_model("minilm"), dtype=torch.float32).eval()


@pytest.mark.parametrize(
    ("facts", "hardware", "objective", "asked", "reason"),
    [
        (BERT, H100, "cost", (), "take: products that follow a norm"),
        (BERT, H100, "latency", (), "for the objective cost"),
        (BERT, H100, "latency", ("w8a8",), "take: products"),
        (BERT, T4, "cost", (), "compute capability 8.0"),
        (replace(BERT, family="albert"), H100, "cost", (), "fused_encoder: albert"),
        (replace(BERT, family="modernbert"), H100, "cost", (), "norms before its products"),
        (replace(BERT, hidden_size=528, heads=33), H100, "cost", (), "528 does not fit"),
        (replace(BERT, kind="decoder"), H100, "cost", (), "builds on fused_encoder"),
    ],
)
def test_decision(facts: Facts, hardware: Hardware, objective: str, asked: tuple[str, ...], reason: str) -> None:
    settings = Optimisation(objective=objective, on=asked)
    passes = encoder_passes(settings)
    told = {each.name: decision for each, decision in choose(passes, facts, hardware, settings)}["w8a8"]
    assert reason in ("take: " if told.take else "") + told.reason


def test_forcing_it_where_it_cannot_be_names_the_reason() -> None:
    settings = Optimisation(on=("w8a8",))
    with pytest.raises(PassNotServed, match=r"Tesla T4 has 7\.5"):
        choose(encoder_passes(settings), BERT, T4, settings)


def test_real_weights_stay_within_the_bound(minilm: Any) -> None:
    told = reference(minilm)
    each = on(minilm)
    exact = verify_encoder(minilm, told)
    applied = each.apply(minilm)
    assert applied.count == 12
    assert "2.00 to 1.00 ms for 32 sequences of 128 tokens" in applied.detail
    assert 1e-3 < each.verify(minilm, told) < each.tolerance
    applied.undo()
    assert verify_encoder(minilm, told) == exact


def test_weighing_channels_keeps_digits_on_real_weights(minilm: Any) -> None:
    told = reference(minilm)
    fused = FusedEncoder(TorchOps())
    fused.apply(minilm)
    stack = fused.stack
    assert stack is not None
    made = {kind: narrow_layers(stack, probes(minilm, seed=1), kind) for kind in FORMATS}
    made["flat"] = [replace(layer, qkv=_flat(layer.qkv), up=_flat(layer.up)) for layer in stack.layers]
    errors = {}
    for kind, stack.layers in made.items():
        errors[kind] = fused.verify(minilm, told)
    assert 1.5 * errors["int8"] < min(errors["flat"], errors["fp8"]), errors


@pytest.mark.parametrize("name", POST_NORM)
def test_every_family_loses_no_more_than_eight_bits_do(name: str) -> None:
    model = covered(name)
    told = reference(model)
    each = on(model)
    each.apply(model)
    # These random weights are fifteen times as large as a model's, and two layers magnify every rounding.
    assert TOLERANCE / 5 < each.verify(model, told) < 0.2


def test_rows_without_padding_and_with_it_agree() -> None:
    model = covered("bert embeddings")
    each = on(model)
    each.apply(model)
    alone, padded = probes(model, lengths=(9,))[0], probes(model, lengths=(9, 23))[1]
    padded["input_ids"][0, :9] = alone["input_ids"][0]
    padded["token_type_ids"][0, :9] = alone["token_type_ids"][0]
    found = answers(model, padded)["last_hidden_state"][0, :9]
    assert relative_error({"x": found}, {"x": answers(model, alone)["last_hidden_state"][0]}) < 1e-2


def test_a_slower_format_is_refused_and_changes_nothing() -> None:
    model = covered("bert fill-mask")
    told = reference(model)
    each = on(model, 1.0, 0.99)
    before = verify_encoder(model, told)
    with pytest.raises(PassRefused, match=r"int8 takes 0\.99 ms against 1\.00 ms in 16 bits"):
        each.apply(model)
    assert verify_encoder(model, told) == before


def test_it_is_refused_without_the_stack_below() -> None:
    with pytest.raises(PassRefused, match="no fused encoder"):
        W8A8(FusedEncoder(), timer=timed(2.0, 1.0)).apply(covered("bert fill-mask"))


def test_beyond_the_bound_it_is_dropped_and_the_stack_serves_on(monkeypatch: pytest.MonkeyPatch) -> None:
    model = covered("bert fill-mask")
    each = on(model)
    told = reference(covered("bert fill-mask"))
    exact = verify_encoder(model, told)
    monkeypatch.setattr(W8A8, "tolerance", 1e-3)
    (record,) = run_passes(model, Runtime(), [(each, Applicability(True, "asked for"))], (), lambda _: told)
    assert record.state == "dropped"
    assert "more than 1.0e-03" in record.reason
    assert verify_encoder(model, told) == exact


@pytest.mark.parametrize("kind", FORMATS)
def test_a_narrow_matrix_is_its_weight_over_smoothed_inputs(kind: str) -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(48, 64), torch.randn(5, 64) * torch.linspace(0.1, 30, 64)
    small = narrow(weight, x.abs().amax(0), FORMATS[kind])
    back = small.values.float() * small.scale[:, None]
    torch.testing.assert_close((x * small.smooth) @ back.t(), x @ weight.t(), rtol=0.2, atol=6.0)
    assert small.values.dtype == FORMATS[kind]
    assert small.scale.shape == (48,)
    assert small.smooth.shape == (64,)


def test_silent_channels_and_rows_are_finite() -> None:
    weight = torch.zeros(4, 32)
    small = narrow(weight, torch.zeros(32), torch.int8)
    assert all(torch.isfinite(part.float()).all() for part in (small.values, small.scale, small.smooth))


def _flat(weight: Any) -> Narrow:
    """A matrix whose channels all weigh the same."""
    return narrow(weight, weight.abs().amax(0), torch.int8)
