"""Answers as people see them: every form that a task answers in, and anything else as JSON."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mii_azure.cli.answers import show_answer
from mii_azure.errors import NotWritten

IMAGE = {"prompt": "p", "generated_image": base64.b64encode(b"png").decode(), "seed": 7, "nsfw_content_detected": None}
SPAN = {"start": 1, "end": 4}


def shown(answer: Any, capsys: pytest.CaptureFixture[str], folder: Path = Path()) -> str:
    stream = io.StringIO()
    show_answer(Console(file=stream), answer, folder)
    return capsys.readouterr().out + stream.getvalue()


@pytest.mark.parametrize(
    ("answer", "lines"),
    [
        ([{"generated_text": "Paris.\n"}], ["Paris."]),
        ([{"generated_text": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "Yes."}]}], ["Yes."]),
        ([{"summary_text": "Short"}, {"summary_text": "Shorter"}], ["Short", "Shorter"]),
        ({"answer": "Ann", "score": 0.5, **SPAN}, ["answer  score   start  end", "Ann     0.5000  1      4"]),
        ([{"label": "A", "score": 1.0}], ["label  score", "A      1.0000"]),
        ([[{"label": "A", "score": 1.0}], [{"label": "B", "score": 0.5}]], ["2."]),
        ([{"entity_group": "PER", "word": "John", "score": 0.9, **SPAN}], ["John  PER           0.9000  1      4"]),
        ([{"token_str": "x", "token": 1, "score": 0.1, "sequence": "a x"}], ["x          0.1000  a x"]),
        ([[0.6, 0.8], [0.6, 0.8]], ["1. 2 numbers, length 1.000: 0.6000, 0.8000", "2       1.000  1.000"]),
        ([{"index": 1, "score": 0.5}], ["index  score", "1      0.5000"]),
        ([0.0] * 6, ["1. 6 numbers, length 0.000: 0.0000, 0.0000, 0.0000, 0.0000, ..."]),
    ],
)
def test_forms(answer: Any, lines: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    written = shown(answer, capsys).splitlines()
    assert [line for line in lines if line not in written] == []


@pytest.mark.parametrize(
    "answer",
    [[], None, {"echo": 1}, ["a"], [{"generated_text": "", "tool_calls": [{"id": "1"}]}], [{"label": "A"}, 3], [[]]],
)
def test_anything_else_is_json(answer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads(shown(answer, capsys)) == answer


def test_images_are_files_and_replace_none(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for _ in range(2):
        shown([IMAGE], capsys, tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == {
        "image-7.png": b"png",
        "image-7-2.png": b"png",
    }
    (tmp_path / "file").touch()
    with pytest.raises(NotWritten):
        shown([IMAGE], capsys, tmp_path / "file")
    with pytest.raises(NotWritten):
        shown([{**IMAGE, "generated_image": "?"}], capsys, tmp_path)
