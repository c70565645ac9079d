"""Compiled code is kept where nobody else can have put any."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from scoring.model import caches

NAMES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "MII_AZURE_NATIVE_CACHE")


@pytest.fixture(autouse=True)
def unset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that it is as before after the test
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mii_azure"


def told() -> list[Path]:
    caches.use_private()
    return [Path(os.environ[name]) for name in NAMES]


def test_they_are_below_the_users_own_cache_and_private(unset: Path) -> None:
    assert told() == [unset / "compiled" / name for name in ("inductor", "triton", "native")]
    for folder in (unset, unset / "compiled", *told()):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_what_the_operator_names_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(NAMES[0], str(tmp_path / "mine"))
    assert told()[0] == tmp_path / "mine"


@pytest.mark.parametrize("how", ["another's", "link", "open", "file", "no home"])
def test_a_folder_that_another_could_have_filled_is_not_used(
    how: str, unset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    unset.mkdir(parents=True, mode=0o700)
    wanted = unset / "compiled"
    if how == "link":
        (tmp_path / "elsewhere").mkdir()
        wanted.symlink_to(tmp_path / "elsewhere")
    elif how == "file":
        wanted.touch()
    elif how == "no home":
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("Could not determine home.")))
    else:
        wanted.mkdir(mode=0o700)
    if how == "open":
        wanted.chmod(0o777)
    if how == "another's":
        real = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: real + 1)
    first, *others = told()
    assert {each.parent for each in others} == {first.parent}
    assert not first.is_relative_to(unset)
    assert stat.S_IMODE(first.parent.stat().st_mode) == 0o700
    assert "for this start only" in caplog.text
    assert not list((tmp_path / "elsewhere").glob("*"))


def test_inductor_goes_by_it_once_the_scoring_script_has_started(tmp_path: Path) -> None:
    """Also where somebody has made torch's own folder first."""
    code = "from scoring.model import caches; caches.use_private(); "
    code += "from torch._inductor.runtime.cache_dir_utils import cache_dir, triton_cache_dir; "
    code += "print(cache_dir(), triton_cache_dir(0))"
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    found = subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True).stdout
    assert [Path(each).relative_to(tmp_path) for each in found.split()] == [
        Path("mii_azure/compiled/inductor"),
        Path("mii_azure/compiled/triton"),
    ]
