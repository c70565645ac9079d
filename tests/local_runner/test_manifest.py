"""Nothing of a bundle runs before it is as generated."""

import inspect
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from local_runner import manifest
from mii_azure.errors import BundleEdited, NotABundle
from scoring import entry, host_api
from tests.local_runner.conftest import seal

Own = Callable[..., Path]


def run_module(*arguments: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, check=False)


def test_an_untouched_bundle_passes(bundle: Path) -> None:
    for weights in (False, True):
        manifest.verify(bundle, weights)


def test_what_python_leaves_behind_is_no_edit(own_bundle: Own) -> None:
    bundle = own_bundle()
    (bundle / "code" / "__pycache__").mkdir()
    (bundle / "code" / "__pycache__" / "score.pyc").write_bytes(b"x")
    (bundle / "notes.txt").write_text("beside what is served")
    manifest.verify(bundle, weights=False)


def test_every_difference_is_named(own_bundle: Own) -> None:
    bundle = own_bundle()
    (bundle / "code" / "score.py").write_text("def init(): ...")
    (bundle / "code" / "swagger2.json").unlink()
    (bundle / "code" / "json.py").write_text("")
    (bundle / "model" / "adapter.bin").write_text("")
    with pytest.raises(BundleEdited) as raised:
        manifest.verify(bundle, weights=False)
    assert "code/json.py (extra), code/score.py (edited), code/swagger2.json (missing)." in raised.value.message
    with pytest.raises(BundleEdited, match=r"model/adapter.bin \(extra\)"):
        manifest.verify(bundle, weights=True)


def test_a_manifest_that_was_edited_along_is_noticed(own_bundle: Own) -> None:
    bundle = own_bundle()
    (bundle / "code" / "score.py").write_text("def init(): ...")
    content = json.loads((bundle / "manifest.json").read_text())
    content["files"] |= manifest.hash_files(bundle, ["code/score.py"])
    (bundle / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(BundleEdited, match=r"manifest.json \(edited\)"):
        manifest.verify(bundle, weights=False)


@pytest.mark.parametrize("content", [None, "{", "[]", '{"files": []}', '{"files": {"README.md": "0"}}'])
def test_other_folders_are_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(NotABundle, match="is not a bundle"):
        manifest.read_manifest(tmp_path)


def test_another_scoring_package_in_the_process_is_refused(bundle: Path) -> None:
    code = f"import scoring, pathlib; from local_runner.manifest import enter; enter(pathlib.Path({str(bundle)!r}))"
    done = run_module("-c", code)
    assert done.returncode == 1
    assert "RunnerFailed: Another `scoring` package is imported already" in done.stderr


@pytest.mark.parametrize("file", ["code/scoring/entry.py", "model/config.json"])
@pytest.mark.parametrize("module", ["local_runner", "local_runner.inprocess"])
def test_an_edited_bundle_is_not_run(own_bundle: Own, module: str, file: str) -> None:
    bundle = own_bundle()
    with (bundle / file).open("a") as opened:
        opened.write("\nprint('edited code ran')\n")
    ports = ["--grpc-port", "0", "--http-port", "0"] if module == "local_runner" else []
    done = run_module("-m", module, bundle, *ports)
    assert done.returncode == 3
    assert f"{file} (edited)" in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    assert "edited code ran" not in done.stdout + done.stderr


def test_running_a_bundle_does_not_change_it(own_bundle: Own, tmp_path: Path) -> None:
    bundle = own_bundle()
    before = shutil.copytree(bundle, tmp_path / "before")
    done = run_module("-m", "local_runner.inprocess", bundle, stdin='{"body": "{}"}\n')
    assert done.returncode == 0, done.stderr
    assert not list(bundle.rglob("__pycache__"))
    assert {p.relative_to(bundle) for p in bundle.rglob("*")} == {p.relative_to(before) for p in before.rglob("*")}


@pytest.mark.parametrize("found", ["2", None])
def test_a_bundle_of_another_interface_is_refused_in_a_sentence(
    own_bundle: Callable[..., Path], found: str | None
) -> None:
    """By a process of its own, before anything of the bundle but the version is used."""
    bundle = own_bundle()
    declared = bundle / "code" / "scoring" / "host_api.py"
    if found is None:
        declared.unlink()
    else:
        declared.write_text(f"VERSION = {found}\n")
    seal(bundle)
    done = run_module("-m", "local_runner", bundle)
    assert done.returncode == 4, done.stderr
    assert "was written by another version of mii-azure" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_interface_that_the_runner_speaks_is_the_one_that_scoring_has() -> None:
    assert manifest.INTERFACE == host_api.VERSION
    for name in (name for name in vars(host_api.ScoringEntry) if not name.startswith("_")):
        declared = inspect.signature(getattr(host_api.ScoringEntry, name))
        own = inspect.signature(getattr(entry, name))
        assert str(declared).replace("(self, ", "(").replace("(self)", "()") == str(own)
