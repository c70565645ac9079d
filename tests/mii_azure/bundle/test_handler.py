"""A user's handler.py on its way into a bundle."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import mii_azure
from local_runner.bundle.manifest import verify_hashes
from mii_azure.bundle.handler import read_handler
from mii_azure.checks.check import check
from mii_azure.errors import BundleEdited, HandlerUnusable, SecretFound
from tests.conftest import Tiny

GOOD = "def postprocess(outputs):\n    return {'ours': outputs}\n"


def test_a_bundle_carries_it_byte_for_byte_and_holds_it_to_its_hash(tiny: Tiny, tmp_path: Path) -> None:
    source = tmp_path / "mine.py"
    source.write_bytes(b"# na\xc3\xafve\r\n" + GOOD.encode())
    model = str(tiny("bert", "text-classification"))
    bundle = mii_azure.generate("text-classification", model, "own", output=tmp_path / "b", handler=str(source))
    assert (bundle / "code" / "handler.py").read_bytes() == source.read_bytes()
    assert json.loads((bundle / "code" / "deployment.json").read_text())["handler"] is True
    assert check(bundle) == []
    (bundle / "code" / "handler.py").write_text(GOOD + "\n")
    with pytest.raises(BundleEdited, match=r"handler\.py"):
        verify_hashes(bundle, weights=False)


def test_what_the_image_does_not_install_is_found_before_it_is_missing(tiny: Tiny, tmp_path: Path) -> None:
    source = tmp_path / "mine.py"
    source.write_text("import numpy\nimport re\nimport no_such_package_at_all\n" + GOOD)
    model = str(tiny("bert", "fill-mask"))
    bundle = mii_azure.generate("fill-mask", model, "own", output=tmp_path / "b", handler=str(source))
    (found,) = check(bundle)
    assert (found.id, found.severity) == ("MII308", "error")
    assert "handler.py imports no_such_package_at_all" in found.message


def test_without_one_nothing_tells_of_it(tiny: Tiny, tmp_path: Path) -> None:
    bundle = mii_azure.generate("fill-mask", str(tiny("bert", "fill-mask")), "none", output=tmp_path / "b")
    assert "handler" not in json.loads((bundle / "code" / "deployment.json").read_text())
    assert not (bundle / "code" / "handler.py").exists()


@pytest.mark.parametrize("path", ["~nobody-of-that-name/x.py", "m" * 300, "a\0b"])
def test_a_path_that_leads_nowhere_is_no_handler(path: str) -> None:
    with pytest.raises(HandlerUnusable):
        read_handler(path)


@pytest.mark.parametrize(
    ("code", "said", "line"),
    [
        (b"def postprocess(outputs)\n    pass\n", "not Python", 1),
        (b"x = 1\n\ndef preprocess(inputs):\n    pass\n", "no function of inputs, parameters", 3),
        (b"def postprocess(outputs, *more):\n    pass\n", "no function of outputs", 1),
        (b"async def postprocess(outputs):\n    pass\n", "no function of outputs", 1),
        (b"def other():\n    pass\n", "defines none of preprocess, postprocess", None),
        (b"x = '\xff'\n", "not UTF-8", None),
        (b"x\0", "not Python", None),
    ],
)
def test_a_file_that_is_no_handler_is_refused_by_its_line(
    code: bytes, said: str, line: int | None, tmp_path: Path
) -> None:
    source = tmp_path / "mine.py"
    source.write_bytes(code)
    with pytest.raises(HandlerUnusable, match=said) as refused:
        mii_azure.generate("fill-mask", "no-model-is-looked-at", "own", output=tmp_path / "b", handler=str(source))
    assert refused.value.where.endswith(f":{line}") if line else True
    assert not (tmp_path / "b").exists()


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(HandlerUnusable, match="cannot be read"):
        read_handler(str(tmp_path / "none.py"))


def test_a_secret_in_it_is_found(tiny: Tiny, tmp_path: Path) -> None:
    source = tmp_path / "mine.py"
    source.write_text(f'KEY = "hf_{"a1B2c3D4e5F6g7H8i9J0" * 2}"\n' + GOOD)
    model = str(tiny("bert", "fill-mask"))
    with pytest.raises(SecretFound):
        mii_azure.generate("fill-mask", model, "own", output=tmp_path / "b", handler=str(source))
