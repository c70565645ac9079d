"""GGUF of several parts: one model, whichever part is given, or what is missing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import mii_azure
from mii_azure.errors import NotAvailable, WeightsCorrupt, WeightsMissing
from mii_azure.model.gguf_conversion import converted
from mii_azure.model.source import resolve
from tests.tiny_gguf import write_gguf


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    write_gguf(folder / "tiny.gguf", "qwen2", split=12)
    return folder


@pytest.fixture
def copied(parts: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(parts, tmp_path / "parts"))


def test_they_are_one_model(parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MII_AZURE_MODEL_CACHE", str(tmp_path / "cache"))
    whole, _, _ = write_gguf(tmp_path / "whole.gguf", "qwen2")
    files = sorted(parts.iterdir())
    assert [each.name for each in files] == [f"tiny-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    for given in (parts, *files):
        assert resolve(str(given)).config == resolve(str(whole)).config
    megabytes = f"{sum(each.stat().st_size for each in files) / 1e6:,.1f} MB"
    assert resolve(str(parts)).weights.widened == f"GGUF F32, {megabytes}"
    one, other = converted(files[1]), converted(whole)
    assert one == converted(files[0]) != other
    assert {each.name: each.read_bytes() for each in one.iterdir()} == {
        each.name: each.read_bytes() for each in other.iterdir()
    }


def test_a_part_that_is_not_there(copied: Path) -> None:
    (copied / "tiny-00002-of-00003.gguf").unlink()
    with pytest.raises(WeightsMissing, match=r"a GGUF of 3, and tiny-00002-of-00003.gguf is not beside it") as caught:
        mii_azure.plan("text-generation", str(copied))
    assert "the other parts" in caught.value.hint


def test_parts_that_do_not_belong_together(copied: Path) -> None:
    shutil.copyfile(copied / "tiny-00002-of-00003.gguf", copied / "tiny-00003-of-00003.gguf")
    with pytest.raises(WeightsCorrupt, match="do not belong together"):
        resolve(str(copied))


def test_a_part_by_another_name(copied: Path, tmp_path: Path) -> None:
    file = (copied / "tiny-00001-of-00003.gguf").rename(tmp_path / "first.gguf")
    with pytest.raises(NotAvailable, match="one part of a GGUF of 3, and its name does not tell which") as caught:
        resolve(str(file))
    assert "--merge" in caught.value.hint


def test_parts_of_two_models_in_a_folder(copied: Path) -> None:
    for file in list(copied.iterdir()):
        shutil.copyfile(file, copied / file.name.replace("tiny", "other"))
    with pytest.raises(NotAvailable, match="holds 2 GGUF models") as caught:
        resolve(str(copied))
    assert "other-00001-of-00003.gguf" in caught.value.hint
