"""Models that rank, before they are loaded: labels, what the folder says of its scores, what a bundle keeps of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import mii_azure
from mii_azure.errors import ConfigMissing, TaskUnsupported
from mii_azure.model.folder import files_to_copy
from scoring.sentence.ranker import FORM, JUDGES
from tests.conftest import Tiny
from tests.scoring.encoders import random_model

TASK = "text-ranking"


def test_a_decoder_is_planned_as_what_reads_a_pair_once(tiny: Tiny) -> None:
    found = mii_azure.plan(TASK, str(tiny("qwen3", "conversational")))
    assert found.task_options == {FORM: JUDGES}
    assert (found.profile.kind, found.profile.kv_bytes_per_token, found.kv_cache_tokens) == ("encoder", 0, 0)


def test_a_cross_encoder_has_one_label_and_needs_no_option(tiny: Tiny) -> None:
    assert mii_azure.plan(TASK, str(tiny("bert", TASK))).task_options == {}
    with pytest.raises(TaskUnsupported, match="3 labels") as refused:
        mii_azure.plan(TASK, str(tiny("bert", "text-classification")))
    assert "text-classification" in refused.value.hint


@pytest.mark.parametrize(
    ("files", "error", "named"),
    [
        ({"sentence_bert_config.json": {"transformer_task": "fill-mask"}}, TaskUnsupported, "fill-mask"),
        ({"sentence_bert_config.json": {"max_seq_length": 0}}, ConfigMissing, "max_seq_length"),
        ({"sentence_bert_config.json": {"processing_kwargs": {"text": {}}}}, TaskUnsupported, "processing_kwargs"),
        ({"config_sentence_transformers.json": {"activation_fn": "mine.Own"}}, TaskUnsupported, "mine.Own"),
        ({"config_sentence_transformers.json": {"model_type": "SentenceTransformer"}}, TaskUnsupported, "CrossEncoder"),
        ({"modules.json": [{"path": "", "type": "sentence_transformers.models.Pooling"}]}, TaskUnsupported, "Pooling"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_not_served_is_named(
    files: dict[str, object], error: type[Exception], named: str, tiny: Tiny, tmp_path: Path
) -> None:
    folder = random_model(tiny("bert", TASK), TASK, tmp_path / "m", num_labels=1)
    alone = [{"path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}]
    for name, content in ({"modules.json": alone} | files).items():
        (folder / name).write_text(json.dumps(content))
    with pytest.raises(error, match=named):
        mii_azure.plan(TASK, str(folder))


def test_a_bundle_keeps_what_names_the_judged_tokens(tiny: Tiny, tmp_path: Path) -> None:
    folder = random_model(tiny("bert", TASK), TASK, tmp_path / "m", num_labels=1)
    kinds = (
        ("base.modules.transformer.Transformer", ""),
        ("cross_encoder.modules.logit_score.LogitScore", "1_LogitScore"),
    )
    (folder / "modules.json").write_text(
        json.dumps([{"path": path, "type": f"sentence_transformers.{kind}"} for kind, path in kinds])
    )
    (folder / "1_LogitScore").mkdir()
    (folder / "1_LogitScore" / "config.json").write_text('{"true_token_id": 1, "false_token_id": 2}')
    (folder / "config_sentence_transformers.json").write_text("{}")
    names = {path.as_posix() for path in files_to_copy(folder)}
    assert {"modules.json", "1_LogitScore/config.json", "config_sentence_transformers.json"} <= names
