"""Fixtures shared by all tests, and the environment to set before torch or transformers is imported."""

from __future__ import annotations

import gc
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import mkdtemp

import pytest

from tests.fork_server import ForkServer, fork_server, forking

# No test reaches a hub; one thread makes sums repeatable and leaves the cores to xdist's workers.
for _name, _value in {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "DS_ACCELERATOR": "cuda" if Path("/dev/nvidiactl").exists() else "cpu",  # asked of the system: torch comes later
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "passive",  # an init in this process would set it, and forks would not be those asked for
}.items():
    os.environ.setdefault(_name, _value)

gc.set_threshold(
    20_000
)  # looking for garbage among modules, which stay, takes a tenth of the time with Python's own 700

# A shell's background has Ctrl-C ignored, and nohup a hangup; every process started from here would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

Tiny = Callable[[str, str], Path]
Packaged = Callable[[str], Path]


def pytest_collection_finish() -> None:
    """Keep the garbage collector from all that collecting tests imported."""
    gc.freeze()


def _publish(draft: Path, final: Path) -> None:
    """Rename a finished draft into place; if another worker was first, its equal folder stays."""
    try:
        draft.rename(final)
    except OSError:
        if not final.is_dir():
            raise
        shutil.rmtree(draft)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """`tiny(family, task)` gives the folder of a tiny random model; read it, never write into it."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "tiny_models"
    shared.mkdir(exist_ok=True)

    def folder(family: str, task: str) -> Path:
        final = shared / f"{family}-{task}"
        if not final.is_dir():
            from tests.tiny_models import tiny_model

            draft = Path(mkdtemp(prefix=f".{final.name}-", dir=shared))
            _publish(tiny_model(family, task, draft), final)
        return final

    return folder


@pytest.fixture(scope="session")
def packaged() -> Packaged:
    """`packaged(name)` gives the folder of a real model out of a package; never write into it."""
    from mii_azure.model.packaged import packaged_model

    return packaged_model


@pytest.fixture(scope="session", name="fork_server")
def _fork_server() -> Iterator[ForkServer]:
    """The server that forks processes of this project's programs, for `forking`."""
    with fork_server() as server:
        yield server


@pytest.fixture(scope="module")
def forked(fork_server: ForkServer) -> Iterator[None]:
    """What a module's tests start of this project's programs is forked, where the start is not what they test."""
    with forking(fork_server):
        yield
