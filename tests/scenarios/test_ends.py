"""Servers with native libraries, started as they stand: finalising the interpreter ends them with 0.

Forked processes, as most tests start them, skip that. Tiny models gain nothing by either library, so the bundle's own
comparison of times is taken out of it.
"""

import shutil
import signal
from pathlib import Path

import httpx
import pytest

import mii_azure
from tests.conftest import Tiny
from tests.local_runner.conftest import seal
from tests.local_runner.test_lifecycle import started

#: Family, task, the pass and its module in the bundle, what is replaced there, and a part of the mapped library's name.
NATIVE = {
    "bert": (
        "fill-mask",
        "cpu",
        "encoder/cpu_autotune.py",
        {"faster > gain and all(map(operator.le, ms, eager_ms))": "True", "gain < GAIN": "gain < 0.0"},
        "libopenvino",
    ),
    "llama": (
        "text-generation",
        "weight_only",
        "passes/weight_only.py",
        {"facts.weight_bytes < WORTH_ON_CPU": "facts.weight_bytes < 0", "beside * GAIN": "0.0"},
        "decode_step",
    ),
}


def native_bundle(family: str, tiny: Tiny, target: Path) -> Path:
    """A bundle of a tiny model whose pass is taken, faster or not; skips where its library cannot be."""
    if family == "bert":
        pytest.importorskip("openvino")
    elif shutil.which("cc") is None:
        pytest.skip("there is no C compiler")
    task, _, module, replaced, _ = NATIVE[family]
    folder = mii_azure.generate(task, str(tiny(family, task)), "ends", output=target, instance_type="Standard_F8s_v2")
    source = folder / "code" / "scoring" / module
    text = source.read_text(encoding="utf-8")
    for before, after in replaced.items():
        assert text.count(before) == 1
        text = text.replace(before, after)
    source.write_text(text, encoding="utf-8")
    seal(folder)
    return folder


@pytest.mark.parametrize("family", NATIVE)
def test_a_server_with_a_native_library_ends_with_0(family: str, tiny: Tiny, tmp_path: Path) -> None:
    folder, (_, name, _, _, library) = native_bundle(family, tiny, tmp_path / "bundle"), NATIVE[family]
    with started(folder, tmp_path) as runner:
        url = f"http://127.0.0.1:{runner.wait_for('ready')['http_port']}/score"
        body = {"inputs": "a [MASK] b" if family == "bert" else "a b"}
        assert httpx.post(url, json=body, trust_env=False, timeout=60).status_code == 200
        assert library in Path(f"/proc/{runner.process.pid}/maps").read_text(encoding="utf-8")
        runner.process.send_signal(signal.SIGTERM)
        code, log = runner.ended()
    assert code == 0, log
    assert f"pass {name}: applied" in log
