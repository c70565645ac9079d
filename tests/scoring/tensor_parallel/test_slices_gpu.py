"""Slices on one GPU: sums inside graphs, over NCCL for a world of one and by the kernel of two ranks."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

pytest.importorskip("triton", reason="triton is not installed")
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

from scoring.decoder.decoder import Decoder
from scoring.distributed.all_reduce import CAPACITY, AllReduce
from scoring.distributed.tp_group import TensorParallelGroup
from tests.scoring.decoder.test_adapters import NEW, PROMPTS, generated, greedy, prompt, tiny
from tests.scoring.decoder.test_decoder_gpu import run
from tests.scoring.tensor_parallel.ranks_of_one_gpu import DEGREE, work

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("family", ["llama", "gptj"])
def test_a_world_of_one_is_the_plain_decoder(family: str, tmp_path: Path) -> None:
    model = tiny(family, tmp_path)
    held, prompts = greedy(model), [prompt(model, length) for length in PROMPTS]
    expected = [generated(model, ids, NEW) for ids in prompts]
    torch.cuda.set_device(0)
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1, device_id=torch.device("cuda", 0))
    try:
        team = TensorParallelGroup(0, 1, torch.device("cuda", 0), 60.0)
        decoder = Decoder(model.cuda(), 3, 128, team)
        for count in (1, 2, 3):
            assert run(decoder, prompts[:count], held) == expected[:count]
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("size", [1, 4096, CAPACITY])
def test_sums_between_two_streams(size: int) -> None:
    """Many sums one after another in a graph of each rank, from numbers that float32 adds exactly."""
    many = 30
    inboxes = [torch.zeros(2, DEGREE, CAPACITY, dtype=torch.int64, device="cuda") for _ in range(DEGREE)]
    ranks = [AllReduce(rank, [inbox.data_ptr() for inbox in inboxes], own) for rank, own in enumerate(inboxes)]
    ours = [torch.empty(size, device="cuda") for _ in ranks]
    ids = [torch.empty(7, dtype=torch.int32, device="cuda") for _ in ranks]
    graphs, streams = [], [torch.cuda.Stream() for _ in ranks]
    for rank, x, tokens in zip(ranks, ours, ids, strict=True):
        rank.sum(x, count=0)
        rank.agree(tokens, count=0)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(many):
                rank.sum(x)
            rank.agree(tokens)
        graphs.append(graph)
    for turn in range(20):
        start = torch.arange(size, device="cuda").float() % 1000 + turn
        for number, (x, tokens) in enumerate(zip(ours, ids, strict=True)):
            x.copy_(start * (number + 1))
            tokens.copy_(torch.arange(7) + 100_000 * (number + 1) + turn)
        torch.cuda.synchronize()
        for stream, graph in zip(streams, graphs, strict=True):
            with torch.cuda.stream(stream):
                graph.replay()
        torch.cuda.synchronize()
        for x, tokens in zip(ours, ids, strict=True):
            assert torch.equal(x, 3 * start * 2.0 ** (many - 1))
            assert tokens.tolist() == [100_000 + turn + each for each in range(7)]


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "opt"])
def test_two_ranks_of_one_gpu_decode_as_plain_transformers(family: str, tmp_path: Path) -> None:
    model = tiny(family, tmp_path / "whole")
    prompts = [prompt(model, length) for length in PROMPTS]
    expected = [generated(model, ids, NEW) for ids in prompts]
    context = torch.multiprocessing.get_context("spawn")
    boxes, told, met = [context.Queue() for _ in range(DEGREE)], context.Queue(), context.Barrier(DEGREE)
    ranks = [
        context.Process(target=work, args=(rank, family, str(tmp_path), boxes[rank], boxes[1 - rank], told, met))
        for rank in range(DEGREE)
    ]
    for rank in ranks:
        rank.start()
    try:
        found = dict(told.get(timeout=100) for _ in ranks)
    finally:
        for rank in ranks:
            rank.join(5)
            rank.kill()
    assert found == {rank: [expected[:1], expected[:2], expected] for rank in range(DEGREE)}
