"""`--batch-invariant` as a pass and as a service: decided on paper, verified at load, dropped with its reason."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from scoring.config import Limits, Optimisation
from scoring.decoder import company
from scoring.decoder.decoder import Decoder
from scoring.decoder.verify import reference
from scoring.engine.batch_invariance import ALONE
from scoring.model.loaded import Runtime
from scoring.passes.base import LATENCY, Applicability, Hardware, PassRefused
from scoring.passes.registry import decoder_passes
from scoring.passes.runner import run_passes
from scoring.passes.static_decode import StaticDecode
from scoring.passes.tensor_parallel import TensorParallel
from tests.scoring.decoder.test_adapters import tiny
from tests.scoring.passes.test_static_decode import FACTS, H100


def invariant(**options: Any) -> StaticDecode:
    made = StaticDecode(slots=4, max_length=64, **options)
    made.invariant = True
    return made


def test_it_is_the_fused_tiers_alone_on_one_device() -> None:
    assert invariant().applies(FACTS, H100, LATENCY).take
    reasons = {
        "generic tier": invariant().applies(replace(FACTS, family="olmoe"), H100, LATENCY),
        "several GPUs": invariant(slicing=TensorParallel(2)).applies(FACTS, replace(H100, gpus=2), LATENCY),
        "who else uses them": invariant().applies(
            replace(FACTS, adapters=2), Hardware("cpu", "cpu", (0, 0), 0, 0, False), LATENCY
        ),
    }
    for told, decision in reasons.items():
        assert not decision.take
        assert told in decision.reason
        assert decision.reason.endswith("with batch_invariant rows run one at a time")


def test_nothing_that_varies_with_the_batch_is_put_on_top() -> None:
    *_, decode, narrow = decoder_passes(Limits(batch_invariant=True), Optimisation())
    assert isinstance(decode, StaticDecode)
    assert decode.invariant
    large = replace(FACTS, weight_bytes=13_400_000_000)
    assert "other weights" in narrow.applies(large, H100, LATENCY).reason


def test_it_is_verified_and_dropped_where_it_does_not_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("qwen2", tmp_path)
    told, chosen = reference(model), invariant(speculation="auto")
    applied = chosen.apply(model)
    assert "the same bits alone and in company" in applied.detail
    assert chosen.decoder is not None
    assert not chosen.decoder.speculates
    assert chosen.verify(model, told) <= 1e-5
    answer, torn = company._answer, iter(range(100))

    def moved(*given: Any) -> list[torch.Tensor]:
        return [logits + (1e-7 if next(torn) > 20 else 0.0) for logits in answer(*given)]

    monkeypatch.setattr(company, "_answer", moved)
    with pytest.raises(PassRefused, match=r"differs from the same among \d rows: with batch_invariant rows run one"):
        invariant().apply(model)


def test_a_prepared_bundles_start_compares_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a verification elsewhere found says nothing of the products that this start chose."""
    monkeypatch.setattr(company, "difference", lambda decoder, config: "an answer differs")
    chosen, runtime = invariant(), Runtime()
    records = run_passes(
        tiny("qwen2", tmp_path), runtime, [(chosen, Applicability(True, ""))], (), reference, {"static_decode": 1e-6}
    )
    assert [record.state for record in records] == ["refused"]
    assert "with batch_invariant rows run one at a time" in records[0].reason
    assert chosen.decoder is None and runtime.decoder is None


def test_no_more_rows_are_tried_than_the_cache_holds(tmp_path: Path) -> None:
    model = tiny("qwen2", tmp_path)
    assert company.difference(Decoder(model, 4, 64, tokens=128, fixed=True), model.config) == ""


def test_prompts_of_several_spans_are_tried_where_there_are_spans(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over an edge in steps of few rows and of many, whole and stepped, and once in a step of long rows."""
    model = tiny("qwen2", tmp_path)
    decoder = Decoder(model, 3, 128, fixed=True)
    launcher = SimpleNamespace(
        keys=16, splits=lambda rows: 8 if rows < 3 else 1, is_far=lambda rows, longest: rows > 2 and longest > 64
    )
    monkeypatch.setattr(company, "_launcher", lambda decoder: launcher)
    answer, tried = company._answer, []

    def told(decoder: Decoder, ids: Any, rows: int, piece: int) -> list[torch.Tensor]:
        tried.append((len(ids[0]), rows))
        return [logits + (1e-7 if tried[-1] == torn else 0.0) for logits in answer(decoder, ids, rows, piece)]

    monkeypatch.setattr(company, "_answer", told)
    torn = (0, 0)
    assert company.difference(decoder, model.config) == ""
    assert {(31, 1), (31, 2), (31, 3), (49, 1), (65, 3)} <= set(tried)
    for torn in ((31, 2), (31, 3), (65, 3)):
        assert f"{torn[0]} tokens, an answer alone differs" in company.difference(decoder, model.config)


def test_plain_sums_do_not_pass_the_verification(tmp_path: Path) -> None:
    model = tiny("qwen2", tmp_path)
    chosen = StaticDecode(slots=4, max_length=64)
    chosen.apply(model)
    assert chosen.decoder is not None
    assert company.difference(chosen.decoder, model.config)


def test_rows_beside_the_slots_run_alone() -> None:
    assert ALONE.key(5) != ALONE.key(5)
    assert ALONE.to_dict()["rows"] == "one row at a time"
