"""Which folders generation replaces, and what it leaves of its own when it is stopped."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import mii_azure
from mii_azure.bundle import folders
from mii_azure.bundle.manifest import find_mismatches
from mii_azure.cli import app
from mii_azure.errors import BundleExists, NotWritten
from mii_azure.sdk import deployment_records, deployments, processes
from tests.waiting import until

EXTENSION = {"manifest_version": 3, "name": "An extension", "version": "1.0", "background": {"scripts": ["a.js"]}}
LOOKALIKES = [
    EXTENSION,
    {"schema": 1, "files": {"code/score.py": "0", "a.js": "0"}, "bundle": "0"},
    {"schema": 1, "files": ["code/score.py"]},
    [],
]


@pytest.fixture
def model(tiny, tmp_path) -> Path:
    return Path(shutil.copytree(tiny("bert", "question-answering"), tmp_path / "in" / "model"))


def generate(model: Path, output: Path | str | None, **options) -> Path:
    return mii_azure.generate("question-answering", str(model), "my-qa", output=output, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("manifest", LOOKALIKES)
def test_force_leaves_what_only_has_some_manifest(model, tmp_path, manifest):
    target = tmp_path / "extension"
    (target / "src").mkdir(parents=True)
    (target / "manifest.json").write_text(json.dumps(manifest))
    (target / "src" / "a.js").write_text("years of work")
    before = contents(target)
    with pytest.raises(BundleExists, match=r"a manifest.json that is not a bundle's"):
        generate(model, target, force=True)
    folders.remove(target)
    assert contents(target) == before


@pytest.mark.parametrize("lost", ["code/score.py", "code/deployment.json"])
def test_force_leaves_a_bundle_that_lost_what_makes_it_one(make_bundle, lost):
    bundle = make_bundle()
    (bundle / lost).unlink()
    with pytest.raises(BundleExists, match="not a bundle"):
        make_bundle(force=True)
    assert (bundle / "model" / "config.json").is_file()


def test_a_folder_that_was_filled_in_the_meantime_is_left(model, tmp_path):
    def fill(done: int, total: int) -> None:
        (tmp_path / "b").mkdir(exist_ok=True)
        (tmp_path / "b" / "mine").write_text("x")

    with pytest.raises(BundleExists):
        generate(model, tmp_path / "b", progress=fill)
    assert contents(tmp_path / "b") == {"mine": b"x"}


@pytest.mark.parametrize("output", [".", "..", "/", "~", "~/.."])
@pytest.mark.parametrize("force", [True, False])
def test_a_place_that_is_more_than_a_bundles_is_refused_with_a_sentence(
    model, tmp_path, output, force, monkeypatch, capsys
):
    here = tmp_path / "home" / "here"
    here.mkdir(parents=True)
    command = ["mii-azure", "generate", "--task", "question-answering", "--name", "my-qa"]
    command += ["--model", str(model), "--output", output, *(["--force"] if force else [])]
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        app.main()
    told = capsys.readouterr().err
    assert ended.value.code == 3, told
    assert "[not_written]" in told
    assert "--output" in told
    assert list(here.iterdir()) == []


def test_an_output_inside_the_models_folder_is_refused(model, monkeypatch):
    before = contents(model)
    with pytest.raises(NotWritten, match="inside the model's folder"):
        generate(model, model / "bundle")
    monkeypatch.chdir(model)
    with pytest.raises(NotWritten, match="inside the model's folder") as caught:
        generate(Path(), None)
    assert "--output" in caught.value.hint
    assert contents(model) == before


def test_an_output_that_holds_the_model_is_refused(make_bundle, model):
    bundle = make_bundle()
    inner = shutil.copytree(model, bundle / "mine" / "model")
    before = contents(bundle)
    with pytest.raises(NotWritten, match="holds the model's folder"):
        generate(inner, bundle, force=True)
    link = bundle.parent / "link"
    link.symlink_to(inner)
    with pytest.raises(NotWritten, match="holds the model's folder"):
        generate(link, bundle, force=True)
    assert contents(bundle) == before


def test_terminate_removes_what_a_deployment_wrote_and_nothing_else(make_bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("MII_AZURE_HOME", str(tmp_path))
    place = tmp_path / "Documents"
    (place / "bundle").mkdir(parents=True)
    (place / "bundle" / "thesis.tex").write_text("years")
    # A process that the record takes for a runner: by its command line.
    with subprocess.Popen([sys.executable, "-c", "input()", "-m", "local_runner", "."], stdin=subprocess.PIPE) as child:
        # A process has no command line for a moment after it has begun.
        known = until(lambda: (found := processes.look(child.pid)) and found.command and found)
        ports = "127.0.0.1", 1, 2
        told = deployments.LocalDeployment("Documents", str(place), child.pid, *ports, known.started, known.command)
        deployment_records.write(told)
        deployments.terminate("Documents")
    assert contents(place) == {"bundle/thesis.tex": b"years"}


STOPPED = """
import pathlib, sys, time, mii_azure
def hold(done, total):
    pathlib.Path(sys.argv[3]).touch()
    time.sleep(60)
mii_azure.generate("question-answering", sys.argv[1], "my-qa", output=sys.argv[2], force=True, progress=hold)
"""


def begun(model: Path, output: Path, sign: Path, *before: str) -> subprocess.Popen[bytes]:
    """A generation that holds still with half of the bundle written."""
    child = subprocess.Popen([*before, sys.executable, "-c", STOPPED, str(model), str(output), str(sign)])

    def holds() -> bool:
        assert child.poll() is None
        return sign.exists()

    until(holds, 120)
    return child


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_stopped_generation_leaves_nothing_of_its_own(model, make_bundle, tmp_path, number):
    bundle = make_bundle()
    child = begun(model, bundle, tmp_path / "sign")
    assert list(tmp_path.glob(".*.partial"))
    child.send_signal(number)
    assert child.wait(60) == -number
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "in", "sign"]
    assert find_mismatches(bundle) == []


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_under_nohup_a_closed_terminal_stops_nothing(model, tmp_path):
    child = begun(model, tmp_path / "b", tmp_path / "sign", "nohup")
    try:
        status = Path(f"/proc/{child.pid}/status").read_text()
        ignored = int(status.split("SigIgn:")[1].split()[0], 16)
        assert ignored >> (signal.SIGHUP - 1) & 1
    finally:
        child.terminate()
        child.wait(60)
    assert not list(tmp_path.glob(".*.partial"))
