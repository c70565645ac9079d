"""What a start of `entry` does ahead of the first request."""

import sys

import pytest

from scoring import entry

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
