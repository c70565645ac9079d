"""A model cut over two ranks: what listens while it serves, what strangers can reach of it, and what a kill leaves."""

import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import mii_azure
from tests.processes import Seen, alive, below, command, none_left, seen
from tests.scenarios.faults.conftest import Served, served, until

pytestmark = pytest.mark.usefixtures("forked")

_LISTENING = "0A"


@pytest.fixture(scope="module")
def sliced(tiny: Callable[[str, str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = str(tiny("llama", "text-generation"))
    folder = tmp_path_factory.mktemp("sliced") / "bundle"
    options: dict[str, Any] = {
        "output": folder,
        "dtype": "float32",
        "tensor_parallel": 2,
        "instance_type": "Standard_NC48ads_A100_v4",
    }
    return mii_azure.generate("text-generation", model, "sliced", passes_on=["tensor_slicing"], **options)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The folder for temporary files of the server alone."""
    folder = tmp_path / "t"
    folder.mkdir()
    return folder


@pytest.fixture
def server(sliced: Path, tmp_path: Path, place: Path) -> Iterator[tuple[Served, list[Seen]]]:
    with (
        none_left() as noted,
        (tmp_path / "log").open("wb") as log,
        served(sliced, tmp_path, output=log, TMPDIR=str(place)) as started,
    ):
        pid = started.process.pid
        noted += below(pid)
        assert any("scoring.tensor_parallel.worker" in command(each) for each, _ in noted), (
            tmp_path / "log"
        ).read_text()
        yield started, [seen(pid) or (0, ""), *noted]


def listeners(pids: list[int]) -> set[tuple[str, int]]:
    """Address and port of every TCP socket on which these processes listen."""
    links = [str(each.readlink()) for pid in pids for each in Path(f"/proc/{pid}/fd").iterdir() if each.is_symlink()]
    sockets = {link.removeprefix("socket:[").removesuffix("]") for link in links if link.startswith("socket:[")}
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pids[0]}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == _LISTENING and fields[9] in sockets:
                address, _, port = fields[1].partition(":")
                found.add((_readable(address), int(port, 16)))
    return found


def _readable(address: str) -> str:
    """An address from the kernel's table: words of 32 bits in the machine's order."""
    words = [bytes.fromhex(address[at : at + 8])[::-1] for at in range(0, len(address), 8)]
    packed = b"".join(words)
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)


def test_nothing_listens_outside_loopback_and_the_ranks_meet_in_private_and_end_after_rank_0(
    server: tuple[Served, list[Seen]], place: Path
) -> None:
    started, processes = server
    assert started.score("hello", parameters={"max_new_tokens": 2}, timeout=60).status_code == 200
    found = listeners([pid for pid, _ in processes])
    assert {started.http_port, started.grpc_port} <= {port for _, port in found}
    assert {address for address, _ in found} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    for folder in place.iterdir():
        assert not stat.S_IMODE(folder.stat().st_mode) & 0o077, folder
    ctrl_c_is_not_for_the_ranks(started, processes[1:])
    assert not list(place.glob("mii-azure-ranks-*"))


def ctrl_c_is_not_for_the_ranks(started: Served, others: list[Seen]) -> None:
    """It goes to all that are in front in the terminal; a rank that ended there would end what is in flight."""
    ranks = [pid for pid, _ in others if "scoring.tensor_parallel.worker" in command(pid)]
    assert ranks
    assert os.getpgid(started.process.pid) not in {os.getpgid(pid) for pid in ranks}
    started.process.terminate()
    assert started.process.wait(60) == 0
    until(lambda: not any(map(alive, others)))


def test_ranks_end_with_a_killed_rank_0_and_take_their_folder_along(
    server: tuple[Served, list[Seen]], place: Path
) -> None:
    started, processes = server
    assert list(place.glob("mii-azure-ranks-*"))
    started.process.kill()
    started.process.wait()
    until(lambda: not any(map(alive, processes)))
    assert not list(place.glob("mii-azure-ranks-*"))


def test_the_tests_own_view_of_listeners_sees_one_on_all_interfaces() -> None:
    with socket.create_server(("0.0.0.0", 0)) as listener:
        assert ("0.0.0.0", listener.getsockname()[1]) in listeners([os.getpid()])
