"""No secret reaches a bundle: generation refuses it, and does not repeat it."""

import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import mii_azure
from mii_azure.bundle.secret_scan import _PIECE, LONGEST, PATTERNS, leaks, leaks_of, refuse_secrets
from mii_azure.errors import SecretFound

TOKEN = "hf_" + "a" * 34


@pytest.fixture
def model(tiny, tmp_path) -> Path:
    return Path(shutil.copytree(tiny("bert", "question-answering"), tmp_path / "model"))


def test_a_secret_in_a_file_of_the_model_is_refused_and_not_told(model, tmp_path):
    (model / "LICENSE").write_text(f"Terms\nand {TOKEN}\n")
    with pytest.raises(SecretFound, match=r"model/LICENSE, line 2, would hold a Hugging Face token") as caught:
        mii_azure.generate("question-answering", str(model), "my-qa", output=tmp_path / "b")
    assert TOKEN not in f"{caught.value}{caught.value.hint}"
    assert not (tmp_path / "b").exists()


def test_a_secret_in_a_rendered_text_is_refused(tmp_path):
    with pytest.raises(SecretFound, match=r"endpoint\.yml, line 1"):
        refuse_secrets({"endpoint.yml": f"description: {TOKEN}\n"}, {})


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("before", [0, 1, 17, _PIECE - 20, _PIECE - 8, _PIECE // 2 - 20, 3 * _PIECE + 5])
def test_a_secret_is_found_wherever_it_lies_and_in_every_encoding(tmp_path, encoding, before):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(("x" * before + " " + TOKEN + " " * 3000).encode(encoding))
    with pytest.raises(SecretFound, match=r"tokenizer\.json, line 1, would hold a Hugging Face token"):
        refuse_secrets({}, {path.name: path})


def test_the_line_is_told_past_the_first_piece(tmp_path):
    path = tmp_path / "large.json"
    path.write_text("0123456789abcde\n" * (3 * _PIECE // 16) + TOKEN)
    assert [leak.line for leak in leaks_of(path)] == [3 * _PIECE // 16 + 1]


def test_the_header_of_safetensors_is_searched_and_other_weights_are_not(tmp_path):
    whole = tmp_path / "model.safetensors"
    save_file({"a": np.frombuffer(TOKEN.encode(), np.uint8)}, whole)
    (tmp_path / "pytorch_model.bin").write_bytes(TOKEN.encode())
    refuse_secrets({}, {path.name: path for path in tmp_path.iterdir()})
    save_file({"a": np.ones(2, np.float32)}, whole, metadata={"trained_with": TOKEN})
    with pytest.raises(SecretFound, match=r"model\.safetensors, line 1"):
        refuse_secrets({}, {whole.name: whole})


@pytest.mark.parametrize(("kind", "needed", "pattern"), PATTERNS)
def test_every_pattern_has_a_longest_match(kind, needed, pattern):
    """Then a search takes time in proportion to the text: at each place it looks no further than that."""
    assert re._parser.parse(pattern.pattern).getwidth()[1] <= LONGEST


@pytest.mark.parametrize(
    "text",
    [
        "eyJaaaaaaaaaa-",
        "://a",
        "://a:bbb",
        "-----BEGIN ",
        "-----BEGIN A ",
        "AccountKey=",
        "?sig=",
        "sk-",
        "hf_",
        "abc8Q~",
    ],
)
def test_eight_times_the_text_takes_about_eight_times_the_work(text):
    def seconds(size: int) -> float:
        body = (text * (size // len(text) + 1))[:size].encode()
        began = time.process_time()
        for _, _, pattern in PATTERNS:
            for _ in pattern.finditer(body):
                pass
        return time.process_time() - began

    seconds(1000)
    small, large = min(seconds(60_000) for _ in range(3)), seconds(480_000)
    assert large < 30 * max(small, 1e-3), (small, large)  # a square would take 64 times as long


@pytest.mark.parametrize("size", [_PIECE - 19, _PIECE - 20, _PIECE + 3])
def test_the_end_of_a_piece_is_not_the_end_of_a_word(tmp_path, size):
    (tmp_path / "a.json").write_text("x" * (size - 1) + " AKIA" + "A" * 40 + "x" * 5000 + "AKIA" + "A" * 16)
    assert list(leaks_of(tmp_path / "a.json")) == []


@pytest.mark.parametrize("name", ["minilm", "smollm2", "flan-t5", "smiles-albert"])
def test_the_files_of_ordinary_models_hold_none(packaged, name):
    for path in packaged(name).rglob("*"):
        assert list(leaks_of(path)) == [], path


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (TOKEN, "a Hugging Face token"),
        *((f"gh{letter}_" + "a" * 36, "a GitHub token") for letter in "pousr"),
        ("github_pat_" + "a" * 60, "a GitHub token"),
        ("AccountKey=" + "a" * 86 + "==", "an Azure storage key"),
        ("https://a.blob/b?sv=1&sig=" + "a" * 43, "a shared access signature"),
        ("abc8Q~" + "a" * 34, "an Azure client secret"),
        ("eyJ" + "a" * 12 + ".eyJ" + "b" * 12 + "." + "c" * 12, "a bearer token"),
        ("AKIA" + "A" * 16, "an AWS key"),
        ("ASIA" + "A" * 16, "an AWS key"),
        ("sk-" + "a" * 40, "an API key"),
        ("-----BEGIN RSA PRIVATE KEY-----", "a private key"),
        ("https://me:secret@host/", "a password in an address"),
    ],
)
def test_every_kind_is_found(text, kind):
    assert list(leaks(f"x\n{text}\n")) == [(kind, 2)]
    assert kind in {kind for kind, *_ in PATTERNS}
