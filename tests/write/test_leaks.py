"""No secret reaches a bundle: generation refuses it, and does not repeat it."""

import shutil
from pathlib import Path

import pytest

import mii_azure
from mii_azure.errors import SecretFound
from mii_azure.leaks import LARGEST_TEXT, PATTERNS, leaks, refuse_secrets

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


def test_weights_and_what_is_no_text_are_passed_over(tmp_path):
    (tmp_path / "large.json").write_text(TOKEN + " " * LARGEST_TEXT)
    (tmp_path / "binary").write_bytes(b"\xff\xfe" + TOKEN.encode())
    refuse_secrets({}, {path.name: path for path in tmp_path.iterdir()})


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (TOKEN, "a Hugging Face token"),
        ("ghp_" + "a" * 36, "a GitHub token"),
        ("AccountKey=" + "a" * 86 + "==", "an Azure storage key"),
        ("https://a.blob/b?sv=1&sig=" + "a" * 43, "a shared access signature"),
        ("abc8Q~" + "a" * 34, "an Azure client secret"),
        ("eyJ" + "a" * 12 + ".eyJ" + "b" * 12 + "." + "c" * 12, "a bearer token"),
        ("AKIA" + "A" * 16, "an AWS key"),
        ("sk-" + "a" * 40, "an API key"),
        ("-----BEGIN RSA PRIVATE KEY-----", "a private key"),
        ("https://me:secret@host/", "a password in an address"),
    ],
)
def test_every_kind_is_found(text, kind):
    assert [leak.kind for leak in leaks(f"x\n{text}\n")] == [kind]
    assert kind in dict(PATTERNS)
