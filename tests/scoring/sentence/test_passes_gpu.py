"""Sentence-transformers folders on a CUDA device, under the passes that a start takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from scoring.api.service import Service
from scoring.config import Deployment
from scoring.model.loader import load_with
from scoring.passes.registry import catalogue
from scoring.schema.registry import task_class
from tests.conftest import Tiny
from tests.sentence_folders import HIDDEN, NORMALIZE, Reference, dense, sentence_folder

TASK = "sentence-embeddings"
TEXTS = ["Paris", "Anna lives in Zürich with her brother Paul and an old grey cat.", "The river Aare runs. " * 4]
FAMILIES = {"bert": TASK, "qwen3": "text-generation", "gemma3_text": "text-generation"}

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize(("dtype", "least"), [("float32", 0.99999), ("bfloat16", 0.99)])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_start_with_passes_answers_as_the_reference(
    family: str, dtype: str, least: float, tiny: Tiny, tmp_path: Path
) -> None:
    layers = [dense(2 * HIDDEN, 24), NORMALIZE]
    model = tiny(family, FAMILIES[family])
    folder = sentence_folder(model, tmp_path / "m", pooling=["lasttoken", "mean"], layers=layers)
    deployment = Deployment("x", TASK, dtype=dtype)
    loaded, chosen = load_with(catalogue(deployment), deployment, folder)
    service = Service(deployment, loaded, task_class(TASK)(loaded, TASK), {})
    service.start(chosen)
    reply = service.answer(json.dumps({"inputs": TEXTS}))
    service.drain(5)
    assert isinstance(reply.body, bytes)
    wanted = torch.stack([Reference(folder).encode(text) for text in TEXTS])
    found = torch.tensor(json.loads(reply.body))
    assert torch.cosine_similarity(found, wanted).min() > least, [record.to_dict() for record in service.records]
