"""What Azure says, in sentences of public reports and of Microsoft's pages, and what we make of each."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from azure.core import exceptions

from mii_azure.azure.causes import CAUSES, VAGUE
from mii_azure.azure.errors import translate

SENTENCES = json.loads(Path(__file__).with_name("sentences.json").read_text(encoding="utf-8"))


def raised(told):
    """As azure-core raises it: from ARM's body where there is a code, else a text."""
    if "status" not in told and "code" not in told:
        kind = exceptions.ClientAuthenticationError if "AADSTS" in told["message"] else exceptions.HttpResponseError
        return kind(told["message"])
    body = {key: told[key] for key in ("code", "message", "details") if key in told}
    body |= {"innererror": told["inner"]} if "inner" in told else {}
    text = json.dumps({"error": body})
    response = SimpleNamespace(
        status_code=told.get("status", 400), reason="", headers={"x-ms-request-id": "req-7"}, text=lambda: text
    )
    return exceptions.HttpResponseError(response=response) if "code" in told else _plain(response, told["message"])


def _plain(response, message):
    return exceptions.HttpResponseError(message=message, response=response)


@pytest.mark.parametrize("told", SENTENCES, ids=lambda told: f"{told['from']}: {told['summary']}")
def test_each_sentence_has_its_finding(told):
    error = translate(raised(told))
    assert error.code == told["error"], error
    assert told["summary"] in error.message
    assert error.hint.endswith(".")
    if error.code == "not_signed_in":
        assert error.message.count(". ") <= 3
        assert "\n" not in str(error)
    elif error.code != "quota_exceeded":
        assert "cores" not in error.hint or "do not help" in error.hint
    if "code" in told:
        assert error.request_id == "req-7"
    if error.code != "not_signed_in":
        assert " ".join(told["message"].split())[:60] in error.message  # Azure's own words
    if "not known here" in error.message:
        assert error.code == "azure_error"
        assert "request id" in error.hint


def test_nobody_signed_in_is_one_sentence():
    (told,) = [told for told in SENTENCES if "Attempted credentials" in told["message"]]
    assert translate(raised(told)).message == "Nobody is signed in to Azure here."


def test_there_are_forty_and_none_is_told_twice():
    assert len({told["message"] for told in SENTENCES}) == len(SENTENCES) >= 40
    codes = [code for cause in (*CAUSES, *VAGUE) for code in cause.codes.split()]
    assert len(set(codes)) == len(codes)
