"""A Ray cluster of two nodes on this machine, and fronts over it. Needs the extra `ray`; `make ray` runs these."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from local_runner.process import ready_file


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A cluster of a minute's start is for whoever asks for it."""
    if os.environ.get("MII_AZURE_RAY") == "1":
        return
    for item in items:
        if item.get_closest_marker("ray"):
            item.add_marker(pytest.mark.skip(reason="`make ray` starts a Ray cluster"))


REPLICA = re.compile(r"ServeReplica:")


class TwoNodes:
    """The cluster: a head, which fronts join, and a node that may be killed."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        small = {"object_store_memory": 80 << 20, "include_dashboard": False}
        self._cluster = Cluster()
        self._small = small
        self.add()
        self.node = self.add()
        self.address: str = self._cluster.address

    def add(self) -> Any:
        """Another node; one whose agent needs more than 15 s, on a busy machine, ends itself and is started again."""
        before = set(_below(os.getpid()))
        for _ in range(2):
            try:
                return self._cluster.add_node(num_cpus=2, **self._small)
            except Exception as error:
                print(f"a node did not start: {error}")
                for pid in set(_below(os.getpid())) - before:
                    os.kill(pid, signal.SIGKILL)
        return self._cluster.add_node(num_cpus=2, **self._small)

    def replicas(self) -> dict[str, str]:
        """The node of every living replica, by the replica's actor id, as the cluster itself tells."""
        import ray

        actors = ray._private.state.actors()
        alive = {key: one for key, one in actors.items() if one["State"] == "ALIVE"}
        found = {key: one for key, one in alive.items() if REPLICA.match(one["ActorClassName"])}
        return {key: one["Address"]["NodeID"] for key, one in found.items()}

    def kill(self, node: Any) -> None:
        """SIGKILL to the raylet and every process below it at once, as when the power goes."""
        raylet = node.all_processes["raylet"][0].process.pid
        for pid in [raylet, *_below(raylet)]:
            os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        self._cluster.shutdown()


class Front:
    """`python -m local_runner BUNDLE --engine ray` over the cluster."""

    def __init__(self, bundle: Path, folder: Path, *arguments: str) -> None:
        self.ready, self.log = folder / "ready.json", folder / "front.log"
        command = [sys.executable, "-m", "local_runner", str(bundle), "--engine", "ray", *arguments]
        command += ["--grpc-port", "0", "--http-port", "0", "--ready-file", str(self.ready)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})

    def wait(self, seconds: float = 180) -> "Front":
        """Until it is ready: two replicas at once on two busy cores import for more than a minute."""
        deadline = time.monotonic() + seconds
        while (state := ready_file.read(self.ready)).get("state") != "ready":
            assert time.monotonic() < deadline and self.process.poll() is None, self.log.read_text()
            time.sleep(0.05)
        self.grpc = f"127.0.0.1:{state['grpc_port']}"
        self.http = f"http://127.0.0.1:{state['http_port']}"
        return self

    def running(self) -> int:
        found: int = httpx.get(f"{self.http}/readyz", trust_env=False).json()["replicas"]["running"]
        return found

    def metric(self, name: str) -> float:
        text = httpx.get(f"{self.http}/metrics", trust_env=False).text
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(30)


@contextmanager
def front(bundle: Path, folder: Path, *arguments: str) -> Iterator[Front]:
    folder.mkdir(exist_ok=True)
    started = Front(bundle, folder, *arguments)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.process.kill()
            started.process.wait()


def until(true: Callable[[], bool], seconds: float, what: str) -> float:
    """Wait; return the seconds that it took."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < seconds, what
        time.sleep(0.1)
    return time.monotonic() - began


def _below(pid: int) -> list[int]:
    """Every process under `pid`."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            parents.setdefault(parent, []).append(int(entry.name))
    found: list[int] = []
    waiting = [pid]
    while waiting:
        children = parents.get(waiting.pop(), [])
        found += children
        waiting += children
    return found


@pytest.fixture(scope="session")
def cluster() -> Iterator[TwoNodes]:
    ray = pytest.importorskip("ray", reason="the extra `ray` is not installed: make ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    two = TwoNodes()
    ray.init(address=two.address, log_to_driver=False, logging_level="ERROR")
    yield two
    ray.shutdown()
    two.close()
