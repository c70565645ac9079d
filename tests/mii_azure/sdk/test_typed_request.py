"""What people type becomes the request that they mean, or a sentence about what they may type."""

from pathlib import Path
from typing import Any

import pytest

from mii_azure.errors import SpecError
from mii_azure.sdk.typed_request import json_of, payload_of, read_json


@pytest.mark.parametrize(
    ("task", "words", "payload"),
    [
        ("fill-mask", ["[MASK] is a city."], {"inputs": "[MASK] is a city."}),
        ("text-generation", ["Once", "max_new_tokens=8"], {"inputs": "Once", "parameters": {"max_new_tokens": 8}}),
        ("text-generation", ["inputs=a=b"], {"inputs": "a=b"}),
        ("text-classification", ["Fine.", "Bad."], {"inputs": ["Fine.", "Bad."]}),
        ("text-classification", ["text=a", "text_pair=b"], {"inputs": {"text": "a", "text_pair": "b"}}),
        (
            "question-answering",
            ["question=Who?", "context=It was 1.", "top_k=2"],
            {"inputs": {"question": "Who?", "context": "It was 1."}, "parameters": {"top_k": 2}},
        ),
        (
            "conversational",
            ["Hello,", "you", "system=Be brief.", 'stop=["x"]'],
            {
                "inputs": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello, you"}],
                "parameters": {"stop": ["x"]},
            },
        ),
        (
            "sentence-similarity",
            ["a", "b", "source_sentence=c"],
            {"inputs": {"source_sentence": "c", "sentences": ["a", "b"]}},
        ),
        (
            "text-ranking",
            ["a", "b", "query=Who?", "top_k=1"],
            {"inputs": {"query": "Who?", "texts": ["a", "b"]}, "parameters": {"top_k": 1}},
        ),
        (
            "text-to-image",
            ["A house", "negative_prompt=people", "seed=7"],
            {"inputs": "A house", "parameters": {"negative_prompt": "people", "seed": 7}},
        ),
    ],
)
def test_texts_and_pairs(task: str, words: list[str], payload: dict[str, Any]) -> None:
    assert json_of(words) is None
    assert payload_of(words, task) == payload


def test_a_home_of_nobody_is_no_file() -> None:
    with pytest.raises(SpecError, match="cannot be read"):
        payload_of(["@~nobody-of-that-name hi"], "summarization")


def test_sound_files_stand_for_their_bytes(tmp_path: Path) -> None:
    (tmp_path / "talk.wav").write_bytes(b"RIFF\xff")
    asked = payload_of([f"@{tmp_path / 'talk.wav'}", "language=de"], "automatic-speech-recognition")
    assert asked == {"inputs": "UklGRv8=", "parameters": {"language": "de"}}


def test_files_stand_for_their_text(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("a = b", encoding="utf-8")
    assert payload_of([f"@{tmp_path / 'text'}"], "summarization") == {"inputs": "a = b"}
    asked = payload_of(["question=Who?", f"context=@{tmp_path / 'text'}"], "question-answering")
    assert asked["inputs"]["context"] == "a = b"
    (tmp_path / "json").write_text('\n{"inputs": "x"}', encoding="utf-8")
    assert json_of([f"@{tmp_path / 'json'}"]) == '{"inputs": "x"}'


@pytest.mark.parametrize(
    ("task", "words", "told"),
    [
        ("question-answering", ["Who?"], "question=... context=..."),
        ("question-answering", ["quesion=Who?"], "Did you mean question?"),
        ("text-generation", ["max_tokenz=8", "x"], "text-generation has no max_tokenz"),
        ("text-ranking", ["query=Who?"], "query=... and texts"),
        ("summarization", ["@/nowhere/at/all"], "/nowhere/at/all cannot be read"),
        ("text-generation", ["max_new_tokens=8"], "a text"),
        ("conversational", ["system=x"], "no message"),
        ("forecasting", ["x"], "Send JSON"),
    ],
)
def test_what_is_no_request_of_the_task(task: str, words: list[str], told: str) -> None:
    with pytest.raises(SpecError) as caught:
        payload_of(words, task)
    assert told in str(caught.value)


@pytest.mark.parametrize("text", ['{"inputs": "x"}', ' [{"role": "user"}]', "[1, 2]", "{not json", '["a"'])
def test_what_begins_as_json_is_json(text: str) -> None:
    assert json_of([text]) == text.strip()


def test_broken_json_is_told() -> None:
    for text in ("{not json", "[" * 100_000):
        with pytest.raises(SpecError):
            read_json(text)
