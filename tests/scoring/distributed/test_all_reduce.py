"""The GPU's steps and prompts over slices: the launches of two ranks, interpreted, against the whole model in torch.

TRITON_INTERPRET=1 pytest tests/scoring/distributed/test_all_reduce.py     # with triton installed, no GPU
"""

import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

pytest.importorskip("triton", reason="triton is not installed")
if torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1, and no GPU", allow_module_level=True)

from scoring.decoder.adapters.builders import build
from scoring.decoder.decode_step import Launcher
from scoring.decoder.decoder import Decoder
from scoring.decoder.gemv_config import GemvTile
from scoring.decoder.kv_cache import KVCache, SamplingParams
from scoring.decoder.model import quantize_weights
from scoring.decoder.prefill import Prefiller
from scoring.decoder.torch_backend import TorchBackend
from scoring.distributed.all_reduce import CAPACITY, AllReduce
from scoring.distributed.tp_group import TensorParallelGroup
from scoring.passes.families import SLICED_DECODERS, STATIC_DECODE
from tests.scoring.decoder.test_adapters import prompt, tiny
from tests.scoring.kernels.test_decoder import back_end
from tests.scoring.tensor_parallel.slices import Threads, cut

__all__ = ["back_end"]  # a fixture

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::DeprecationWarning")
LENGTHS = (40, 3, 21, 11)
STEPS = 2


def _state(model: Any, hf_model: Any) -> KVCache:
    """Slots that hold prompts of LENGTHS and a next token; keys and values of the model's own heads are written."""
    state = KVCache(model, len(LENGTHS), 128)
    backend = TorchBackend(model, state)
    for slot, length in enumerate(LENGTHS):
        state.open(slot, SamplingParams())
        ids = torch.tensor(prompt(hf_model, length))
        backend.prefill([(slot, 0, length)], ids)
        state.lengths[slot], state.tokens[slot] = length, 7 + slot
        state.seen[slot, ids] = 1
    return state


@pytest.mark.parametrize("family", [each for each in SLICED_DECODERS if each in STATIC_DECODE.served])
@pytest.mark.parametrize("rows", [[1], [3, 0], [3, 2, 1, 0]], ids=["one", "two", "four"])
def test_steps_over_two_ranks_match_the_whole_model(family: str, rows: list[int], tmp_path: Path) -> None:
    hf_model = tiny(family, tmp_path)
    model = build(hf_model, 128)
    with torch.inference_mode():
        whole = _state(model, hf_model)
        slots, wanted = torch.tensor(rows), []
        for _ in range(STEPS):
            wanted.append(TorchBackend(model, whole).step(slots, 128))
            whole.lengths[slots] += 1
            whole.tokens[slots] = wanted[-1].argmax(1)

    def work(team: TensorParallelGroup) -> list[torch.Tensor]:
        part = cut(model, team)
        state = _state(part, hf_model)
        launcher = Launcher(part, state, 4, pdl=False)
        launcher.tiles = {name: GemvTile(64, 64, 1) for name in ("qkv", "out", "up", "gated", "down", "head")}
        launcher.buffers.slots[: len(rows)] = slots.int()
        found = []
        for _ in range(STEPS):
            before = threads.sums[team.rank]
            launcher.step(len(rows))
            sums = threads.sums[team.rank] - before
            layer = model.layers[0]
            each = (1 if layer.parallel else 2) + layer.attention.jointly  # the squares of queries and keys
            assert sums == len(model.layers) * each + 1  # and the tokens
            logits = launcher.buffers.logits if len(rows) <= 2 else launcher.buffers.narrow
            found.append(logits[: len(rows)].clone())
        assert torch.equal(state.tokens[slots], whole.tokens[slots])
        return found

    threads = Threads(2)
    for told in threads.run(work):
        for logits, expected in zip(told, wanted, strict=True):
            assert (logits - expected).abs().max() <= 1e-4


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_int8_slices_match_their_widened_reference(family: str, tmp_path: Path) -> None:
    hf_model = tiny(family, tmp_path)
    model = build(hf_model, 128)

    def work(team: TensorParallelGroup) -> float:
        part = cut(model, team)
        quantize_weights(part)
        for product in part.products():  # the reference reads what the kernels read
            assert product.scale is not None
            product.wide = product.weight * product.scale[:, None]
        state = _state(part, hf_model)
        slots = torch.tensor([2, 0])
        wanted = TorchBackend(part, state).step(slots, 128)
        launcher = Launcher(part, state, 2, pdl=False)
        launcher.tiles = {name: GemvTile(64, 64, 1) for name in ("qkv", "out", "up", "gated", "down", "head")}
        launcher.buffers.slots[:2] = slots.int()
        launcher.step(2)
        return float((launcher.buffers.logits[:2] - wanted).abs().max())

    assert max(Threads(2).run(work)) <= 1e-4


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gptj", "olmo2", "opt"])
def test_prompts_over_two_ranks_match_the_whole_model(family: str, tmp_path: Path) -> None:
    hf_model = tiny(family, tmp_path)
    model = build(hf_model, 128)
    parts = [(2, 0, prompt(hf_model, 30)), (0, 0, prompt(hf_model, 9, 3))]
    with torch.inference_mode():
        reference = TorchBackend(model, KVCache(model, 3, 128))
        tokens = torch.tensor([token for _, _, ids in parts for token in ids])
        wanted = reference.prefill([(slot, start, len(ids)) for slot, start, ids in parts], tokens)

    def work(team: TensorParallelGroup) -> torch.Tensor:
        part = cut(model, team)
        prefiller = Prefiller(part, KVCache(part, 3, 128), pdl=False)
        numbers = torch.empty(prefiller.layout.size, dtype=torch.int32)
        prefiller.layout.fill(numbers, parts, 3)
        prefiller.numbers.copy_(numbers)
        prefiller.piece(len(tokens) + 2)
        return prefiller.logits[: len(parts)].clone()

    for logits in Threads(2).run(work):
        assert (logits - wanted).abs().max() <= 1e-4


def _exchanges(ranks: int) -> list[AllReduce]:
    """Of ranks whose memory is one."""
    inboxes = [torch.zeros(2, ranks, CAPACITY, dtype=torch.int64) for _ in range(ranks)]
    addresses = [inbox.data_ptr() for inbox in inboxes]
    return [AllReduce(rank, addresses, inbox) for rank, inbox in enumerate(inboxes)]


@pytest.mark.parametrize("ranks", [2, 4])
def test_words_with_signs_add_up(ranks: int) -> None:
    """Sums of several sizes, one after the other; each rank's sending and taking apart, as none can wait here."""
    generator = torch.Generator().manual_seed(0)
    exchanges = _exchanges(ranks)
    for number in (32, 1000, 512, 1500, 32, 32, 1500):
        parts = [torch.randn(number, generator=generator) for _ in exchanges]
        wanted = parts[0].clone()
        for part in parts[1:]:
            wanted += part
        for exchange, part in zip(exchanges, parts, strict=True):
            exchange.sum(part, take=False)
        for exchange, part in zip(exchanges, parts, strict=True):
            exchange.sum(part, send=False)
            assert torch.equal(part, wanted)
    narrow = [torch.randn(64, generator=generator).half() for _ in exchanges]
    expected = sum(part.float() for part in narrow).half()
    for exchange, part in zip(exchanges, narrow, strict=True):
        exchange.sum(part, take=False)
    for exchange, part in zip(exchanges, narrow, strict=True):
        exchange.sum(part, send=False)
        assert torch.equal(part, expected)
    tokens = [torch.tensor([31999 + rank, 7, 128255]) for rank in range(ranks)]
    for exchange, own in zip(exchanges, tokens, strict=True):
        exchange.agree(own, take=False)
    for exchange, own in zip(exchanges, tokens, strict=True):
        exchange.agree(own, send=False)
        assert own.tolist() == [31999, 7, 128255]
    assert not exchanges[0].takes(torch.empty(CAPACITY + 1))


def test_words_that_are_late_are_waited_for() -> None:
    one, _ = _exchanges(2)
    words = torch.full((8,), 5.0).view(torch.int32).long() | (1 << 32)  # the other's, of the first sum

    def send() -> None:
        one._own[1, 1, :8] = words

    x = torch.ones(8)
    one._own[1, 1, :8] = words & 0xFFFFFFFF  # its numbers without their sign
    late = threading.Timer(0.3, send)
    began = time.monotonic()
    late.start()
    one.sum(x)
    assert time.monotonic() - began >= 0.3
    assert x.tolist() == [6.0] * 8


def test_the_kernel_after_a_sum_waits_for_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(tiny("llama", tmp_path), 128)

    def work(team: TensorParallelGroup) -> None:
        part = cut(model, team)
        launcher = Launcher(part, KVCache(part, 2, 128), 2, pdl=True)
        assert launcher._launch() == {"launch_pdl": True}
        launcher._sum(launcher.buffers.x[:1])
        assert launcher._launch() == {}
        assert launcher._launch() == {"launch_pdl": True}
        told: list[Any] = []
        spy = SimpleNamespace(sum=lambda x, pdl, options: told.append((pdl, options)))
        spy.agree = spy.sum
        monkeypatch.setattr(team, "quick", lambda x: spy)
        launcher._sum(launcher.buffers.x[:1])
        launcher._agree(launcher.state.tokens)
        assert told == [(True, {"launch_pdl": True})] * 2  # its own kernel starts early, and gives the sign to
        assert launcher._launch() == {"launch_pdl": True}

    Threads(2).run(work)


def test_a_world_of_one_rank_is_the_plain_decoder(
    back_end: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU's back end with its sums, its agreement on tokens and its waiting, over a real process group."""
    queried: list[int] = []
    event = SimpleNamespace(record=lambda: None, query=lambda: queried.append(1) or len(queried) % 2 == 0)
    monkeypatch.setattr(torch.cuda, "Event", lambda: event)
    hf_model = tiny("gptj", tmp_path)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        checked: list[int] = []
        team = TensorParallelGroup(0, 1, torch.device("cpu"), 20.0, lambda: checked.append(1))
        plain, ours = Decoder(hf_model, 3, 128), Decoder(hf_model, 3, 128, team)
        ours._cuda = back_end(ours.model, ours.state)
        ours._cuda.launcher.tiles = {name: GemvTile(64, 64, 1) for name in ("qkv", "out", "up", "down", "head")}
        told = []
        for decoder in (plain, ours):
            decoder.open(2, SamplingParams(0.8, seed=11))
            decoder.open(0)
            decoder.prefill_many([(2, prompt(hf_model, 20)), (0, prompt(hf_model, 7, 3))])
            pending = [decoder.sample([2, 0]), decoder.step([2, 0]), decoder.step([0])]
            told.append([each.tokens() for each in pending])
    finally:
        dist.destroy_process_group()
    assert told[0] == told[1]
    assert checked  # the ranks were looked after while an event was not there
