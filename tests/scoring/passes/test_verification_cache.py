"""Compiled code that a prepared bundle ships: a process with an empty cache of its own takes it from the folder."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

RUN = """
import json, sys
from pathlib import Path
import torch
from torch._dynamo.utils import counters
from scoring.passes import verification_cache as prepared
from scoring.passes.runner import Record

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.GELU(), torch.nn.Linear(16, 4)).eval()
model.dtype = torch.float32
known = prepared.known_errors(Path(sys.argv[1]), model)
forward = torch.compile(model.forward, dynamic=False, options={"freezing": True})
with torch.inference_mode():
    forward(torch.ones(2, 16))
prepared.save(model, [Record("compile", "applied", "", error=0.25)])
print(json.dumps([known, counters["inductor"]["fxgraph_cache_hit"], counters["inductor"]["fxgraph_cache_miss"]]))
"""


def start(shipped: Path, cache: Path, target: Path | None = None) -> tuple[dict[str, float], int, int]:
    """What a process knew, and how often it found compiled code and did not."""
    # Plain code will do; to learn which vectors the compiler knows takes it longer than all else here.
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(cache), "TORCHINDUCTOR_VEC_ISA_OK": "0"}
    if target is not None:
        environment["MII_AZURE_PREPARE"] = str(target)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RUN, str(shipped)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    known, hits, misses = json.loads(done.stdout.splitlines()[-1])
    return known, hits, misses


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="Inductor needs a C++ compiler")
def test_code_is_compiled_once_and_shipped(tmp_path: Path) -> None:
    shipped = tmp_path / "prepared"
    shipped.mkdir()
    assert start(shipped, tmp_path / "one", shipped) == ({}, 0, 1)
    assert (shipped / "compiled.inductor").stat().st_size
    assert start(shipped, tmp_path / "two") == ({"compile": 0.25}, 1, 0)
