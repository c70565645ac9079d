"""Nothing of a bundle runs before it is as generated."""

import inspect
import json
import os
import py_compile
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from local_runner.bundle import manifest
from mii_azure.errors import BundleEdited, NotABundle
from mii_azure.operations.deploy import intact
from scoring import entry, host_api
from scoring.api.sse import Events
from tests.local_runner.conftest import seal

Own = Callable[..., Path]
PORTS = ["--grpc-port", "0", "--http-port", "0"]


def run_module(*arguments: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return subprocess.run(command, input=stdin, env=kept, capture_output=True, text=True, timeout=60, check=False)


def test_an_untouched_bundle_passes(bundle: Path) -> None:
    for weights in (False, True):
        manifest.verify_hashes(bundle, weights)
        assert manifest.edits(bundle, manifest.read_manifest(bundle), weights) == []


def test_a_file_beside_what_is_served_is_no_edit(own_bundle: Own) -> None:
    bundle = own_bundle()
    (bundle / "notes.txt").write_text("beside what is served")
    manifest.verify_hashes(bundle, weights=False)
    assert manifest.edits(bundle, manifest.read_manifest(bundle), False) == []


def test_converted_line_endings_are_told_as_such(own_bundle: Own) -> None:
    bundle = own_bundle()
    for path in ("code/score.py", "code/scoring/entry.py"):
        (bundle / path).write_bytes((bundle / path).read_bytes().replace(b"\n", b"\r\n"))
    with pytest.raises(BundleEdited, match=r"score\.py \(edited\)") as refused:
        manifest.verify_hashes(bundle, weights=False)
    assert "(CRLF)" in refused.value.hint
    with pytest.raises(BundleEdited) as refused:
        intact(bundle)
    assert "(CRLF)" in refused.value.hint
    (bundle / "code" / "swagger2.json").write_bytes(b"x\r\n")
    with pytest.raises(BundleEdited) as refused:
        manifest.verify_hashes(bundle, weights=False)
    assert "(CRLF)" not in refused.value.hint


@pytest.mark.parametrize("module", ["local_runner", "local_runner.targets.inprocess"])
def test_a_cache_that_python_would_run_unchecked_is_refused(own_bundle: Own, module: str, tmp_path: Path) -> None:
    bundle = own_bundle()
    evil = tmp_path / "evil.py"
    evil.write_text("print('planted code ran')\n")
    target = bundle / "code" / "scoring" / "__pycache__" / f"entry.{sys.implementation.cache_tag}.pyc"
    target.parent.mkdir()
    py_compile.compile(str(evil), str(target), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    done = run_module("-m", module, bundle, *(PORTS if module == "local_runner" else []))
    assert done.returncode == 3
    assert "planted code ran" not in done.stdout + done.stderr
    assert f"{target.relative_to(bundle).as_posix()} (extra)" in done.stderr + done.stdout


@pytest.mark.parametrize("path", ["code/swagger2.json", "code/scoring", "model", "environment", "notes"])
def test_a_link_anywhere_is_refused_though_it_leads_to_the_same(own_bundle: Own, path: str, tmp_path: Path) -> None:
    bundle = own_bundle()
    if (bundle / path).exists():
        (bundle / path).rename(tmp_path / "moved")
    (bundle / path).symlink_to(tmp_path / "moved")
    with pytest.raises(BundleEdited, match=rf"{path} \(no regular file\)"):
        manifest.verify_hashes(bundle, weights=False)


@pytest.mark.parametrize("path", ["code/swagger2.json", "code/pipe"])
def test_a_pipe_is_refused_and_not_waited_for(own_bundle: Own, path: str) -> None:
    bundle = own_bundle()
    (bundle / path).unlink(missing_ok=True)
    os.mkfifo(bundle / path)
    done = run_module("-m", "local_runner.targets.inprocess", bundle)
    assert done.returncode == 3
    assert f"{path} (no regular file)" in done.stdout + done.stderr


@pytest.mark.parametrize(
    "path", ["/dev/zero", "../../../../../../dev/zero", "code/../../x", "code//x", "a\\b", "a\n0  b"]
)
def test_a_manifest_that_names_what_no_bundle_holds_is_refused(own_bundle: Own, path: str) -> None:
    bundle = own_bundle()
    content = json.loads((bundle / "manifest.json").read_text())
    files = content["files"] | {path: "0" * 64}
    (bundle / "manifest.json").write_text(
        json.dumps(content | {"files": files, "bundle": manifest.bundle_digest(files)})
    )
    done = run_module("-m", "local_runner.targets.inprocess", bundle)
    assert done.returncode == 3
    assert "is no file of a bundle" in done.stdout + done.stderr


def test_a_file_is_opened_through_no_link_and_never_as_a_device(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    (tmp_path / "zero").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    with manifest.open_file(tmp_path, "folder/file") as file:
        assert file.read() == b"x"
    for path in ("link/file", "zero", "pipe", "folder", "folder/../folder/file", str(tmp_path / "folder" / "file"), ""):
        with pytest.raises(OSError):
            manifest.open_file(tmp_path, path)
    with pytest.raises(OSError, match="not a regular file"):
        manifest.open_file(Path("/dev"), "zero")


def test_names_that_lead_nowhere_else_are_plain() -> None:
    assert all(map(manifest.is_plain, ["a", "model-00001-of-00002.safetensors", "..a", "a b", "Ünïcödé", "a" * 255]))
    odd = [
        "",
        ".",
        "..",
        "a/b",
        "/a",
        "a\\b",
        "a\0",
        "a\nb",
        "a\x1b[2J",
        "a\u202eb",
        "\ud800",
        "a" * 256,
        "ä" * 128,
        5,
        None,
    ]
    assert not any(map(manifest.is_plain, odd))


def test_a_process_that_a_host_starts_writes_no_cache_into_the_bundle(own_bundle: Own) -> None:
    bundle = own_bundle()
    enter = f"from local_runner.bundle.manifest import enter; import pathlib; enter(pathlib.Path({str(bundle)!r}))"
    child = f"import sys; sys.path.insert(0, {str(bundle / 'code')!r}); import scoring.config"
    done = run_module(
        "-c", f"{enter}; import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    )
    assert done.returncode == 0, done.stderr
    manifest.verify_hashes(bundle, weights=False)


def test_every_difference_is_named(own_bundle: Own) -> None:
    bundle = own_bundle()
    (bundle / "code" / "score.py").write_text("def init(): ...")
    (bundle / "code" / "swagger2.json").unlink()
    (bundle / "code" / "json.py").write_text("")
    (bundle / "model" / "adapter.bin").write_text("")
    with pytest.raises(BundleEdited) as raised:
        manifest.verify_hashes(bundle, weights=False)
    assert "code/json.py (extra), code/score.py (edited), code/swagger2.json (missing)." in raised.value.message
    with pytest.raises(BundleEdited, match=r"model/adapter.bin \(extra\)"):
        manifest.verify_hashes(bundle, weights=True)


def test_a_manifest_that_was_edited_along_is_noticed(own_bundle: Own) -> None:
    bundle = own_bundle()
    (bundle / "code" / "score.py").write_text("def init(): ...")
    content = json.loads((bundle / "manifest.json").read_text())
    content["files"] |= manifest.hash_files(bundle, ["code/score.py"])
    (bundle / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(BundleEdited, match=r"manifest.json \(edited\)"):
        manifest.verify_hashes(bundle, weights=False)


@pytest.mark.parametrize("content", [None, "{", "[]", '{"files": []}', '{"files": {"README.md": "0"}}'])
def test_other_folders_are_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(NotABundle, match="is not a bundle"):
        manifest.read_manifest(tmp_path)


def test_another_scoring_package_in_the_process_is_refused(bundle: Path) -> None:
    code = (
        f"import scoring, pathlib; from local_runner.bundle.manifest import enter; enter(pathlib.Path({str(bundle)!r}))"
    )
    done = run_module("-c", code)
    assert done.returncode == 1
    assert "RunnerFailed: Another `scoring` package is imported already" in done.stderr


@pytest.mark.parametrize("file", ["code/scoring/entry.py", "model/config.json"])
@pytest.mark.parametrize("module", ["local_runner", "local_runner.targets.inprocess"])
def test_an_edited_bundle_is_not_run(own_bundle: Own, module: str, file: str) -> None:
    bundle = own_bundle()
    with (bundle / file).open("a") as opened:
        opened.write("\nprint('edited code ran')\n")
    done = run_module("-m", module, bundle, *(PORTS if module == "local_runner" else []))
    assert done.returncode == 3
    assert f"{file} (edited)" in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    assert "edited code ran" not in done.stdout + done.stderr


def test_running_a_bundle_does_not_change_it(own_bundle: Own, tmp_path: Path) -> None:
    bundle = own_bundle()
    before = shutil.copytree(bundle, tmp_path / "before")
    done = run_module("-m", "local_runner.targets.inprocess", bundle, stdin='{"body": "{}"}\n')
    assert done.returncode == 0, done.stderr
    assert not list(bundle.rglob("__pycache__"))
    assert {p.relative_to(bundle) for p in bundle.rglob("*")} == {p.relative_to(before) for p in before.rglob("*")}


@pytest.mark.parametrize("found", [host_api.VERSION + 1, None])
def test_a_bundle_of_another_interface_is_refused_in_a_sentence(
    own_bundle: Callable[..., Path], found: int | None
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
    for name in ("listen", "take", "left", "finish", "close"):
        declared = inspect.signature(getattr(host_api.EventStream, name))
        assert list(declared.parameters) == list(inspect.signature(getattr(Events, name)).parameters)
