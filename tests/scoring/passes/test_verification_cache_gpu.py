"""What `mii-azure prepare` keeps on a GPU: a second start verifies nothing and takes compiled code from the bundle."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import scoring
from tests.tiny_models import tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

START = """
import json, sys
sys.path.insert(0, sys.argv[1])
from scoring import entry
entry.init()
from torch._dynamo.utils import counters
told = {"passes": entry.metadata()["passes"], "cache": {k: v for k, v in counters["inductor"].items() if "cache" in k}}
print(json.dumps(told))
entry.drain(5)
"""


def start(code: Path, cache: Path, target: Path | None = None) -> dict[str, Any]:
    """Serve once in a process whose own compiler cache is empty."""
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(cache), "AZUREML_MODEL_DIR": str(code.parent / "model")}
    if target is not None:
        environment["MII_AZURE_PREPARE"] = str(target)
    command = [sys.executable, "-W", "ignore", "-c", START, str(code)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, cwd=code)
    assert done.returncode == 0, done.stderr[-3000:]
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def test_a_second_start_verifies_and_compiles_nothing(tmp_path: Path) -> None:
    code, prepared = tmp_path / "code", tmp_path / "code" / "prepared"
    shutil.copytree(Path(scoring.__file__).parent, code / "scoring", ignore=shutil.ignore_patterns("__pycache__"))
    tiny_model("mpnet", "sentence-embeddings", tmp_path / "model")
    told = {"schema": 1, "name": "tiny", "task": "sentence-embeddings", "dtype": "float32", "model": {}, "limits": {}}
    (code / "deployment.json").write_text(json.dumps(told), encoding="utf-8")
    (tmp_path / "new").mkdir()
    # A model this small gains nothing from being compiled; that it is kept all the same is what is wanted here.
    source = code / "scoring" / "passes" / "base.py"
    source.write_text(source.read_text(encoding="utf-8").replace("GAIN = 1.03", "GAIN = 0.0"), encoding="utf-8")
    first = start(code, tmp_path / "one", tmp_path / "new")
    shutil.copytree(tmp_path / "new", prepared)
    second = start(code, tmp_path / "two")
    assert (prepared / "compiled.inductor").stat().st_size
    compiled = [next(each for each in run["passes"] if each["name"] == "compile") for run in (first, second)]
    assert [each["state"] for each in compiled] == ["applied", "applied"]
    assert "verified when the bundle was prepared" in compiled[1]["reason"]
    assert compiled[1]["error"] == compiled[0]["error"]
    assert first["cache"].get("fxgraph_cache_miss")
    # Looked up once where it is compiled, and in some versions of torch again where it is loaded.
    assert second["cache"].get("fxgraph_cache_hit", 0) >= first["cache"]["fxgraph_cache_miss"]
    assert not second["cache"].get("fxgraph_cache_miss")
