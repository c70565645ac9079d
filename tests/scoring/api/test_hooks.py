"""A deployment's own handler.py around requests; the example of docs/handler.md is the first."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scoring.api.hooks import Hooks, load
from scoring.errors import LoadError
from tests.conftest import Tiny
from tests.scoring.conftest import Served
from tests.scoring.encoders import LONG

TASK = "text-classification"
DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "handler.md"
EXAMPLE = re.findall(r"^```python\n(.*?)^```$", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)[0]
NAME = "mii_azure_handler"
PLAIN = "def preprocess(inputs, parameters):\n    return inputs, parameters\n"


def hooks(folder: Path, text: str) -> Hooks:
    (folder / "handler.py").write_text(text, encoding="utf-8")
    return load(folder)


@pytest.fixture
def served(tiny: Tiny) -> Iterator[Served]:
    started = Served(tiny("bert", TASK), TASK)
    yield started
    started.service.drain(5)


def test_the_documented_example(served: Served, tmp_path: Path) -> None:
    bare = served.ok(["call # now", "good"], truncation=True)
    known = {entry["label"]: entry["label"].upper() for entry in bare}
    served.service.hooks = hooks(tmp_path, EXAMPLE + f"\nLABELS = {known!r}\n")
    told = served.ok([{"mail": "call 1234567 now"}, "good"])
    assert told == [{**entry, "label": entry["label"].upper()} for entry in bare]
    assert served.ok(LONG)  # the hook's own default
    assert served.refused({"other": "a"}) == {
        "code": "invalid_input",
        "message": "A mail is missing.",
        "hint": 'Send {"mail": "..."}.',
        "where": "inputs",
    }
    assert served({"mii_azure": "metadata"})[1]["handler"] == ["preprocess", "postprocess"]
    usage = served({"inputs": "good", "options": {"usage": True}})[1]
    assert usage["answer"] == told[1:] and usage["usage"]["prompt_tokens"] > 0


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("def preprocess(inputs, parameters):\n    raise KeyError('secret')\n", "preprocess failed; incident"),
        ("def postprocess(outputs):\n    return 1 / 0\n", "postprocess failed; incident"),
        ("def preprocess(inputs, parameters):\n    return inputs\n", "no pair"),
        ("def preprocess(inputs, parameters):\n    return [], parameters\n", "no list of 1 inputs"),
        ("def preprocess(inputs, parameters):\n    return inputs, None\n", "no list of 1 inputs"),
        ("def postprocess(outputs):\n    return object()\n", "no JSON"),
    ],
)
def test_a_hook_that_fails_is_answered_without_its_traceback(
    code: str, said: str, served: Served, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    served.service.hooks = hooks(tmp_path, code)
    status, told = served({"inputs": "a"})
    assert (status, told["error"]["code"]) == (500, "handler_failed")
    assert said in told["error"]["message"]
    assert not {"secret", "Traceback", "division"} & set(re.findall(r"\w+", str(told)))
    if "incident" in said:
        incident = told["error"]["message"].rstrip(".").rpartition(" ")[2]
        assert incident in caplog.text and "Traceback" in caplog.text


def test_what_a_hook_gives_is_checked_as_if_it_were_sent(served: Served, tmp_path: Path) -> None:
    served.service.hooks = hooks(tmp_path, "def preprocess(inputs, parameters):\n    return [5], {'top_k': 0}\n")
    assert served.refused("a")["code"] == "invalid_parameter"


def test_a_handler_may_have_dataclasses_with_annotations_that_are_read_late(tmp_path: Path) -> None:
    code = """
from __future__ import annotations
from dataclasses import dataclass
from pydantic import BaseModel

@dataclass
class Mail:
    text: str

class Named(BaseModel):
    mails: list[Mail]

def postprocess(outputs):
    return [mail.text for mail in Named(mails=[{"text": outputs}]).mails]
"""
    assert hooks(tmp_path, code).finish("a") == ["a"]


@pytest.mark.parametrize("code", ["import no_such_package_at_all\n", "raise SystemExit(3)\n"])
def test_nothing_is_left_of_a_handler_that_does_not_load(code: str, tmp_path: Path) -> None:
    with pytest.raises(LoadError):
        hooks(tmp_path, code)
    assert NAME not in sys.modules


def test_tokens_pass_by_the_hooks(served: Served, tmp_path: Path) -> None:
    served.service.hooks = hooks(tmp_path, "def preprocess(inputs, parameters):\n    raise ValueError\n")
    assert served({"mii_azure": "tokenize", "prompt": "a"})[0] == 200


def test_streams_are_refused_where_answers_are_seen_whole(tiny: Tiny, tmp_path: Path) -> None:
    generating = Served(tiny("gpt2", "text-generation"), "text-generation")
    body: dict[str, Any] = {"inputs": "a fox", "parameters": {"max_new_tokens": 3}, "stream": True}
    generating.service.hooks = hooks(tmp_path, PLAIN)
    assert generating(body)[1][-1] == "[DONE]"
    generating.service.hooks = hooks(tmp_path, "def postprocess(outputs):\n    return outputs\n")
    status, told = generating(body)
    assert (status, told["error"]["where"]) == (400, "stream")
    generating.service.drain(5)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import no_such_package_at_all\n" + PLAIN, "'no_such_package_at_all', which is not installed"),
        ("raise SystemExit(3)\n", "did not load: SystemExit"),
        ("x = 1\n", "defines none of"),
        ("def preprocess(inputs):\n    return inputs\n", "no function of inputs, parameters"),
        ("async def postprocess(outputs):\n    return outputs\n", "no function of outputs"),
        ("postprocess = 5\n", "no function of outputs"),
    ],
)
def test_what_does_not_load_is_a_load_error(code: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=re.escape(said)):
        hooks(tmp_path, code)
    (tmp_path / "handler.py").unlink()
    with pytest.raises(LoadError, match=r"no handler\.py"):
        load(tmp_path)
