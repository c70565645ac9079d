"""The static decoder on a GPU: graphs, slots and asynchronous results, against plain transformers on the CPU."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

pytest.importorskip("triton", reason="triton is not installed")
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

from scoring.decoder import chunk_size
from scoring.decoder.adapters.builders import FAMILIES
from scoring.decoder.block_pool import BLOCK
from scoring.decoder.decoder import Decoder
from scoring.decoder.kv_cache import SamplingParams
from tests.scoring.decoder.test_adapters import NEW, PROMPTS, generated, greedy, prompt, tiny
from tests.scoring.decoder.test_long_rotary import long_model

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_equal_generate_in_every_bucket(family: str, tmp_path: Path) -> None:
    model = tiny(family, tmp_path)
    held = greedy(model)
    prompts = [prompt(model, length) for length in PROMPTS] + [prompt(model, length, 5) for length in PROMPTS]
    expected = [generated(model, ids, NEW) for ids in prompts]
    decoder = Decoder(model.cuda(), slots=7, max_length=128)
    for count in (1, 2, 6):  # one by one, by twos, and padded up to the next size
        produced: list[list[int]] = []
        for start in range(0, len(prompts), count):
            produced += run(decoder, prompts[start : start + count], held)
        assert produced == expected, count


def run(decoder: Decoder, prompts: list[list[int]], sampling: SamplingParams) -> list[list[int]]:
    """Tokens of several prompts in slots taken from the end, every result read one step late."""
    slots = [decoder.slots - 1 - row for row in range(len(prompts))]
    for slot, ids in zip(slots, prompts, strict=True):
        decoder.open(slot, sampling)
        decoder.prefill(slot, ids[: len(ids) // 2] or ids[:1])
        if ids[max(len(ids) // 2, 1) :]:
            decoder.prefill(slot, ids[max(len(ids) // 2, 1) :])
    pending = [decoder.sample(slots)]
    rows = []
    for _ in range(NEW - 1):
        pending.append(decoder.step(slots))
        rows.append(pending.pop(0).tokens())
    rows.append(pending.pop(0).tokens())
    return [list(tokens) for tokens in zip(*rows, strict=True)]


def test_sequences_of_both_rotary_tables_share_a_batch() -> None:
    """Steps of one row are other kernels than those of several; graphs read which table a slot has."""
    model = long_model()
    prompts = [prompt(model, length, length) for length in (40, 80, 12, 100)]
    found = []
    for device in ("cpu", "cuda"):
        decoder = Decoder(model.to(device), slots=4, max_length=128)
        for slots in ([1], [3, 0, 2]):
            own = [prompts[slot] for slot in slots]
            for slot, ids in zip(slots, own, strict=True):
                decoder.open(slot, None, ids)
                decoder.prefill(slot, ids)
            found.append([decoder.sample(slots).tokens()] + [decoder.step(slots).tokens() for _ in range(6)])
    assert found[:2] == found[2:]


def test_sampled_tokens_equal_the_cpu_decoders(tmp_path: Path) -> None:
    def sampled(model: Any) -> list[list[int]]:
        decoder = Decoder(model, slots=3, max_length=128)
        prompts = [prompt(model, length) for length in PROMPTS]
        return run(decoder, prompts, SamplingParams(1.1, 40, 0.9, 1.2, seed=17))

    model = tiny("llama", tmp_path)
    assert sampled(model) == sampled(model.cuda())


def test_prompts_of_more_slots_and_tokens_than_a_piece_holds(tmp_path: Path) -> None:
    model = tiny("llama", tmp_path)
    prompts = [prompt(model, 1 + 13 * number % 110, number) for number in range(80)]
    results = []
    for device in ("cpu", "cuda"):
        decoder = Decoder(model.to(device), slots=80, max_length=128)
        for slot in range(80):
            decoder.open(slot)
        logits = decoder.prefill_many(list(enumerate(prompts)))
        results.append((logits.cpu(), decoder.sample(range(80)).tokens(), decoder.state.lengths.tolist()))
    assert (results[0][0] - results[1][0]).abs().max() <= 1e-4
    assert results[0][1:] == results[1][1:]


def test_blocks_anywhere_shared_and_grown_give_the_cpus_tokens() -> None:
    """Two sequences share a prefix of 150 tokens, diverge, cross blocks; one is left, taken up again, another joins."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, vocab_size=199, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    common = prompt(model, 150)
    told = []
    for device in ("cpu", "cuda"):
        decoder = Decoder(model.to(device), slots=6, max_length=1024, tokens=20 * BLOCK)
        assert not decoder.state.in_place
        found: list[Any] = [decoder.open(4, None, [*common, 7, 8], "salt")]
        decoder.prefill(4, [*common, 7, 8])
        found.append(decoder.open(1, None, [*common, 9], "salt"))
        decoder.prefill(1, [9])
        pending = [decoder.sample([4, 1])] + [decoder.step([4, 1]) for _ in range(70)]
        tokens = [each.tokens() for each in pending]
        one = [*common, 7, 8, *(row[0] for row in tokens)]
        decoder.release(4, one)
        decoder.open(0)
        decoder.prefill(0, prompt(model, 200, 3))
        found.append(decoder.open(2, None, one, "salt"))
        decoder.prefill(2, one[found[-1] :])
        pending = [decoder.sample([0, 2])] + [decoder.step([2, 0, 1]) for _ in range(70)]
        told.append([*found, tokens, [each.tokens() for each in pending]])
    assert told[0] == told[1]


def test_the_cache_of_a_long_context_takes_its_share_of_the_memory(tmp_path: Path) -> None:
    model = tiny("llama", tmp_path).cuda()
    model.config.max_position_embeddings = 131_072
    decoder = Decoder(model, slots=256, max_length=131_072, share=0.2)
    free, total = torch.cuda.mem_get_info()
    assert decoder.state.bytes() <= 0.2 * total
    assert total - free <= 0.2 * total + (2 << 30)
    decoder.open(255)
    decoder.prefill(255, prompt(model, 3000))
    assert len(decoder.sample([255]).tokens()) == len(decoder.step([255]).tokens()) == 1


def test_keys_in_spans_change_logits_by_rounding_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt of 45,000 tokens in pieces: one span of 32,768 keys and short ones after it, against none."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=256, intermediate_size=256, num_hidden_layers=2, vocab_size=199, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64, max_position_embeddings=65_536,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).bfloat16().eval().cuda()
    ids = prompt(model, 45_000)
    found, used = [], []
    for spans in (True, False):
        if not spans:
            monkeypatch.setattr(chunk_size, "takes_spans", lambda model: False)
        decoder = Decoder(model, slots=2, max_length=65_536, tokens=50_000)
        decoder.plan()
        decoder.open(1)
        for start in range(0, len(ids), 4096):
            used.append(len(decoder._cuda.prefiller.attending.spans(4096, start)))
            logits = decoder.prefill(1, ids[start : start + 4096])
        found.append(logits.float())
    assert max(used[:11]) == 3 and not any(used[11:])
    assert (found[0] - found[1]).norm() <= 2e-2 * found[1].norm()


def long_llama() -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=256, intermediate_size=256, num_hidden_layers=2, vocab_size=199, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64, max_position_embeddings=70_000,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).bfloat16().eval().cuda()


def test_graphs_of_pieces_with_spans_give_what_launches_give() -> None:
    """Pieces of 512 tokens behind one span and behind two, each in a slot of its own blocks."""
    model = long_llama()
    decoder = Decoder(model, slots=3, max_length=70_000, tokens=200_000)
    decoder.plan()
    decoder.warm_up()
    back_end = decoder._cuda
    held = {(count, 8192 * spans) for count in (256, 512, 1024) for spans in range(1, 9)}
    assert set(back_end.graphs.spanned) == held
    whole, padded = [], []
    for slot, captured in ((2, True), (1, False)):
        if not captured:
            back_end.graphs.spanned.clear()
        decoder.open(slot)
        ids = prompt(model, 66_600)
        for first, last in ((0, 32_768 + 300), (33_068, 33_580), (33_580, 66_088)):
            decoder.prefill(slot, ids[first:last])
        whole.append(decoder.prefill(slot, ids[66_088:]))
        padded.append(decoder.prefill(slot, ids[:100]).float())
    assert torch.equal(*whole)
    assert (padded[0] - padded[1]).norm() <= 2e-2 * padded[1].norm()  # products of other numbers of rows


def test_nothing_is_compiled_or_captured_once_all_is_warm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would make all streams wait: 40 to 70 ms, measured on an H200."""
    from triton.runtime.jit import JITFunction

    decoder = Decoder(long_llama(), slots=20, max_length=70_000, tokens=200_000)
    decoder.plan()
    decoder.warm_up()
    decoder.open(0)
    decoder.prefill(0, [5] * 9)
    decoder.sample([0]).tokens()  # as the sample request of every start does
    late: list[str] = []
    compiled, captured = JITFunction._do_compile, type(decoder._cuda)._captured

    def compiling(self: Any, *told: Any, **more: Any) -> Any:
        late.append(self.fn.__name__)
        return compiled(self, *told, **more)

    def capturing(self: Any, launch: Any) -> Any:
        late.append("a graph")
        return captured(self, launch)

    monkeypatch.setattr(JITFunction, "_do_compile", compiling)
    monkeypatch.setattr(type(decoder._cuda), "_captured", capturing)
    for slot in range(20):
        decoder.open(slot)
    decoder.prefill(19, [5] * 40_000)
    for count, length in ((1, 30), (2, 64), (16, 700), (19, 90)):  # and so blocks: 1, 2, 176, 38
        decoder.prefill_many([(slot, [7] * length) for slot in range(count)])
        decoder.prefill(19, [9] * 512)
        decoder.sample(list(range(count)))
        decoder.step([*range(count)]).tokens()
    decoder.sample([19]).tokens()
    decoder.step([*range(20)]).tokens()
    masks = torch.full((1, -(-decoder.model.vocabulary // 32)), -1, dtype=torch.int32, pin_memory=True)
    decoder.open(3, SamplingParams(constrained=True))
    decoder.prefill(3, [7] * 9)
    for beside in ([], [0], [*range(4, 19)]):
        decoder.sample([3], masks)
        decoder.step([*beside, 3])
    decoder.sample([3], masks).tokens()
    assert late == []


def test_a_long_row_beside_short_ones_gets_the_tokens_that_it_gets_alone() -> None:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, vocab_size=199, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=65_536,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval().cuda()
    decoder = Decoder(model, slots=200, max_length=65_536, tokens=60_000)
    told = []
    for rows in (1, 150):
        slots = list(range(rows))
        for slot in slots:
            decoder.open(slot)
            decoder.prefill(slot, prompt(model, 30 if slot else 20_000, slot))
        pending = [decoder.sample(slots)] + [decoder.step(slots) for _ in range(12)]
        told.append([each.tokens()[0] for each in pending])
        for slot in slots:
            decoder.release(slot)
    assert told[0] == told[1]
    assert decoder._cuda.graphs.far.keys() == {200}
