"""Writing: all or nothing, the same bytes every time, and every file in the manifest."""

import errno
import filecmp
import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import mii_azure
import scoring
from mii_azure.bundle import writer as bundles
from mii_azure.bundle.manifest import Mismatch, find_mismatches, load_manifest
from mii_azure.errors import BundleExists, NotABundle, NotWritten
from scoring.config import Deployment, Limits

EXPECTED = {
    ".gitattributes",
    "README.md", "deploy.sh", "deployment.yml", "endpoint.yml", "environment.yml", "model.yml", "plan.md",
    "code/score.py", "code/deployment.json", "code/swagger2.json", "code/swagger3.json", "code/swagger3.1.json",
    "environment/Dockerfile", "environment/requirements.lock", "requests/sample.json",
    "model/config.json", "model/model.safetensors", "model/tokenizer.json", "model/tokenizer_config.json",
    "manifest.json", "sbom.json",
}  # fmt: skip


def tree(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def leftovers(folder: Path) -> list[str]:
    """What is beside the bundle, or in its place."""
    return sorted(path.name for path in folder.iterdir())


def test_a_bundle_has_the_files_of_the_layout_and_the_scoring_package_byte_for_byte(make_bundle):
    bundle = make_bundle()
    package = Path(scoring.__file__).parent
    copied = {path.removeprefix("code/scoring/") for path in tree(bundle) if path.startswith("code/scoring/")}
    assert {path for path in tree(bundle) if not path.startswith("code/scoring/")} == EXPECTED
    assert copied == {path for path in tree(package) if path.endswith((".py", ".c")) or path == "py.typed"}
    for path in copied:
        assert filecmp.cmp(bundle / "code/scoring" / path, package / path, shallow=False), path
    assert os.access(bundle / "deploy.sh", os.X_OK)


def test_the_manifest_covers_every_file_but_itself(make_bundle):
    bundle = make_bundle()
    files = load_manifest(bundle)["files"]
    assert files.keys() == tree(bundle) - {"manifest.json"}
    for path, digest in files.items():
        assert hashlib.sha256((bundle / path).read_bytes()).hexdigest() == digest, path
    assert find_mismatches(bundle) == []


def test_two_runs_in_two_folders_write_the_same_bytes(make_bundle):
    first, second = make_bundle("one"), make_bundle("two")
    assert tree(first) == tree(second)
    assert all((first / path).read_bytes() == (second / path).read_bytes() for path in tree(first))


def test_scoring_reads_the_settings_that_were_written(make_bundle):
    bundle = make_bundle()
    settings = Deployment.read(bundle / "code" / "deployment.json")
    assert (settings.name, settings.task, settings.model.id) == (
        "My-qa",
        "question-answering",
        "bert-question-answering",
    )
    written = json.loads((bundle / "code" / "deployment.json").read_text())["limits"]
    # Of a decoder with a paged cache, beside a draft model, or where they were asked for.
    elsewhere = {"kv_cache_tokens", "memory_share", "draft_model", "kv_cache_dtype", "batch_invariant"}
    assert written.keys() == {field.name for field in fields(Limits)} - elsewhere
    assert settings.limits == Limits(**written)


def test_an_existing_folder_is_refused_and_left_as_it_is(make_bundle, tmp_path):
    bundle = make_bundle()
    (bundle / "note.txt").write_text("mine")
    with pytest.raises(BundleExists, match="--force"):
        make_bundle()
    assert (bundle / "note.txt").read_text() == "mine"
    assert leftovers(tmp_path) == ["bundle"]


def test_force_replaces_a_bundle(make_bundle, tmp_path):
    bundle = make_bundle()
    (bundle / "note.txt").write_text("mine")
    make_bundle(force=True)
    assert find_mismatches(bundle) == []
    assert leftovers(tmp_path) == ["bundle"]


def test_force_does_not_replace_a_folder_that_is_no_bundle(make_bundle, tmp_path):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "thesis.tex").write_text("years")
    with pytest.raises(BundleExists, match="not a bundle"):
        make_bundle(force=True)
    assert leftovers(tmp_path / "bundle") == ["thesis.tex"]


def test_an_empty_folder_is_filled(make_bundle, tmp_path):
    (tmp_path / "bundle").mkdir()
    assert find_mismatches(make_bundle()) == []


def test_a_file_in_the_way_is_refused(make_bundle, tmp_path):
    (tmp_path / "bundle").write_text("")
    with pytest.raises(BundleExists, match="is a file"):
        make_bundle(force=True)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_run_leaves_nothing(make_bundle, tmp_path, interruption):
    def stop(done: int, total: int) -> None:
        raise interruption

    with pytest.raises(interruption):
        make_bundle("deep/er/bundle", progress=stop)
    assert leftovers(tmp_path) == []


def test_a_failed_replacement_keeps_the_old_bundle(make_bundle, tmp_path, monkeypatch):
    bundle = make_bundle()
    before = load_manifest(bundle)
    rename = Path.rename

    def fail_on_partial(self, target):
        if self.suffix == ".partial":
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_on_partial)
    with pytest.raises(NotWritten, match="Input/output error"):
        make_bundle(force=True)
    assert load_manifest(bundle) == before
    assert find_mismatches(bundle) == []
    assert leftovers(tmp_path) == ["bundle"]


def test_too_little_space_is_said_before_anything_is_copied(make_bundle, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(bundles.shutil, "disk_usage", lambda path: usage._replace(free=1 << 20))
    with pytest.raises(NotWritten, match=r"GiB are needed and 0\.0 GiB are free") as caught:
        make_bundle()
    assert "Free some space" in caught.value.hint
    assert leftovers(tmp_path) == []


def test_a_target_below_a_file_is_refused(make_bundle, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotWritten, match="Not a directory"):
        make_bundle("file/bundle")


def test_weights_that_cannot_be_read_are_named(tmp_path):
    absent = tmp_path / "model.safetensors"
    with pytest.raises(NotWritten, match="No such file") as caught:
        bundles.write(tmp_path / "bundle", render_files=lambda hashes: {}, weights={"model/model.safetensors": absent})
    assert caught.value.where == str(absent)
    assert leftovers(tmp_path) == []


def test_progress_counts_bytes_up_to_the_total(make_bundle):
    seen: list[tuple[int, int]] = []
    bundle = make_bundle(progress=lambda done, total: seen.append((done, total)))
    total = sum(path.stat().st_size for path in (bundle / "model").iterdir())
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1] == (total, total)
    assert {bound for _, bound in seen} == {total}


def test_verify_tells_edited_missing_and_extra_apart(make_bundle):
    bundle = make_bundle()
    (bundle / "code/score.py").write_text("# changed\n")
    (bundle / "model/config.json").unlink()
    (bundle / "code/extra.py").write_text("")
    (bundle / "code/scoring/__pycache__").mkdir()
    (bundle / "code/scoring/__pycache__/entry.cpython-311.pyc").write_bytes(b"")
    assert find_mismatches(bundle) == [
        Mismatch("code/extra.py", "extra"),
        Mismatch("code/score.py", "edited"),
        Mismatch("code/scoring/__pycache__/entry.cpython-311.pyc", "extra"),
        Mismatch("model/config.json", "missing"),
    ]


@pytest.mark.parametrize("path", ["README.md", "code/scoring", "code/link", "model", "requests/sample.json"])
def test_links_and_pipes_anywhere_are_told_by_verify_and_check(make_bundle, tmp_path, path):
    bundle = make_bundle()
    if (bundle / path).exists():
        (bundle / path).rename(tmp_path / "moved")
    (bundle / path).symlink_to(tmp_path / "moved")
    os.mkfifo(bundle / "code" / "pipe")
    assert {Mismatch(path, "no regular file"), Mismatch("code/pipe", "no regular file")} <= set(find_mismatches(bundle))
    told = [finding for finding in mii_azure.check(bundle) if "a link, a device or a pipe" in finding.message]
    assert {(finding.file, finding.severity) for finding in told} == {(path, "error"), ("code/pipe", "error")}
    assert any("no regular file" in problem for problem in mii_azure.verify(bundle).problems)


@pytest.mark.parametrize("path", ["code/deployment.json", "code/score.py", "deployment.yml", "environment/Dockerfile"])
@pytest.mark.parametrize("made", ["pipe", "zero"])
def test_a_manifest_whose_file_is_a_pipe_or_a_device_hangs_nothing(make_bundle, path, made):
    bundle = make_bundle()
    (bundle / path).unlink()
    os.mkfifo(bundle / path) if made == "pipe" else (bundle / path).symlink_to("/dev/zero")
    code = f"import sys, mii_azure; sys.exit(not mii_azure.verify({str(bundle)!r}).problems)"
    command = [sys.executable, "-c", code + f" or not mii_azure.check({str(bundle)!r})"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_an_edited_manifest_is_noticed(make_bundle):
    bundle = make_bundle()
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "README.md").write_text("mine\n")
    manifest["files"]["README.md"] = hashlib.sha256(b"mine\n").hexdigest()
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    assert find_mismatches(bundle) == [Mismatch("manifest.json", "edited")]


@pytest.mark.parametrize(
    "content", [None, "", "[]", "{}", '{"schema": 1, "files": []}', '{"schema": 2, "files": {"code/score.py": ""}}']
)
def test_what_is_no_bundle_is_said_to_be_none(tmp_path, content):
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(NotABundle):
        load_manifest(tmp_path)


def test_a_missing_folder_is_no_bundle(tmp_path):
    with pytest.raises(NotABundle, match="no folder"):
        load_manifest(tmp_path / "absent")
