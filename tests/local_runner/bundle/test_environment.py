"""The packages here against the bundle's lock."""

from importlib.metadata import version
from pathlib import Path

import pytest

from local_runner.bundle.environment import Difference, differences, report


def lock(folder: Path, text: str) -> Path:
    (folder / "environment").mkdir()
    (folder / "environment" / "requirements.lock").write_text(text)
    return folder


def test_every_package_that_differs_is_named(bundle: Path) -> None:
    assert differences(bundle, gpu=False) == [
        Difference("anyio", "0.0.1", version("anyio"), False),
        Difference("no-such-package", "1.0", "", False),
        Difference("nvidia-cublas", "13.1", "", True),
    ]


def test_a_machine_with_a_gpu_misses_the_cuda_packages(bundle: Path) -> None:
    assert Difference("nvidia-cublas", "13.1", "", False) in differences(bundle, gpu=True)


@pytest.mark.parametrize(
    ("wanted", "differs"),
    [("torch==2.13.0", False), ("torch==2.12.0", True), ("torch==99 ; sys_platform == 'win32'", False)],
)
def test_a_local_build_is_its_release_and_markers_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: str, differs: bool
) -> None:
    monkeypatch.setattr("local_runner.bundle.environment.metadata.version", lambda name: "2.13.0+cpu")
    folder = lock(tmp_path, f"--extra-index-url https://example.org\n# note\n{wanted} \\\n    --hash=sha256:0\n")
    assert bool(differences(folder)) is differs


def test_report_is_a_table_and_a_note(bundle: Path) -> None:
    text = report(differences(bundle, gpu=False))
    assert text.startswith("warning: 2 packages differ")
    assert "no-such-package  1.0" in text
    assert "not installed" in text
    assert "1 packages of the lock are for CUDA only" in text
    assert report([]) == ""


def test_a_bundle_without_a_lock_has_no_differences(tmp_path: Path) -> None:
    assert differences(tmp_path) == []
