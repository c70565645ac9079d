"""What a start of `entry` does ahead of the first request."""

import sys

import pytest

from scoring import entry


def test_a_start_imports_what_the_first_answer_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The class of answers brings a web framework with it: a first client would wait a quarter of a second for it."""
    for name in [name for name in sys.modules if name.startswith("azureml_inference_server_http")]:
        monkeypatch.delitem(sys.modules, name)
    with entry._importing():
        pass
    assert "azureml_inference_server_http.api.aml_response" in sys.modules


def test_a_batch_starts_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "azureml_inference_server_http", None)
    monkeypatch.delitem(sys.modules, "azureml_inference_server_http.api.aml_response", raising=False)
    with entry._importing():
        pass
    assert "azureml_inference_server_http.api.aml_response" not in sys.modules
