"""The static decoder over two gloo ranks: what plain transformers gives, through the service, and when a rank dies."""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from scoring.api.service import Service
from scoring.config import Deployment, Limits, Optimisation
from scoring.decoder.block_pool import BLOCK
from scoring.decoder.decoder import Decoder
from scoring.decoder.kv_cache import SamplingParams
from scoring.decoder.verify import errors, reference
from scoring.distributed.tp_group import TensorParallelGroup
from scoring.errors import PromptTooLong, RankLost
from scoring.model.loader import load_with
from scoring.passes.base import PassRefused
from scoring.passes.families import SLICED_DECODERS, STATIC_DECODE
from scoring.passes.registry import decoder_passes
from scoring.passes.static_decode import StaticDecode
from scoring.passes.tensor_parallel import TensorParallel
from scoring.schema.registry import task_class
from scoring.tensor_parallel.decoder import SlicedDecoder
from scoring.tensor_parallel.workers import CALL_S
from tests.conftest import Tiny
from tests.scoring.decoder.test_adapters import generated, greedy, prompt
from tests.scoring.decoder.test_layer_groups import WINDOW, mixed, prefill
from tests.scoring.decoder.test_paged_cache import check_greedy, steps
from tests.scoring.tensor_parallel.many_ranks import Many
from tests.tiny_causal import tiny_causal
from tests.tiny_models import load_tiny

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("forked")]  # DeepSpeed warns a lot
TASK = "text-generation"
NEW = 10


class TestDecoder:
    """One pair of ranks for all families."""

    @pytest.fixture(scope="class")
    def many(
        self,
    ) -> Iterator[Many]:
        """Two ranks for all families, the other one a process."""
        torch.set_num_threads(1)
        started = subprocess.Popen
        patch = pytest.MonkeyPatch()

        def popen(command: list[str], **options: Any) -> Any:
            return started([*command[:2], "tests.scoring.tensor_parallel.many_ranks", *command[3:]], **options)

        patch.setattr(subprocess, "Popen", popen)
        ranks = Many(2, call_s=20)
        yield ranks
        ranks.stop()
        patch.undo()

    @pytest.mark.parametrize("family", [each for each in SLICED_DECODERS if each in STATIC_DECODE.served])
    def test_every_family_is_that_of_plain_transformers(self, family: str, many: Many, tiny: Tiny) -> None:
        folder = tiny(family, TASK)
        plain = load_tiny(folder, TASK)[0]
        model = many.slice(folder)
        decoder = SlicedDecoder(model, 3, 96, many.ranks)
        whole = Decoder(plain, 3, 96)
        assert decoder.model.heads * 2 == whole.model.heads
        assert decoder.state.bytes() * 2 == whole.state.bytes()
        assert max(errors(decoder, reference(plain)()).values()) < 1e-5  # prompts in pieces, steps of 3, 2 and 1 slots
        _join_and_leave(decoder, plain)
        sampling = SamplingParams(0.9, top_k=40, top_p=0.95, repetition_penalty=1.1, seed=7)
        told = []
        for each in (decoder, whole):
            each.open(1, sampling)
            each.prefill(1, prompt(plain, 11))
            told.append([each.sample([1]).tokens()] + [each.step([1]).tokens() for _ in range(2 * NEW)])
        assert told[0] == told[1]

    def test_windowed_layers_keep_their_window_on_every_rank(self, many: Many, tmp_path: Path) -> None:
        plain = mixed("gemma2")
        plain.save_pretrained(tmp_path)
        decoder = SlicedDecoder(many.slice(tmp_path), 2, 1024, many.ranks, tokens=8 * BLOCK)
        ids = prompt(plain, 300)
        decoder.open(1)
        prefill(decoder, 1, ids)
        check_greedy(plain, ids, steps(decoder, [1], 40)[0])
        assert decoder.groups.windows == (0, WINDOW)
        assert len(decoder.tables.blocks(1)) <= 6 + 3

    @pytest.mark.parametrize("family", [each for each in SLICED_DECODERS if each not in STATIC_DECODE.served])
    def test_what_has_no_adapter_is_served_by_the_generic_tier(self, family: str, many: Many, tmp_path: Path) -> None:
        """Experts are cut too."""
        plain = tiny_causal(family)
        plain.save_pretrained(tmp_path)
        model = many.slice(tmp_path)
        decoder = SlicedDecoder(model, 3, 96, many.ranks)
        assert (decoder.tier, decoder.model.heads, decoder.model.kv_heads) == ("generic", 2, 1)
        experts = [sum(p.numel() for p in each.parameters() if p.ndim == 3) for each in (model, plain)]
        assert 2 * experts[0] == experts[1]
        assert (experts[1] > 0) == (family != "olmo")
        assert max(errors(decoder, reference(plain)()).values()) < 1e-5
        _join_and_leave(decoder, plain)

    @pytest.mark.parametrize("family", ["qwen2", "olmo2"])  # keys have biases, and a norm of all heads
    def test_key_value_heads_fewer_than_ranks_are_repeated(
        self, family: str, many: Many, tiny: Tiny, tmp_path: Path
    ) -> None:
        source = tiny(family, TASK)
        config = AutoConfig.from_pretrained(source, num_key_value_heads=1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
        AutoTokenizer.from_pretrained(source).save_pretrained(tmp_path)
        plain = load_tiny(tmp_path, TASK)[0]
        decoder = SlicedDecoder(many.slice(tmp_path), 3, 96, many.ranks)
        assert (decoder.model.heads, decoder.model.kv_heads) == (2, 1)
        assert max(errors(decoder, reference(plain)()).values()) < 1e-5
        _join_and_leave(decoder, plain)

    def test_what_is_refused_before_it_begins_leaves_the_ranks_in_step(self, many: Many, tiny: Tiny) -> None:
        folder = tiny("opt", TASK)
        model, plain = many.slice(folder), load_tiny(folder, TASK)[0]
        decoder = SlicedDecoder(model, 2, 24, many.ranks)
        decoder.open(0, greedy(plain))
        with pytest.raises(PromptTooLong):
            decoder.prefill(0, [7] * 25)
        with pytest.raises(ValueError, match="at least one token"):
            decoder.prefill(0, [])
        with pytest.raises(KeyError):
            decoder.sample([0])
        ids = prompt(plain, 20)
        decoder.prefill(0, ids)
        tokens = decoder.sample([0]).tokens() + decoder.step([0]).tokens()
        decoder.step([0]), decoder.step([0]), decoder.step([0])
        with pytest.raises(PromptTooLong):
            decoder.step([0])
        assert tokens == generated(plain, ids, 2)
        decoder.use_int8()  # which a CPU does not read: the ranks make it, and go on
        decoder.open(1, greedy(plain))
        decoder.prefill(1, ids[:9])
        again = decoder.sample([1]).tokens()
        decoder.use_int8(False)
        assert again + decoder.step([1]).tokens() == generated(plain, ids[:9], 2)

    def test_a_rank_without_memory_for_its_part_refuses_the_pass(self, many: Many, tiny: Tiny) -> None:
        model = many.slice(tiny("llama", TASK))
        slicing = TensorParallel(2)
        slicing.ranks = many.ranks
        with pytest.raises(PassRefused, match="Rank 1 failed: no memory for its part"):
            StaticDecode(2**40, 32, slicing=slicing).apply(model)
        assert not many.ranks.lost
        decode = StaticDecode(2, 32, slicing=slicing)
        applied = decode.apply(model)
        assert decode.decoder is applied.made.decoder
        assert applied.made.decoder.max_length == 32
        applied.undo()
        assert decode.decoder is None


def _join_and_leave(decoder: SlicedDecoder, plain: Any) -> None:
    """Greedy tokens of sequences of which one joins late, one leaves early, and one takes over what a slot holds."""
    first, second = prompt(plain, 21, 1), prompt(plain, 9, 2)
    assert decoder.open(2, greedy(plain), first, "salt") == 0
    decoder.prefill(2, first)
    one = decoder.sample([2]).tokens() + decoder.step([2]).tokens()
    decoder.open(0, greedy(plain))
    decoder.prefill_many([(0, second)])
    other = decoder.sample([0]).tokens()
    for _ in range(3):
        a, b = decoder.step([0, 2]).tokens()
        other.append(a)
        one.append(b)
    decoder.release(2, first)
    assert decoder.open(1, greedy(plain), first, "salt") == 20
    decoder.prefill(1, first[20:])
    again = decoder.sample([1]).tokens()
    while len(again) < len(one):
        both = decoder.step([1, 0]).tokens()
        again.append(both[0])
        other.append(both[1])
    assert one == again == generated(plain, first, len(one))
    assert other == generated(plain, second, len(other))


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="on GPUs it is tests/scoring/tensor_parallel/test_decoder_gpu.py that slices"
)
class TestService:
    """One sliced service for all of it; the last test kills the other rank."""

    @pytest.fixture(scope="class")
    def service(self, tiny: Tiny) -> Iterator[Service]:
        asked = Optimisation(on=("tensor_slicing",), tensor_parallel=2)
        deployment = Deployment("t", TASK, dtype="float32", limits=Limits(max_batch_size=4), optimisation=asked)
        loaded, chosen = load_with(decoder_passes(deployment.limits, asked), deployment, tiny("llama", TASK))
        service = Service(deployment, loaded, task_class(TASK)(loaded, TASK), {})
        service.start(chosen)
        yield service
        service.drain(5)
        loaded.runtime.ranks.stop()

    @pytest.fixture(scope="class")
    def plain(self, tiny: Tiny) -> Iterator[Service]:
        deployment = Deployment("p", TASK, dtype="float32")
        loaded, _ = load_with([], deployment, tiny("llama", TASK))
        service = Service(deployment, loaded, task_class(TASK)(loaded, TASK), {})
        service.start()
        yield service
        service.drain(5)

    def test_both_passes_are_applied_and_verified(self, service: Service) -> None:
        told = {each["name"]: each for each in service.metadata()["passes"]}
        for name in ("tensor_slicing", "static_decode"):
            assert told[name]["state"] == "applied", told[name]
            assert told[name]["error"] < 1e-5
        assert "2 ranks" in told["tensor_slicing"]["reason"]
        assert told["weight_only"]["state"] == "not taken"

    def test_requests_of_every_kind_at_once(self, service: Service, plain: Service) -> None:
        """Beams run in `generate`, between whose steps the slots have theirs: ranks make the calls in one order."""
        asks = [
            {"inputs": "The king", "parameters": {"max_new_tokens": 24, "num_beams": 3}},
            {"inputs": "The king", "parameters": {"max_new_tokens": 30, "ignore_eos": True}},
            {"inputs": "stars", "parameters": {"max_new_tokens": 40, "do_sample": True, "seed": 3}, "stream": True},
            {"inputs": ["Once", "upon a time"], "parameters": {"max_new_tokens": 12}},
            {"inputs": "Once more", "parameters": {"max_new_tokens": 20, "no_repeat_ngram_size": 2}},
        ]
        with ThreadPoolExecutor(len(asks)) as pool:
            together = list(pool.map(lambda ask: _text(service, ask), asks))
        alone = [_text(service, ask) for ask in asks]
        assert together == alone
        sampled = 2  # `generate`, which is what is plain, draws other random numbers
        wanted = [_text(plain, ask) for ask in asks]
        assert [each for i, each in enumerate(alone) if i != sampled] == [
            each for i, each in enumerate(wanted) if i != sampled
        ]

    def test_a_rank_that_dies_ends_what_runs(self, service: Service) -> None:
        victim = service.loaded.runtime.ranks.processes[0]
        asked = {"inputs": "The", "parameters": {"max_new_tokens": 100, "ignore_eos": True}}
        ended: list[float] = []

        def kill() -> None:
            os.kill(victim.pid, signal.SIGKILL)
            ended.append(time.monotonic())

        threading.Timer(0.2, kill).start()
        status, body = 200, {}
        while status == 200:
            reply = service.answer(json.dumps(asked))
            status, body = reply.status, json.loads(reply.body)
        assert (status, body["error"]["code"]) == (503, "rank_lost")
        assert "rank 1 of 2 ended" in body["error"]["message"]
        # Most often at once; gloo seldom misses a peer's end, and then a call waits for its timeout.
        assert time.monotonic() - ended[0] < CALL_S + 10
        assert "rank 1 of 2 ended" in service.lost
        assert service.metadata()["ready"] is False
        assert service.answer(json.dumps(asked)).status == 503


def _text(service: Service, ask: dict[str, Any]) -> Any:
    """The answer's texts; of a stream, what its events add up to."""
    reply = service.answer(json.dumps(ask))
    assert reply.status == 200, reply.body
    if isinstance(reply.body, bytes):
        return json.loads(reply.body)
    lines = [line.removeprefix("data: ") for line in b"".join(reply.body).decode().split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    events = [json.loads(line) for line in lines[:-1]]
    assert len(events) > 5, events
    return "".join(event["token"]["text"] for event in events if "token" in event)


class TestWaiting:
    """What a GPU's events need, with events that are not a GPU's."""

    def test_a_lost_rank_ends_the_waiting(self) -> None:
        asked = []

        def check() -> None:
            asked.append(1)
            if len(asked) == 3:
                raise RankLost("gone")

        with pytest.raises(RankLost):
            TensorParallelGroup(0, 1, torch.device("cpu"), 30.0, check).wait(SimpleNamespace(query=lambda: False))
        assert len(asked) == 3

    def test_what_does_not_come_is_waited_for_so_long(self) -> None:
        team = TensorParallelGroup(0, 1, torch.device("cpu"), 0.05)
        with pytest.raises(TimeoutError, match="did not end within"):
            team.wait(SimpleNamespace(query=lambda: False))
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            team.wait(SimpleNamespace(query=lambda: False), within_s=0.2)
        assert time.monotonic() - began >= 0.2
