"""A bundle prepared on this machine starts without verifying again; on another machine it verifies as always."""

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from local_runner.targets.targets import InProcess
from mii_azure import generate, prepare, verify
from mii_azure.bundle.prepare import FOLDER, Prepared, _sign
from mii_azure.errors import BundleEdited, NotWritten
from tests.conftest import Tiny

pytestmark = pytest.mark.usefixtures("forked")

CPU = "Standard_F4s_v2"
NOT_AGAIN = "verified when the bundle was prepared"


class Case(NamedTuple):
    """A bundle that was started once before it was prepared; copy it to change it."""

    before: dict[str, object]
    done: Prepared
    bundle: Path


def _generated(tiny: Tiny, folder: Path) -> Path:
    model = str(tiny("llama", "text-generation"))
    return generate("text-generation", model, "tiny", output=folder / "tiny", instance_type=CPU)


@pytest.fixture(scope="module")
def prepared(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Case:
    bundle = _generated(tiny, tmp_path_factory.mktemp("prepared"))
    return Case(_passes(bundle)["static_decode"], prepare(bundle), bundle)


@pytest.fixture
def bundle(prepared: Case, tmp_path: Path) -> Path:
    """A prepared bundle of the test's own."""
    return Path(shutil.copytree(prepared.bundle, tmp_path / "tiny"))


def _passes(bundle: Path) -> dict[str, dict[str, object]]:
    with InProcess(bundle) as target:
        return {each["name"]: each for each in target.metadata()["passes"]}


def test_verified_once(prepared: Case) -> None:
    before, done, bundle = prepared
    assert done.device == "cpu"
    assert done.errors == {"static_decode": before["error"]}
    assert verify(bundle).sound
    assert verify(bundle).bundle == done.bundle
    after = _passes(bundle)["static_decode"]
    assert after["state"] == "applied"
    assert after["error"] == before["error"]
    assert NOT_AGAIN in str(after["reason"])
    assert NOT_AGAIN not in str(before["reason"])


def test_another_machine_verifies_for_itself(bundle: Path) -> None:
    path = bundle / FOLDER / "verified.json"
    told = json.loads(path.read_text(encoding="utf-8"))
    told["key"]["device"] = "NVIDIA H100 80GB HBM3"
    path.write_text(json.dumps(told), encoding="utf-8")
    _sign(bundle)
    assert NOT_AGAIN not in str(_passes(bundle)["static_decode"]["reason"])


def test_an_edited_verification_is_an_edited_bundle(bundle: Path) -> None:
    (bundle / FOLDER / "verified.json").write_text("{}", encoding="utf-8")
    with pytest.raises(BundleEdited):
        prepare(bundle)


def test_a_bundle_that_cannot_be_written_to_is_told_before_anything_starts(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(*_: object) -> None:
        raise AssertionError("it was started")

    bundle = _generated(tiny, tmp_path)
    monkeypatch.setattr(InProcess, "_start", start)
    (bundle / FOLDER).write_text("no folder")  # holds for root too, whom a folder's permissions do not stop
    with pytest.raises(NotWritten, match="cannot be written to") as caught:
        prepare(bundle)
    assert "copy" in caught.value.hint
