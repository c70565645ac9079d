"""Servers on half a core and on one core: as many threads as that, every pass verified, ready, and an answer.

And with less memory than a start takes: a code, a sentence and a remedy.
"""

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

import mii_azure
from tests.conftest import Tiny
from tests.local_runner.test_lifecycle import Started
from tests.scenarios.test_ends import NATIVE, native_bundle

_GROUPS = Path("/sys/fs/cgroup")
_THREADS = """
from scoring.limits import cpus
cpus.settle()
import torch
print(cpus.cores(), torch.get_num_threads())
"""


@pytest.fixture
def half_a_core() -> Iterator[Path]:
    """A control group of half a core, of either version; skips where none can be made."""
    old = (_GROUPS / "cpu" / "cpu.cfs_quota_us").exists() or (_GROUPS / "cpu" / "cgroup.procs").exists()
    group = (_GROUPS / "cpu" if old else _GROUPS) / f"mii-azure-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error.strerror}")
    try:
        try:
            if old:
                (group / "cpu.cfs_period_us").write_text("100000")
                (group / "cpu.cfs_quota_us").write_text("50000")
            else:
                (group / "cpu.max").write_text("50000 100000")
        except OSError as error:
            pytest.skip(f"no quota can be set here: {error.strerror}")
        yield group / "cgroup.procs"
    finally:
        with suppress(OSError):
            group.rmdir()


def _into(group: Path) -> str:
    return f"echo $$ > {shlex.quote(str(group))}; exec "


@pytest.fixture(params=["half a core", "one core"])
def small(request: pytest.FixtureRequest) -> str:
    """Shell words that put a process there before it becomes the server."""
    if request.param == "half a core":
        return _into(request.getfixturevalue("half_a_core"))
    core = min(os.sched_getaffinity(0))
    told = f"import os, sys; os.sched_setaffinity(0, {{{core}}}); os.execv(sys.argv[1], sys.argv[1:])"
    return f"exec {shlex.quote(sys.executable)} -c {shlex.quote(told)} "


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="control groups and affinity are Linux's")


def test_threads_are_as_many_as_the_share_of_a_core(small: str) -> None:
    plain = {name: value for name, value in os.environ.items() if "OMP" not in name}
    command = f"{small}{shlex.quote(sys.executable)} -c {shlex.quote(_THREADS)}"
    ran = subprocess.run(["sh", "-c", command], env=plain, capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["1", "1"]


@pytest.mark.parametrize("family", NATIVE)
def test_a_start_on_half_a_core_ends_with_its_passes_verified(
    family: str, half_a_core: Path, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = native_bundle(family, tiny, tmp_path / "bundle")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    runner = Started(bundle, tmp_path, before=_into(half_a_core))
    try:
        url = f"http://127.0.0.1:{runner.wait_for('ready', seconds=240)['http_port']}/score"
        body = {"inputs": "a [MASK] b" if family == "bert" else "a b"}
        assert httpx.post(url, json=body, trust_env=False, timeout=120).status_code == 200
        assert f"pass {NATIVE[family][1]}: applied" in runner.log.read_text()
    finally:
        runner.process.kill()
        runner.process.wait()


def test_a_start_without_memory_for_its_libraries_is_told_as_that(tiny: Tiny, tmp_path: Path) -> None:
    bundle = mii_azure.generate("fill-mask", str(tiny("bert", "fill-mask")), "small", output=tmp_path / "bundle")
    runner = Started(bundle, tmp_path, before="ulimit -v 1000000; exec ")
    code, log = runner.ended()
    assert code == 3
    assert "error [out_of_memory]: Memory ran out" in log
    assert "Traceback" not in log
