"""Slices on a GPU: sums inside graphs, over NCCL for a world of one and over shared memory for two ranks of one GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

pytest.importorskip("triton", reason="triton is not installed")
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

from scoring.decode import Decoder
from scoring.decoder_team import Team
from tests.passes import ranks_of_one_gpu
from tests.passes.test_decoder_gpu import run
from tests.passes.test_decoder_reference import NEW, PROMPTS, generated, greedy, prompt, tiny

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("family", ["llama", "gptj"])
def test_a_world_of_one_is_the_plain_decoder(family: str, tmp_path: Path) -> None:
    model = tiny(family, tmp_path)
    held, prompts = greedy(model), [prompt(model, length) for length in PROMPTS]
    expected = [generated(model, ids, NEW) for ids in prompts]
    torch.cuda.set_device(0)
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1, device_id=torch.device("cuda", 0))
    try:
        checked: list[int] = []
        team = Team(0, 1, torch.device("cuda", 0), 60.0, lambda: checked.append(1))
        decoder = Decoder(model.cuda(), 3, 128, team)
        for count in (1, 2, 3):
            assert run(decoder, prompts[:count], held) == expected[:count]
    finally:
        dist.destroy_process_group()
    assert checked


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "opt"])
def test_two_ranks_of_one_gpu_decode_as_plain_transformers(family: str, tmp_path: Path) -> None:
    model = tiny(family, tmp_path)
    prompts = [prompt(model, length) for length in PROMPTS]
    expected = [generated(model, ids, NEW) for ids in prompts]
    environment = os.environ | {"TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES": "1"}
    command = [sys.executable, "-W", "ignore", "-m", ranks_of_one_gpu.__name__]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "store"), family, str(tmp_path / f"rank{rank}")],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks_of_one_gpu.DEGREE)
    ]
    told = [rank.communicate(timeout=200) for rank in ranks]
    if any(ranks_of_one_gpu.UNABLE in errors for _, errors in told):
        pytest.skip(ranks_of_one_gpu.UNABLE)
    for rank, (output, errors) in zip(ranks, told, strict=True):
        assert rank.returncode == 0, errors[-3000:]
        assert json.loads(output.splitlines()[-1]) == [expected[:1], expected[:2], expected]
