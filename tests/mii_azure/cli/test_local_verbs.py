"""A model tried here with one command; what runs is listed, and stopped by name or pid."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from local_runner.process.launch import LOOPBACK
from mii_azure.sdk.trial import guessed_task
from tests.mii_azure.cli.conftest import Done
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("forked")

Tiny = Callable[[str, str], Path]
Mii = Callable[..., Done]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MII_AZURE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_a_model_is_tried_listed_and_stopped(tiny: Tiny, mii: Mii, home: Path, tmp_path: Path) -> None:
    (tmp_path / "my.qa").symlink_to(tiny("bert", "question-answering"))
    tried = mii("try", "my.qa", "--keep")
    assert tried.code == 0, tried
    assert "try-my-qa (question-answering) answers at http://127.0.0.1:" in tried.out
    assert "asked {'question': 'What is my name?'" in tried.out
    assert "answer " in tried.out
    mine = {each["name"]: each for each in json.loads(mii("ps", "--json").out)}["try-my-qa"]
    assert (mine["task"], mine["deployed"], len(mine["ports"])) == ("question-answering", True, 2)
    assert re.search(rf"^try-my-qa +question-answering +{mine['pid']} +\d+, \d+ ", mii("ps").out, re.MULTILINE)

    bundle = home / "try-my-qa" / "bundle"
    command = [sys.executable, "-m", "local_runner", str(bundle), "--host", LOOPBACK]
    with subprocess.Popen([*command, "--grpc-port", "0", "--http-port", "0"]) as served:
        until(lambda: served.pid in {each["pid"] for each in json.loads(mii("ps", "--json").out)})
        assert (
            f"by its pid: {mine['pid']}" in mii("stop", "try-my-qa").err or "2 runners" in mii("stop", "try-my-qa").err
        )
        assert mii("stop", served.pid).code == 0
        served.wait(30)
    assert mii("stop", "try-my-qa").code == 0
    assert not (home / "try-my-qa").exists()
    wrong = mii("stop", "try-my-qa")
    assert (wrong.code, "[unknown_deployment]" in wrong.err) == (4, True)


def test_what_is_tried_ends_with_the_command(tiny: Tiny, mii: Mii, home: Path) -> None:
    done = mii("try", tiny("bert", "fill-mask"), "--task", "nonsense")
    assert (done.code, "[unknown_task]" in done.err) == (2, True)
    done = mii("try", tiny("bert", "fill-mask"))
    assert done.code == 0, done
    assert [path.name for path in home.iterdir() if path.is_dir()] == []


@pytest.mark.parametrize(
    ("family", "task"),
    [
        ("bert", "question-answering"),
        ("t5", "summarization"),
        ("gpt2", "text-generation"),
        ("llama", "conversational"),
        ("bert", "sentence-embeddings"),
        ("stable-diffusion", "text-to-image"),
    ],
)
def test_a_task_is_guessed_from_the_model(family: str, task: str, tiny: Tiny) -> None:
    assert guessed_task(str(tiny(family, "feature-extraction" if "embed" in task else task))) == task
