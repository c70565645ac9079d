"""A user's own scoring.py, local_runner.py and templates/ beside a notebook change nothing."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Tiny = Callable[[str, str], Path]

CODE = """
import sys
sys.path.insert(0, "")
{before}
import mii_azure
folder = mii_azure.generate("fill-mask", {model!r}, "mlm")
assert mii_azure.plan("fill-mask", {model!r}).fits
assert not mii_azure.check(folder), mii_azure.check(folder)
import local_runner.client.client
print(folder.name, {after})
"""


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    (tmp_path / "scoring.py").write_text("WHOSE = 'theirs'\n")
    (tmp_path / "local_runner.py").write_text("raise SystemExit('theirs')\n")
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "__init__.py").write_text("raise SystemExit('theirs')\n")
    return tmp_path


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).resolve().parents[3])
    env = {**os.environ, "PYTHONPATH": root}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(("before", "after"), [("", "1"), ("import scoring as mine", "mine.WHOSE")])
def test_python_finds_our_packages_and_leaves_theirs(before: str, after: str, beside: Path, tiny: Tiny) -> None:
    code = CODE.format(before=before, model=str(tiny("bert", "fill-mask")), after=after)
    done = run(beside, sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["mlm", "theirs" if before else "1"]


def test_serve_starts_our_runner(beside: Path) -> None:
    (beside / "nothing").mkdir()
    done = run(beside, str(Path(sys.executable).parent / "mii-azure"), "serve", "nothing")
    assert (done.returncode, "error [not_a_bundle]" in done.stderr) == (3, True), done
