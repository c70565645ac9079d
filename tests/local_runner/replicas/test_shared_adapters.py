"""Replicas that cannot follow a change of adapters: none serves what the others do not."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from local_runner.replicas.local.shared_adapters import SharedAdapters
from local_runner.replicas.local.supervisor import Condition, ReplicaProcess, Wanted
from scoring.errors import AdapterRefused, Overloaded
from scoring.host_api import AdapterRef, Deployment, LoadAdapter

REF = AdapterRef("mine", "a" * 64, rank=4, products=1, parameters=8, merged=False)


class Killed:
    """A process that counts its kills."""

    kills = 0

    def kill(self) -> None:
        self.kills += 1


class Replica(ReplicaProcess):
    """Replica that is ready, and answers changes as it is told; an error is raised, GONE among them."""

    def __init__(self, folder: Path, *answers: Any) -> None:
        super().__init__(0, folder, folder, {}, [])
        self.condition = Condition.READY
        self.killed = Killed()
        self.process: Any = self.killed
        self.asked: list[Wanted] = []
        self._answers = list(answers)

    async def become(self, wanted: Wanted) -> list[AdapterRef]:
        self.asked.append(wanted)
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return list(answer)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine").mkdir()
    return tmp_path


def change(folder: Path, able: list[Replica], everyone: list[Replica]) -> SharedAdapters:
    shared = SharedAdapters(folder, Deployment("base", "text-generation"), folder)
    asyncio.run(shared.change(LoadAdapter("mine", str(folder / "mine")), lambda: [*able], everyone))
    return shared


def test_a_replica_that_cannot_go_back_is_started_again(folder: Path) -> None:
    full = Overloaded("Requests still run.", "Try again.")
    stuck, refusing = Replica(folder, [REF], full), Replica(folder, AdapterRefused("No."), [])
    with pytest.raises(AdapterRefused, match=r"No\."):
        change(folder, [stuck, refusing], [stuck, refusing])
    assert (stuck.asked[-1], refusing.asked[-1]) == ((), ())
    assert (stuck.killed.kills, refusing.killed.kills) == (1, 0)


def test_a_change_that_was_made_is_no_error_where_a_later_replica_cannot_follow(folder: Path) -> None:
    there, later = Replica(folder, [REF]), Replica(folder, Overloaded("Requests still run.", "Try again."))
    shared = change(folder, [there], [there, later])
    assert shared.refs == (REF,)
    assert (there.killed.kills, later.killed.kills) == (0, 1)


def test_a_replica_that_is_gone_is_ended_by_nobody_here(folder: Path) -> None:
    there, gone = Replica(folder, [REF]), Replica(folder, ConnectionResetError())
    assert change(folder, [there, gone], [there, gone]).refs == (REF,)
    assert gone.killed.kills == 0
