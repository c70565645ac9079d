"""Fetching packaged models: what fails says so in a sentence and leaves nothing behind; two at once fetch once."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from zipfile import ZipFile

import pytest

from mii_azure.model import packaged as packaged_models
from mii_azure.model.packaged import MODELS, PackagedModelError, packaged_model

ROOT = Path(__file__).parent.parent


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index that is one empty folder, and an empty cache beside it; pip sees nothing else."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("MII_AZURE_MODEL_CACHE", str(tmp_path / "cache"))
    return folder


def _wheel(index: Path) -> Path:
    """A wheel with the name of the smallest model's, and other contents."""
    file = index / "rxnmapper-0.4.3-py3-none-any.whl"
    about = "rxnmapper-0.4.3.dist-info"
    with ZipFile(file, "w") as archive:
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: rxnmapper\nVersion: 0.4.3\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
        archive.writestr(f"{MODELS['smiles-albert'].parts}vocab.txt", "[PAD]\n")
    return file


def _left(index: Path) -> list[str]:
    return [path.name for path in (index.parent / "cache").iterdir() if path.suffix != ".lock"]


def test_unknown_name_offers_the_nearest() -> None:
    with pytest.raises(PackagedModelError, match=r"no packaged model 'smolm2'\. Did you mean 'smollm2'"):
        packaged_model("smolm2")


def test_package_that_no_index_has(index: Path) -> None:
    with pytest.raises(PackagedModelError, match=r"pip could not fetch rxnmapper==0\.4\.3 .*Check the network"):
        packaged_model("smiles-albert")
    assert _left(index) == []


def test_file_with_another_hash_is_not_used(index: Path) -> None:
    _wheel(index)
    with pytest.raises(PackagedModelError, match="not the recorded 27876a42"):
        packaged_model("smiles-albert")
    assert _left(index) == []


def test_cache_that_cannot_be_written(index: Path) -> None:
    (index.parent / "cache").write_text("a file")
    with pytest.raises(PackagedModelError, match=r"cannot be written .* Set MII_AZURE_MODEL_CACHE"):
        packaged_model("smiles-albert")


def test_two_at_once_convert_once(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    converted: list[Path] = []

    def convert(source: Path, target: Path) -> None:
        converted.append(target)
        time.sleep(0.1)
        (target / "vocab.txt").write_text((source / "vocab.txt").read_text())

    hash_of_wheel = sha256(_wheel(index).read_bytes()).hexdigest()
    package = replace(MODELS["smiles-albert"], file_sha256=hash_of_wheel, convert=convert)
    monkeypatch.setitem(packaged_models.MODELS, "smiles-albert", package)
    folders: list[Path] = []
    threads = [threading.Thread(target=lambda: folders.append(packaged_model("smiles-albert"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(converted) == 1 and folders[0] == folders[1]
    assert _left(index) == [folders[0].name]
    assert [path.name for path in folders[0].iterdir()] == ["vocab.txt"]


def test_conversion_that_fails_leaves_nothing(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(source: Path, target: Path) -> None:
        (target / "half").write_text("written")
        raise ModuleNotFoundError("No module named 'gguf'", name="gguf")

    hash_of_wheel = sha256(_wheel(index).read_bytes()).hexdigest()
    package = replace(MODELS["smiles-albert"], file_sha256=hash_of_wheel, convert=convert)
    monkeypatch.setitem(packaged_models.MODELS, "smiles-albert", package)
    with pytest.raises(PackagedModelError, match="needs the package 'gguf'"):
        packaged_model("smiles-albert")
    assert _left(index) == []


def test_command_line_says_one_sentence_and_exits_3(index: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mii_azure.cli.app", "models", "smiles-albert"],
        cwd=ROOT,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3 and done.stdout == ""
    fetching, error = done.stderr.splitlines()
    assert fetching.startswith("Fetching RXNMapper") and error.startswith("error [packaged_model]: pip could not")
