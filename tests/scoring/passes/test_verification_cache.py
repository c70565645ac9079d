"""Compiled code that a prepared bundle ships: a process with an empty cache of its own takes it from the folder."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

RUN = """
import json, os, sys
from pathlib import Path
import torch
from torch._dynamo.utils import counters
from torch._inductor import compile_fx
from scoring.passes import verification_cache as prepared
from scoring.passes.runner import Record

def start(shipped):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.GELU(), torch.nn.Linear(16, 4)).eval()
    model.dtype = torch.float32
    known = prepared.known_errors(Path(shipped), model)
    forward = torch.compile(model.forward, dynamic=False, options={"freezing": True})
    with torch.inference_mode():
        forward(torch.ones(2, 16))
    prepared.save(model, [Record("compile", "applied", "", error=0.25)])
    found = counters["inductor"]
    print(json.dumps([known, found["fxgraph_cache_hit"], found["fxgraph_cache_miss"]]), flush=True)

for environment in map(json.loads, sys.argv[2:]):
    if not os.fork():
        os.environ.update(environment)
        start(sys.argv[1])
        sys.exit()
    if os.wait()[1]:
        sys.exit("a start failed")
"""


def starts(shipped: Path, *environments: dict[str, str]) -> list[tuple[dict[str, float], int, int]]:
    """What each of several processes knew, and how often it found compiled code and did not; they share imports."""
    environment = os.environ | {
        # Plain code will do; to learn which vectors the compiler knows takes it longer than all else here.
        "TORCHINDUCTOR_VEC_ISA_OK": "0",
        "TORCHINDUCTOR_COMPILE_THREADS": "1",  # others would be processes that import torch for one kernel
    }
    command = [sys.executable, "-W", "ignore", "-c", RUN, str(shipped), *map(json.dumps, environments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()[-len(environments) :]]


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="Inductor needs a C++ compiler")
def test_code_is_compiled_once_and_shipped(tmp_path: Path) -> None:
    shipped = tmp_path / "prepared"
    shipped.mkdir()
    first, second = starts(
        shipped,
        {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "one"), "MII_AZURE_PREPARE": str(shipped)},
        {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "two")},
    )
    assert first == ({}, 0, 1)
    assert (shipped / "compiled.inductor").stat().st_size
    assert second == ({"compile": 0.25}, 1, 0)
