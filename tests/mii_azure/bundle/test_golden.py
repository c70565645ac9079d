"""The rendered files of every task on CPU, byte for byte; the diff of a golden tree is the review.

An encoder, a decoder and a pipeline are kept on a T4 and an A100 too: what a device changes, it changes by the kind of
model. Of those, a file that is the same on all three is kept once, under `any/`. More trees are what `--server http`
and other kinds change of a bundle. `make golden` writes the trees anew, and refuses while they have changes that are
not committed. Not kept are the lock, a copy that is compared with its source, and for most tasks the schema in older
dialects, which is compared with a conversion of the task's: `test_openapi.py` holds that.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from mii_azure.bundle import render as rendering
from mii_azure.bundle.openapi import documents
from mii_azure.bundle.render import TEMPLATES
from scoring.schema.registry import TASKS, schema
from tests.mii_azure.bundles import SKUS, rendered

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
UPDATE = os.environ.get("MII_AZURE_UPDATE_GOLDEN") == "1"
LOCK = "environment/requirements.lock"
#: Trees of which what differs from a task's own tree is kept: the task, and what is asked beside it.
VARIANTS = {
    "text-generation-http": ("text-generation", {"server": "http"}),
    "question-answering-template": (
        "question-answering",
        {"kind": "template", "registry": "shared", "image": "mine.azurecr.io/models/qa"},
    ),
    "text-generation-kaito": (
        "text-generation",
        {"kind": "kaito", "image": "mine.azurecr.io/models/text", "instance_type": "Standard_D8as_v4"},
    ),
}
#: Tasks whose trees are kept on every device.
ON_EVERY_DEVICE = ("question-answering", "text-generation", "text-to-image")
#: The schema in the dialects that are made from 3.1's.
OLDER = ("code/swagger2.json", "code/swagger3.json")
#: Files of the task's own tree that a variant does without.
ABSENT = {"text-generation-kaito": {"endpoint.yml", "deployment.yml", "environment.yml", "model.yml"}}
LOCKS = {"cpu": "cpu.lock", "t4": "cuda13.lock", "a100": "cuda13.lock"}


def uncommitted(folder: Path) -> str:
    """What git would lose if `folder` were written anew; "" if nothing."""
    command = ["git", "status", "--porcelain", "--", str(folder)]
    return subprocess.run(command, cwd=folder.parent, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module", autouse=True)
def start_from_committed_trees():
    if not UPDATE:
        return
    changes = uncommitted(GOLDEN)
    if changes:
        pytest.exit(f"commit or drop these first:\n{changes}", returncode=2)
    shutil.rmtree(GOLDEN, ignore_errors=True)


def write(task: str, trees: dict[str, dict[str, str]]) -> None:
    first = next(iter(trees.values()))
    same = read(VARIANTS[task][0], "cpu") if task in VARIANTS else {}
    for device, files in trees.items():
        for path, text in files.items():
            shared = len(trees) > 1 and all(tree[path] == text for tree in trees.values())
            if (shared and files is not first) or same.get(path) == text:
                continue
            target = GOLDEN / task / ("any" if shared else device) / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(text.encode())


def check_older_dialects(task: str, files: dict[str, str]) -> None:
    """Compare schemas in older dialects, and take them out of `files`."""
    about = json.loads(files["code/swagger3.1.json"])["info"]
    model = about["description"].rpartition(" Model: ")[2].removesuffix(".")
    made = documents(schema(task), title=about["title"], model=model)
    assert {path: json.loads(files.pop(path)) for path in OLDER} == {path: made[Path(path).name] for path in OLDER}


def devices(task: str) -> tuple[str, ...]:
    return tuple(SKUS) if task in ON_EVERY_DEVICE else ("cpu",)


def read(task: str, device: str) -> dict[str, str]:
    found = read(VARIANTS[task][0], device) if task in VARIANTS else {}
    for folder in (GOLDEN / task / "any", GOLDEN / task / device):
        found |= {
            path.relative_to(folder).as_posix(): path.read_bytes().decode()
            for path in folder.rglob("*")
            if path.is_file()
        }
    return found


@pytest.mark.parametrize("task", [*TASKS, *VARIANTS])
def test_rendered_files_are_the_golden_ones(task, monkeypatch):
    # The tag of an image that carries the code would change with every line of `scoring/`.
    monkeypatch.setattr(rendering, "carried_code", lambda server: {})
    of, preferences = VARIANTS.get(task, (task, {}))
    trees = {device: rendered(of, device, **preferences) for device in devices(task)}
    for device, files in trees.items():
        served = "local_runner.container" in files["environment/Dockerfile"]
        locks = [LOCKS[device], *(["http.lock"] if served else [])]
        locks += ["openvino.lock"] if device == "cpu" and "run by OpenVINO" in files["plan.md"] else []
        locks += ["speech.lock"] if TASKS[of].hears else []
        assert files.pop(LOCK) == "".join((TEMPLATES / "locks" / lock).read_text() for lock in locks)
        if of not in ON_EVERY_DEVICE:
            check_older_dialects(of, files)
    if UPDATE:
        write(task, trees)
    for device, files in trees.items():
        expected = read(task, device)
        assert files.keys() == expected.keys() - ABSENT.get(task, set())
        for path, text in files.items():
            assert text == expected[path], f"{task}, {device}, {path}: `make golden` shows the difference"


def test_every_golden_tree_belongs_to_a_task_and_one_of_its_devices():
    found = {path.name: {tree.name for tree in path.iterdir()} - {"any"} for path in GOLDEN.iterdir()}
    assert found == {task: set(devices(task)) for task in (*TASKS, *VARIANTS)}


def test_an_update_would_lose_nothing_that_is_not_committed(tmp_path):
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    golden = tmp_path / "golden"
    golden.mkdir()
    (golden / "a").write_text("1")
    git("init")
    assert uncommitted(golden)
    git("add", ".")
    git("commit", "-m", "a")
    assert not uncommitted(golden)
    (golden / "a").write_text("2")
    assert uncommitted(golden)
