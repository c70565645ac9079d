"""Threads: as many as cores that the process may use, and none that spins while it waits."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scoring.limits import cpus
from scoring.limits.control_groups import held, memory_limit

V2, V1 = "0::/a/b\n", "9:name=systemd:/\n2:cpu,cpuacct:/a/b\n0::/\n"
GROUPS: dict[str, tuple[str, dict[str, str], int]] = {
    "none": (V2, {}, 64),
    "no limit": (V2, {"a/b/cpu.max": "max 100000", "cpu.max": "max 100000"}, 64),
    "two cores": (V2, {"a/b/cpu.max": "200000 100000"}, 2),
    "of the group around it": (V2, {"a/cpu.max": "300000 100000", "a/b/cpu.max": "800000 100000"}, 3),
    "in a container's own name space": ("0::/\n", {"cpu.max": "150000 100000"}, 2),
    "under the host's path in a container": (V2, {"cpu.max": "50000 100000"}, 1),
    "half a core": (V2, {"a/b/cpu.max": "50000 100000"}, 1),
    "version 1": (V1, {"cpu,cpuacct/a/b/cpu.cfs_quota_us": "200000", "cpu,cpuacct/a/b/cpu.cfs_period_us": "100000"}, 2),
    "version 1 without limit": (
        V1,
        {"cpu,cpuacct/a/b/cpu.cfs_quota_us": "-1", "cpu,cpuacct/a/b/cpu.cfs_period_us": "100000"},
        64,
    ),
    "more than there are": (V2, {"a/b/cpu.max": "9900000 100000"}, 64),
    "nonsense": ("what\n", {"cpu.max": "0 0"}, 64),
}


@pytest.fixture
def big(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 64 cores on which no operator has said anything."""
    for name in (cpus.SHARERS, "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)


def groups(root: Path, told: str, files: dict[str, str]) -> Path:
    """A machine's root with these files of control groups."""
    for path, text in {"proc/self/cgroup": told, **{f"sys/fs/cgroup/{at}": text for at, text in files.items()}}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text + "\n", encoding="utf-8")
    return root


@pytest.mark.usefixtures("big")
@pytest.mark.parametrize("name", GROUPS)
def test_quotas_of_control_groups(name: str, tmp_path: Path) -> None:
    told, files, wanted = GROUPS[name]
    assert cpus.cores(groups(tmp_path, told, files)) == wanted


@pytest.mark.parametrize(
    ("told", "files", "limit"),
    [
        (V2, {}, None),
        (V2, {"a/b/memory.max": "max"}, None),
        (V2, {"a/b/memory.max": "2000", "a/memory.max": "1000"}, 1000),
        ("4:memory:/a/b\n", {"memory/a/b/memory.limit_in_bytes": "3000"}, 3000),
        (V1, {"cpu,cpuacct/memory.max": "7"}, None),
    ],
)
def test_memory_limits_of_control_groups(told: str, files: dict[str, str], limit: int | None, tmp_path: Path) -> None:
    assert memory_limit(groups(tmp_path, told, files)) == limit


@pytest.mark.usefixtures("big")
def test_processes_share_what_the_quota_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpus, "_quotas", lambda root: iter([6.0]))
    for sharers, wanted in (("2", 3), ("4", 1), ("9", 1), ("0", 6), ("x", 6)):
        monkeypatch.setenv(cpus.SHARERS, sharers)
        assert cpus.cores() == wanted


@pytest.mark.usefixtures("big")
def test_threads_are_cut_to_the_quota_and_an_operator_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpus, "_quotas", lambda root: iter([1.5]))
    cpus.settle()
    assert (os.environ["OMP_NUM_THREADS"], os.environ["OMP_WAIT_POLICY"]) == ("2", "passive")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setenv("GOMP_SPINCOUNT", "1000")
    cpus.settle()
    assert (os.environ["OMP_NUM_THREADS"], os.environ.get("OMP_WAIT_POLICY")) == ("7", None)


@pytest.mark.usefixtures("big")
def test_a_whole_machine_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads of one core share its units: torch counts cores, the system counts threads."""
    monkeypatch.setattr(cpus, "_quotas", lambda root: iter([]))
    cpus.settle()
    assert "OMP_NUM_THREADS" not in os.environ


@pytest.mark.skipif(sys.platform != "linux", reason="libgomp is Linux's")
def test_openmp_itself_waits_passively_once_a_server_starts() -> None:
    """The library reads its settings when it is loaded: no server may have loaded it before `init`."""
    start = """
import contextlib, os, sys
import local_runner.server, scoring.entry
assert "torch" not in sys.modules
with contextlib.suppress(Exception):  # there is no bundle around the source tree
    scoring.entry.init()
import torch
"""
    plain = {name: value for name, value in os.environ.items() if "OMP" not in name}
    ran = subprocess.run(
        [sys.executable, "-c", start],
        env={**plain, "OMP_DISPLAY_ENV": "true"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in ran.stderr


def test_what_a_process_holds_grows_with_what_it_fills() -> None:
    before, filled = held(), bytearray(b"a") * (64 << 20)
    assert held() - before > len(filled) / 2
    assert held(Path("/nowhere")) == 0
