"""What `deploy` and `terminate` do to processes: only what they started is signalled, and nothing of it is left."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import mii_azure
from mii_azure.errors import RunnerFailed, UnknownDeployment
from mii_azure.sdk import deployments, processes
from tests.processes import Seen, alive, below, command, mentioning, none_left, seen
from tests.scenarios.faults.conftest import until

Tiny = Callable[[str, str], Path]
TASK = "question-answering"
pytestmark = pytest.mark.usefixtures(
    "forked"
)  # runners that `deploy` starts in this process; `deploying` starts as it is
DEPLOY = "import sys, time, mii_azure; mii_azure.deploy(*sys.argv[1:4]); print('up', flush=True); time.sleep(600)"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("MII_AZURE_HOME", str(tmp_path / "home"))
    yield tmp_path / "home"
    for pid, _ in mentioning(str(tmp_path / "home")):  # runners that nobody holds, where a test has failed
        os.kill(pid, signal.SIGKILL)
    while deployments._children:
        _, child = deployments._children.popitem()
        child.kill()
        child.wait()


@pytest.fixture
def model(tiny: Tiny) -> str:
    return str(tiny("bert", TASK))


@pytest.fixture
def bystander() -> Iterator["subprocess.Popen[bytes]"]:
    """A process that nobody may signal."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


def deploying(model: str, name: str = "qa", **options: Any) -> "subprocess.Popen[bytes]":
    """`deploy` in a process of its own."""
    return subprocess.Popen([sys.executable, "-c", DEPLOY, TASK, model, name], stdout=subprocess.PIPE, **options)


def runners(process: "subprocess.Popen[bytes]") -> list[Seen]:
    return [each for each in below(process.pid) if "-m local_runner" in command(each[0])]


def put(home: Path, text: str) -> Path:
    state = home / "qa" / "state.json"
    state.parent.mkdir(parents=True)
    state.write_text(text)
    return state


def record(pid: Any, **more: Any) -> str:
    ports = {"host": "127.0.0.1", "grpc_port": 50051, "http_port": 5001}
    return json.dumps({"name": "qa", "bundle": "b", "pid": pid, **ports, **more})


@pytest.mark.parametrize("kind", ["bystander", "recycled", "0", "1", "-1", "4194305", "1e30", '"7"', "true"])
def test_terminate_signals_nothing_that_it_did_not_start(
    kind: str, home: Path, bystander: "subprocess.Popen[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {"bystander": record(bystander.pid)}
    told["recycled"] = record(bystander.pid, started="before", command="python -m local_runner b")
    state = put(
        home, told.get(kind, record(0, started="s", command=" -m local_runner ").replace('"pid": 0', f'"pid": {kind}'))
    )
    signalled: list[Any] = []
    real = os.kill
    monkeypatch.setattr(os, "kill", lambda pid, number: signalled.append(pid) if number else real(pid, 0))
    with pytest.raises(UnknownDeployment) as raised:
        mii_azure.terminate("qa")
    monkeypatch.undo()
    assert not signalled
    assert bystander.poll() is None
    assert not state.exists()
    assert str(raised.value).startswith(("The record of the deployment 'qa' cannot be read", "The deployment 'qa' had"))


def test_a_recycled_pid_of_a_real_deployment_is_left_alone(
    home: Path, model: str, bystander: "subprocess.Popen[bytes]"
) -> None:
    mii_azure.deploy(TASK, model, "qa")
    state = home / "qa" / "state.json"
    told = json.loads(state.read_text())
    with none_left() as noted:
        noted.append(seen(told["pid"]) or (0, ""))
        state.write_text(json.dumps(told | {"pid": bystander.pid}))
        with pytest.raises(UnknownDeployment):
            mii_azure.client("qa")
        with pytest.raises(UnknownDeployment):
            mii_azure.terminate("qa")
        assert bystander.poll() is None
        assert alive(noted[0])


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"name": "qa"}', "\x00\xff", "1" * 5000, "[" * 50_000])
def test_a_corrupt_record_is_told_and_does_not_keep_the_name(
    text: str, home: Path, model: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = put(home, text)
    with pytest.raises(UnknownDeployment, match=r"The record of the deployment 'qa' cannot be read: .*terminate"):
        mii_azure.client("qa")
    with pytest.raises(UnknownDeployment, match=r"There is no running deployment 'other'\. Nothing is deployed"):
        mii_azure.client("other")
    monkeypatch.setattr(deployments, "_generate", lambda *_: (_ for _ in ()).throw(RunnerFailed("far enough")))
    with pytest.raises(RunnerFailed, match="far enough"):
        mii_azure.deploy(TASK, model, "qa")
    assert "cannot be read" in caplog.text
    assert not state.exists()


def test_a_runner_that_nobody_reaps_has_ended(model: str) -> None:
    with none_left() as noted, deploying(model) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            noted += runners(process)
            # In a process of its own: it may not wait for ever.
            code = "import mii_azure; mii_azure.terminate('qa')"
            assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
            until(lambda: not alive(noted[0]), 5)
        finally:
            process.kill()


def test_a_runner_that_does_not_end_is_killed(home: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployments, "STOP_TIMEOUT_S", 0.5)
    deployed = mii_azure.deploy(TASK, model, "qa")
    with none_left() as noted:
        noted.append(seen(deployed.pid) or (0, ""))
        os.kill(deployed.pid, signal.SIGSTOP)  # SIGTERM does not reach it now
        mii_azure.terminate("qa")
        until(lambda: not alive(noted[0]), 5)
        assert not (home / "qa").exists()


def test_one_that_even_a_kill_does_not_end_is_an_error_and_kept(
    home: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that waits for a device; here one whose signals are lost."""
    deployed = mii_azure.deploy(TASK, model, "qa")
    with none_left() as noted, pytest.MonkeyPatch.context() as patch:
        noted.append(seen(deployed.pid) or (0, ""))
        patch.setattr(deployments, "STOP_TIMEOUT_S", 0.2)
        patch.setattr(processes, "_signal", lambda *_: None)
        patch.setattr(processes.end, "__defaults__", (0.2,))
        with pytest.raises(RunnerFailed, match=f"The runner of 'qa', pid {deployed.pid}, has not ended after SIGKILL"):
            mii_azure.terminate("qa")
        assert (home / "qa" / "state.json").exists()


def test_two_of_one_name_start_one_runner(home: Path, model: str) -> None:
    with none_left() as noted:
        both = [deploying(model, stderr=subprocess.PIPE) for _ in range(2)]
        try:
            ended = until(lambda: [each for each in both if each.poll() is not None], 60)
            assert len(ended) == 1
            (other,) = set(both) - set(ended)
            assert other.stdout is not None
            assert other.stdout.readline() == b"up\n"
            assert ended[0].stderr is not None
            told = ended[0].stderr.read().decode()
            assert "is being started or stopped by another call" in told or "is running already" in told
            noted += runners(other)
            assert len(noted) == 1
            mii_azure.terminate("qa")
            until(lambda: not alive(noted[0]), 5)
        finally:
            for each in both:
                noted += below(each.pid)
                each.kill()
                each.communicate()


def test_a_name_that_is_being_started_is_not_terminated(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, leave = threading.Event(), threading.Event()

    def wait(*_: Any) -> Path:
        entered.set()
        leave.wait(30)
        raise RunnerFailed("no more")

    monkeypatch.setattr(deployments, "_generate", wait)

    def start() -> None:
        with pytest.raises(RunnerFailed, match="no more"):
            mii_azure.deploy(TASK, model, "qa")

    thread = threading.Thread(target=start)
    thread.start()
    try:
        assert entered.wait(30)
        with pytest.raises(RunnerFailed, match="is being started or stopped by another call"):
            mii_azure.terminate("qa")
    finally:
        leave.set()
        thread.join()
    with pytest.raises(UnknownDeployment):  # the lock is free again
        mii_azure.terminate("qa")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_runner_ends_with_the_deploy_that_is_interrupted(
    number: signal.Signals, home: Path, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with none_left() as noted, deploying(model, stderr=subprocess.DEVNULL) as process:
        try:
            found = until(lambda: runners(process), 60)
            noted += found
            process.send_signal(number)
            assert process.wait(30) != 0
            until(lambda: not any(map(alive, found)), 30)
        finally:
            process.kill()
    assert not list(home.glob("*/state.json"))


def test_so_does_one_that_is_not_ready_in_time(home: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Seen] = []
    real = deployments._give_up

    def note(process: "subprocess.Popen[bytes]") -> None:
        started.append(seen(process.pid) or (0, ""))
        real(process)

    monkeypatch.setattr(deployments, "_give_up", note)
    with none_left() as noted:
        with pytest.raises(RunnerFailed, match=r"was not ready after 0\.1 s"):
            mii_azure.deploy(TASK, model, "qa", timeout_s=0.1)
        noted += started
        assert len(started) == 1
        until(lambda: not alive(started[0]), 5)


def test_a_deployment_outlives_the_process_that_made_it(model: str) -> None:
    with none_left() as noted, deploying(model) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        noted += runners(process)
        process.kill()
        process.wait()
        time.sleep(1)  # a leash would have ended it long before
        with mii_azure.client("qa") as client:
            assert client.ready()
        mii_azure.terminate("qa")
        until(lambda: not alive(noted[0]), 5)


def test_processes_are_known_without_proc_too(bystander: "subprocess.Popen[bytes]") -> None:
    """As on macOS, by ps."""
    known = processes.from_ps(bystander.pid)
    assert known is not None
    assert known.command == (processes.look(bystander.pid) or known).command
    assert time.strptime(known.started, "%a %b %d %H:%M:%S %Y")
    bystander.kill()
    until(lambda: processes.from_ps(bystander.pid) is None)  # a zombie: nobody has reaped it
    bystander.wait()
    assert processes.from_ps(bystander.pid) is None


def test_another_users_process_is_nobodys(
    bystander: "subprocess.Popen[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    assert processes.look(bystander.pid) is not None
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert processes.look(bystander.pid) is None
    assert processes.from_ps(bystander.pid) is None
