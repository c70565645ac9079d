"""fill-mask against the Hugging Face pipeline."""

from __future__ import annotations

from typing import Any

import pytest

from scoring.errors import LoadError
from tests.conftest import Packaged, Tiny
from tests.scoring.conftest import Serve
from tests.scoring.encoders import ENCODERS, LONG, assert_agree, oracle
from tests.tiny_models import load_tiny

TASK = "fill-mask"
ONE = [
    "Paris is the [MASK] of France.",
    "[MASK]",
    "Anna Müller lives in [MASK] with her brother Paul and an old grey cat; 名前 😀 №5!",
    "The film was [MASK]; the music, however, was terrible! The film was wonderful; the music was not.",
]
SEVERAL = ["The [MASK] is wonderful, the [MASK] is small.", "[MASK] [MASK] [MASK]"]


def own(text: str, mask: str) -> str:
    """The text as the pipeline takes it, with the tokenizer's own mask."""
    return text.replace("[MASK]", mask)


@pytest.mark.parametrize("family", ENCODERS)
def test_served_equals_pipeline(family: str, tiny: Tiny, serve: Serve) -> None:
    served, pipe = serve(tiny(family, TASK), TASK), oracle(tiny(family, TASK), TASK)
    texts = [own(text, pipe.tokenizer.mask_token) for text in ONE]
    assert_agree(served.ok(ONE), pipe(texts))
    assert_agree(served.ok(texts, top_k=3), pipe(texts, top_k=3))
    for text in SEVERAL:
        assert_agree(served.ok(text, top_k=2), pipe(own(text, pipe.tokenizer.mask_token), top_k=2))
    long = f"{ONE[0]} {LONG}"
    expected = pipe(own(long, pipe.tokenizer.mask_token), tokenizer_kwargs={"truncation": True})
    assert_agree(served.ok(long, truncation=True), expected)
    assert served.refused(long)["code"] == "prompt_too_long"


@pytest.mark.parametrize("family", ENCODERS)
def test_batched_equals_single(family: str, tiny: Tiny, serve: Serve) -> None:
    served = serve(tiny(family, TASK), TASK)
    inputs = [*ONE, *SEVERAL]
    assert_agree(served.ok(inputs), [served.ok(text) for text in inputs])


@pytest.mark.parametrize(
    "targets",
    ["the", ["the"], ["the", "is", "the"], ["wonderfully", "名"], ["the", "wonderfully", " "]],
    ids=str,
)
@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta", "albert"])
def test_targets(family: str, targets: str | list[str], tiny: Tiny, serve: Serve) -> None:
    """A word that is no token of its own stands for its first sub-word, as in the pipeline."""
    served, pipe = serve(tiny(family, TASK), TASK), oracle(tiny(family, TASK), TASK)
    for text in (ONE[0], SEVERAL[0]):
        expected = pipe(own(text, pipe.tokenizer.mask_token), targets=targets)
        assert_agree(served.ok(text, targets=targets), expected)


def test_more_fillings_than_words(tiny: Tiny, serve: Serve) -> None:
    served = serve(tiny("bert", TASK), TASK)
    answer = served.ok(ONE[0], top_k=10**6)
    assert len(answer) == served.service.loaded.model.config.vocab_size
    assert sum(filling["score"] for filling in answer) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_every_spelling_of_the_mask(family: str, tiny: Tiny, serve: Serve) -> None:
    served = serve(tiny(family, TASK), TASK)
    assert_agree(served.ok("The <mask> and the [MASK]."), served.ok("The [MASK] and the <mask>."))


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_no_mask(family: str, tiny: Tiny, serve: Serve) -> None:
    served = serve(tiny(family, TASK), TASK)
    mask = served.service.loaded.tokenizer.mask_token
    error = served.refused([ONE[0], "Paris is the capital of France."])
    assert error["code"] == "invalid_input"
    assert error["where"] == "inputs[1]"
    assert mask in error["message"]
    cut = served.refused(LONG + "[MASK]", truncation=True)
    assert "first 128 tokens" in cut["message"]


def test_azure_forms(tiny: Tiny, serve: Serve) -> None:
    folder = tiny("bert", TASK)
    served = serve(folder, TASK)
    model, tokenizer = load_tiny(folder, TASK)
    best = []
    for text in ONE:
        encoded = tokenizer(text, return_tensors="pt")
        at = encoded["input_ids"][0].tolist().index(tokenizer.mask_token_id)
        best.append(tokenizer.decode([int(model(**encoded).logits[0, at].argmax())]).strip())
    assert served({"input_data": ONE}) == (200, best)
    assert served({"input_data": {"input_string": ONE}}) == (200, [{"0": word} for word in best])
    status, (words,) = served({"input_data": [SEVERAL[0]]})
    assert (status, words) == (200, [mask[0]["token_str"] for mask in served.ok(SEVERAL[0])])


def test_a_tokenizer_without_a_mask_is_refused(tiny: Tiny, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.BertTokenizer.mask_token_id", None, raising=False)
    with pytest.raises(LoadError, match="no mask token"):
        serve(tiny("bert", TASK), TASK, unused="so that it is loaded anew")


@pytest.mark.parametrize("parameters", [{"top_k": 0}, {"targets": [""]}, {"targets": [" "]}, {"targets": 3}], ids=str)
def test_bad_parameters(parameters: dict[str, Any], tiny: Tiny, serve: Serve) -> None:
    error = serve(tiny("bert", TASK), TASK).refused(ONE[0], **parameters)
    assert error["code"] == "invalid_parameter"
    assert error["where"].startswith("parameters.")


@pytest.mark.real
def test_a_chemists_model_completes_a_ring(packaged: Packaged, serve: Serve) -> None:
    folder = packaged("smiles-albert")
    served, pipe = serve(folder, TASK), oracle(folder, TASK)
    texts = ["CC(=O)Oc1ccccc1C(=O)[MASK]", "c1cc[MASK]cc1", "CCO"]
    assert_agree(served.ok(texts[:2]), pipe(texts[:2]))
    assert served.ok(texts[1], top_k=1)[0]["token_str"] == "c"
    assert served.refused(texts[2])["code"] == "invalid_input"
