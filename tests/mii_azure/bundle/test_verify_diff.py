"""The verbs verify and diff on bundles of a tiny model."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import mii_azure
from mii_azure.bundle.lockfile import gaps, pins
from mii_azure.bundle.manifest import make_manifest, walk

LOCK, SBOM = "environment/requirements.lock", "sbom.json"


def replace(path: str, old: str, new: str) -> Callable[[Path], None]:
    def edit(bundle: Path) -> None:
        text = (bundle / path).read_text()
        assert old in text
        (bundle / path).write_text(text.replace(old, new, 1))

    return edit


def reseal(bundle: Path) -> None:
    """Write a manifest that agrees with what is there, as somebody would who hides an edit."""
    import hashlib

    hashes = {p: hashlib.sha256((bundle / p).read_bytes()).hexdigest() for p in walk(bundle) if p != "manifest.json"}
    (bundle / "manifest.json").write_text(json.dumps(make_manifest(hashes)))


@pytest.fixture(scope="module")
def bundle(tiny, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("verify") / "a"
    return mii_azure.generate("question-answering", str(tiny("bert", "question-answering")), "my-qa", output=folder)


@pytest.fixture
def copy(bundle, tmp_path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "b"))


def test_a_bundle_as_generated_is_sound(bundle):
    found = mii_azure.verify(bundle)
    assert found.sound
    assert found.lines()[-1].startswith(f"as generated: {found.files} files, {found.packages} packages")
    assert found.scoring == []
    assert found.generator == mii_azure.__version__


def drop_weight(bundle: Path) -> None:
    (bundle / "model/tokenizer.json").unlink()


def add_code(bundle: Path) -> None:
    (bundle / "code/extra.py").write_text("")


def unhashed(bundle: Path) -> None:
    text = (bundle / LOCK).read_text()
    start = text.index("transformers==")
    end = text.index("\n", text.index("--hash", start))
    following = text.index("==", end)
    (bundle / LOCK).write_text(text[:start] + "transformers==5.23.0\n" + text[text.rindex("\n", 0, following) + 1 :])


@pytest.mark.parametrize(
    ("edit", "sealed", "told"),
    [
        (drop_weight, False, "model/tokenizer.json is missing."),
        (add_code, False, "code/extra.py is not in the manifest."),
        (replace("deploy.sh", "deploy", "destroy"), False, "deploy.sh is edited."),
        (replace("manifest.json", '"bundle": "', '"bundle": "0'), False, "manifest.json is edited."),
        (replace("code/scoring/entry.py", '"""', '"""An edit. '), True, "differs: entry.py."),
        (unhashed, True, "transformers has no SHA-256."),
        (replace(LOCK, "transformers==5.23.0", "transformers==5.22.0"), True, "disagree about transformers 5.22.0."),
        (replace("model/config.json", "{", "{ "), True, "disagree about model/config.json."),
        (lambda bundle: (bundle / SBOM).unlink(), True, "sbom.json is missing, or names no model."),
    ],
)
def test_what_is_not_as_generated_is_told(copy, edit, sealed, told):
    edit(copy)
    if sealed:
        reseal(copy)
    found = mii_azure.verify(copy)
    assert not found.sound
    assert any(told in problem for problem in found.problems), found.problems


def test_the_scoring_package_of_another_version_is_named_and_no_problem(copy):
    replace("code/scoring/entry.py", '"""', '"""Older. ')(copy)
    replace(SBOM, f'"version": "{mii_azure.__version__}"', '"version": "0.0.9"')(copy)
    reseal(copy)
    found = mii_azure.verify(copy)
    assert found.sound
    assert found.scoring == ["entry.py"]
    assert "mii-azure 0.0.9, not of" in found.lines()[0]


def test_a_lock_is_read_with_its_gaps():
    pinned = f"a==1 ; python_version > '3' \\\n    --hash=sha256:{'1' * 64}"
    text = f"--extra-index-url https://a/b\n# comment\n{pinned}\nb>=2\nc==3\n"
    assert [(pin.name, pin.version, pin.line) for pin in pins(text)] == [("a", "1", 3), ("b", "", 5), ("c", "3", 6)]
    assert gaps(text) == ["b is not pinned to a version.", "c has no SHA-256."]


def test_equal_bundles_do_not_differ(bundle, copy):
    assert mii_azure.diff(bundle, copy) == []


def test_changes_are_told_by_what_they_mean(bundle, copy):
    replace(LOCK, "transformers==5.23.0", "transformers==5.24.0")(copy)
    replace("environment/Dockerfile", ":latest AS", ":latest@sha256:1 AS")(copy)
    replace("deployment.yml", "instance_count: 1", "instance_count: 3")(copy)
    replace("code/deployment.json", '"max_batch_size": ', '"max_batch_size": 1')(copy)
    replace("code/scoring/entry.py", '"""', '"""An edit. ')(copy)
    (copy / "model/tokenizer.json").unlink()
    (copy / "notes.txt").write_text("mine")
    changes = mii_azure.diff(bundle, copy)
    told = {(change.group, change.what or change.file): (change.before, change.after) for change in changes}
    assert [change.group for change in changes] == [
        "model", "scoring", "environment", "environment", "settings", "settings", "documents",
    ]  # fmt: skip
    assert told["environment", "transformers"] == ("5.23.0", "5.24.0")
    assert told["environment", "FROM 0"][1].endswith("@sha256:1 AS builder")
    assert told["settings", "instance_count"] == ("1", "3")
    assert told["settings", "limits.max_batch_size"][1] == f"1{told['settings', 'limits.max_batch_size'][0]}"
    assert told["model", "model/tokenizer.json"][1] is None
    assert told["documents", "notes.txt"][0] is None
    assert [change.line()[0] for change in changes] == ["-", "~", "~", "~", "~", "~", "+"]


def test_a_file_changed_in_its_comments_only_is_told_as_a_file(bundle, copy):
    replace("endpoint.yml", "\n", "\n# mine\n")(copy)
    assert [(change.file, change.what) for change in mii_azure.diff(bundle, copy)] == [("endpoint.yml", "")]


def cli(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "mii_azure.cli.app", *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def test_the_verbs_exit_by_what_they_found(bundle, copy, tmp_path):
    assert cli("verify", bundle).returncode == cli("diff", bundle, copy).returncode == 0
    replace("deploy.sh", "deploy", "destroy")(copy)
    verified, compared = cli("verify", copy, "--json"), cli("diff", bundle, copy)
    assert verified.returncode == compared.returncode == 1
    assert json.loads(verified.stdout)["problems"] == ["deploy.sh is edited."]
    assert compared.stdout.startswith("documents:\n  ~ deploy.sh ")
    assert cli("verify", tmp_path).returncode == cli("diff", bundle, tmp_path).returncode == 3
