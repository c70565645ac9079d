"""The rules that azureml-inference-server-http has for score.py hold here too."""

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from local_runner.process.launch import Azmlinfsrv, Runner
from local_runner.targets.targets import make_target
from scoring.errors import LoadError
from tests.local_runner.conftest import seal

pytestmark = pytest.mark.usefixtures("forked")

Own = Callable[..., Path]
HEAD = "import sys, pathlib\nsys.path.insert(0, str(pathlib.Path(__file__).parent))\nfrom scoring.entry import init\n"


def with_script(bundle: Path, text: str) -> Path:
    (bundle / "code" / "score.py").write_text(HEAD + text)
    seal(bundle)
    return bundle


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", r"has no run\(\) function"),
        ("def run(raw): ...\ndel init", r"has no init\(\) function"),
        ("def run(*raw): ...", "positional-only arguments"),
        ("def run(raw, /): ...", "positional-only arguments"),
        ("def run(raw, **more): ...", "positional-only arguments"),
        ("def run(): ...", "no argument for the request"),
        ("def run(request_headers): ...", "no argument for the request"),
        ("def run(raw:", "did not start: SyntaxError"),
        ("sys.exit(5)", "did not start: SystemExit: 5"),
        ("del sys.modules['scoring']\ndef run(raw): ...", "not the bundle's own `scoring`"),
    ],
)
def test_a_script_that_breaks_the_rules_does_not_start(own_bundle: Own, text: str, says: str) -> None:
    bundle = with_script(own_bundle(), text)
    with pytest.raises(Exception, match=says) as raised, make_target("in-process", bundle):
        pass
    assert isinstance(raised.value, LoadError) or "scoring" in says


DRIVER = """
import types
driver_module = types.ModuleType("inner")
def inner(data, request_headers):
    return {"data": data, "header": {k.lower(): v for k, v in request_headers.items()}.get("x-test")}
driver_module.__file__, driver_module.run = __file__, inner
def run(raw):
    return "the outer run"
"""


def test_headers_plain_values_and_driver_modules(own_bundle: Own) -> None:
    bundle = with_script(own_bundle(), DRIVER)
    options = {"content": "ü", "headers": {"x-test": "1", "content-type": "application/json"}, "trust_env": False}
    with Azmlinfsrv(bundle) as host:
        theirs = httpx.post(f"http://127.0.0.1:{host.port}/score", **options)
    with Runner(bundle) as host:
        ours = httpx.post(f"http://127.0.0.1:{host.http_port}/score", **options)
    assert (ours.status_code, ours.content) == (theirs.status_code, theirs.content)
    assert ours.json() == {"data": "ü", "header": "1"}
