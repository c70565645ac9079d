"""sentence-similarity: cosines of the vectors that sentence-embeddings answers with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import Tiny
from tests.scoring.conftest import Serve
from tests.scoring.encoders import LONG, TEXTS, assert_agree
from tests.sentence_folders import HIDDEN, NORMALIZE, Reference, dense, sentence_folder

TASK = "sentence-similarity"
SOURCE = "Anna lives in Zürich."
BODY = {"source_sentence": SOURCE, "sentences": TEXTS}


def cosines(vectors: Any) -> list[float]:
    first, *others = (torch.as_tensor(vector) for vector in vectors)
    return [float(torch.cosine_similarity(first, other, dim=0)) for other in others]


def test_a_folder_is_followed(tiny: Tiny, serve: Serve, tmp_path: Path) -> None:
    """Pooling, Dense and the default prompt, as sentence-transformers has them."""
    prompts = {"prompts": {"query": "query: "}, "default_prompt_name": "query"}
    layers = [dense(HIDDEN, 24), NORMALIZE]
    folder = sentence_folder(tiny("bert", TASK), tmp_path / "m", pooling="cls", layers=layers, prompts=prompts)
    reference = Reference(folder)
    expected = cosines([reference.encode(text) for text in (SOURCE, *TEXTS)])
    assert_agree(serve(folder, TASK).ok(BODY), expected)


def test_without_a_folder_the_mean_is_compared(tiny: Tiny, serve: Serve) -> None:
    vectors = serve(tiny("bert", TASK), "sentence-embeddings").ok([SOURCE, *TEXTS], normalize=False)
    served = serve(tiny("bert", TASK), TASK)
    assert_agree(served.ok(BODY), cosines(vectors))
    assert_agree(served.ok([BODY, {**BODY, "sentences": TEXTS[:1]}]), [cosines(vectors), cosines(vectors[:2])])
    assert_agree(served.ok(BODY, dimensions=4), cosines([vector[:4] for vector in vectors]))


def test_long_sentences_are_refused_by_place_or_cut(tiny: Tiny, serve: Serve) -> None:
    served = serve(tiny("bert", TASK), TASK)
    body = {"source_sentence": SOURCE, "sentences": ["short", LONG]}
    assert served.refused(body)["where"] == "inputs[0].sentences[1]"
    assert served.refused({"source_sentence": LONG, "sentences": ["a"]})["where"] == "inputs[0].source_sentence"
    assert len(served.ok(body, truncate=True)) == 2


@pytest.mark.parametrize(
    ("inputs", "parameters"),
    [
        ("a text", {}),
        ({"source_sentence": "a"}, {}),
        ({"source_sentence": "a", "sentences": []}, {}),
        ({"source_sentence": "a", "sentences": [""]}, {}),
        (BODY, {"pooling": "none"}),
        (BODY, {"encoding_format": "base64"}),
        (BODY, {"dimensions": 1000}),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_requests(inputs: Any, parameters: dict[str, Any], tiny: Tiny, serve: Serve) -> None:
    assert serve(tiny("bert", TASK), TASK).refused(inputs, **parameters)["where"]
