"""What a start of `entry` does ahead of the first request."""

import errno
import sys

import pytest

from scoring import entry
from scoring.errors import LoadError, OutOfMemory

PACKAGE = "azureml_inference_server_http"
ANSWERS = f"{PACKAGE}.api.aml_response"


@pytest.fixture(autouse=True)
def not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == PACKAGE]:
        monkeypatch.delitem(sys.modules, name)


def test_a_start_imports_what_the_first_answer_needs() -> None:
    """The class of answers brings a web framework with it: a first client would wait a quarter of a second for it."""
    with entry._importing():
        pass
    assert ANSWERS in sys.modules


def test_a_batch_starts_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, PACKAGE, None)
    with entry._importing():
        pass
    assert ANSWERS not in sys.modules


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (MemoryError(), OutOfMemory),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), OutOfMemory),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), OutOfMemory),
        (RuntimeError("can't allocate memory: you tried to allocate 9 bytes"), OutOfMemory),
        (LoadError("What it says of memory: not enough memory."), LoadError),
        (RuntimeError("shapes differ"), RuntimeError),
    ],
    ids=lambda each: type(each).__name__,
)
def test_memory_that_runs_out_at_a_start_is_told_as_that(raised: Exception, told: type[Exception]) -> None:
    with pytest.raises(told) as found, entry._memory():
        raise raised
    assert type(found.value) is told
