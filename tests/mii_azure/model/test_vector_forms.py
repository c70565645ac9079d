"""Folders of sparse and late-interaction models on paper: recognised, told by the plan, whole in the bundle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import mii_azure
from local_runner.protocol.openai_requests import embeddings
from mii_azure.checks.check import check
from mii_azure.errors import ConfigMissing, ModelInconsistent, TaskUnsupported
from mii_azure.planning.plan import Plan
from mii_azure.planning.planner import plan
from mii_azure.sdk.trial import guessed_task
from scoring.config import Deployment, find_model_dir
from scoring.errors import InvalidInput
from tests.conftest import Tiny
from tests.retrieval_folders import colbert, multi_vector, pylate, splade, write
from tests.scoring.conftest import Served

EMBED, ALIKE = "sentence-embeddings", "sentence-similarity"
CPU = "Standard_F8s_v2"
MADE: dict[str, tuple[Callable[..., Path], str, str, str]] = {
    "splade": (splade, "fill-mask", "sparse", "sparse: a weight for each token of the vocabulary (log(1 + relu), max)"),
    "multi_vector": (
        multi_vector, "feature-extraction", "multi_vector",
        "a vector for each token, then Dense 32 to 16 (Identity), then Normalize",
    ),
    "pylate": (
        pylate, "feature-extraction", "multi_vector",
        "a vector for each token, queries filled up to 12 tokens, then Dense 32 to 16 (Identity), then Normalize",
    ),
    "colbert": (
        colbert, "feature-extraction", "multi_vector",
        "a vector for each token, queries filled up to 12 tokens, then Dense 32 to 16 (Identity), then Normalize",
    ),
}  # fmt: skip


def planned(folder: Path, task: str = EMBED) -> Plan:
    return plan(task, str(folder), instance_type=CPU)


@pytest.mark.parametrize("name", MADE)
def test_a_folder_is_recognised_and_its_bundle_answers(name: str, tiny: Tiny, tmp_path: Path) -> None:
    make, head, form, told = MADE[name]
    source = make(tiny("bert", head), tmp_path / "m")
    assert guessed_task(str(source)) == EMBED
    found = planned(source)
    assert (found.task_options, found.profile.pooling) == ({"form": form}, told)
    (why,) = [each.reason for each in found.decisions if each.what == "pooling"]
    assert ("artifact.metadata" if name == "colbert" else "modules.json") in why
    bundle = mii_azure.generate(EMBED, str(source), "vectors", output=tmp_path / "b", instance_type=CPU)
    assert told in (bundle / "plan.md").read_text("utf-8")
    assert check(bundle) == []
    deployment = Deployment.read(bundle / "code" / "deployment.json")
    answers = {}
    for task, text in ((EMBED, "Paris"), (ALIKE, {"source_sentence": "Paris", "sentences": ["Berlin", "Paris"]})):
        served = {at: Served(at, task, **deployment.task_options) for at in (find_model_dir(bundle / "code"), source)}
        first, second = (each.ok(text) for each in served.values())
        answers[task] = first
        assert first == second
        for each in served.values():
            each.service.drain(5)
    assert isinstance(answers[EMBED], dict if form == "sparse" else list)


@pytest.mark.parametrize("name", MADE)
def test_tasks_and_routes_without_such_vectors_are_refused_in_words(name: str, tiny: Tiny, tmp_path: Path) -> None:
    make, head, form, _ = MADE[name]
    source = make(tiny("bert", head), tmp_path / "m")
    with pytest.raises(TaskUnsupported, match="sentence-embeddings and sentence-similarity"):
        planned(source, "feature-extraction")
    with pytest.raises(InvalidInput, match="one list of numbers a text") as refused:
        embeddings({"input": "Paris"}, Deployment("vectors", EMBED, task_options={"form": form}))
    assert "/score" in refused.value.hint


def test_sparse_vectors_need_the_head_over_the_vocabulary(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(TaskUnsupported, match="BertModel"):
        planned(splade(tiny("bert", "feature-extraction"), tmp_path / "m"))


@pytest.mark.parametrize(
    ("told", "word"),
    [
        ({"similarity_fn_name": "euclidean"}, "served are dot and cosine"),
        ({"model_type": "CrossEncoder"}, "CrossEncoder"),
    ],
    ids=str,
)
def test_what_is_not_served_is_refused_before_a_bundle(
    told: dict[str, Any], word: str, tiny: Tiny, tmp_path: Path
) -> None:
    with pytest.raises(TaskUnsupported, match=word):
        planned(splade(tiny("bert", "fill-mask"), tmp_path / "m", **told))


def test_values_that_cannot_be_are_refused_in_words(tiny: Tiny, tmp_path: Path) -> None:
    listed = splade(tiny("bert", "fill-mask"), tmp_path / "listed", similarity_fn_name=["dot"])
    with pytest.raises(TaskUnsupported, match="compares by"):
        planned(listed)
    words = pylate(tiny("bert", "feature-extraction"), tmp_path / "words", skiplist_words=["a", ["b"]])
    with pytest.raises(ConfigMissing, match="a word of skiplist_words should be a text"):
        planned(words)
    empty = multi_vector(tiny("bert", "feature-extraction"), tmp_path / "empty")
    write(empty / "modules.json", [])
    with pytest.raises(ConfigMissing, match="names no modules"):
        planned(empty)
    write(empty / "modules.json", None)
    with pytest.raises(ConfigMissing, match=r"modules\.json is null"):
        planned(empty)


def rewritten(file: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the tensors of a safetensors file."""
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def test_projections_that_their_settings_do_not_fit_are_found_in_headers(tiny: Tiny, tmp_path: Path) -> None:
    source = tiny("bert", "feature-extraction")
    with pytest.raises(ModelInconsistent, match=r"linear.weight in model.safetensors .* is 16 x 32, .* 8 x 32"):
        planned(colbert(source, tmp_path / "dim", dim=8))
    folder = pylate(source, tmp_path / "dense")
    weights = folder / "1_Dense" / "model.safetensors"
    rewritten(weights, lambda found: found.update({"linear.bias": torch.zeros(16)}))
    with pytest.raises(ModelInconsistent, match=r"1_Dense/model.safetensors of .* has linear.bias, which"):
        planned(folder)
    rewritten(weights, lambda found: found.clear() or found.update({"weight": torch.zeros(16, 32)}))
    with pytest.raises(ModelInconsistent, match=r"1_Dense/model.safetensors of .* has no linear.weight"):
        planned(folder)


def test_a_head_over_another_vocabulary_is_found_in_headers(tiny: Tiny, tmp_path: Path) -> None:
    folder = splade(tiny("bert", "fill-mask"), tmp_path / "rows")
    weights = folder / "model.safetensors"
    rewritten(weights, lambda found: found.update({"cls.predictions.bias": torch.zeros(7)}))
    with pytest.raises(ModelInconsistent, match=r"cls.predictions.bias of .* is for 7 tokens"):
        planned(folder)
    rewritten(weights, lambda found: [found.pop(name) for name in [*found] if name.startswith("cls.")])
    with pytest.raises(ModelInconsistent, match="no weights of its head over the vocabulary"):
        planned(folder)
