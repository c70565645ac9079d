"""The decoder's Triton kernels against its plain torch back end: interpreted on a CPU, compiled on a GPU.

TRITON_INTERPRET=1 pytest tests/scoring/kernels/test_decoder.py     # with triton installed, no GPU
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a GPU, or TRITON_INTERPRET=1", allow_module_level=True)

from scoring.decoder import cuda_backend, decode_step  # noqa: E402
from scoring.decoder.adapters.builders import FAMILIES, build  # noqa: E402
from scoring.decoder.decode_step import Launcher  # noqa: E402
from scoring.decoder.decoder import Decoder  # noqa: E402
from scoring.decoder.draft_step import DraftStep  # noqa: E402
from scoring.decoder.drafts import kept  # noqa: E402
from scoring.decoder.gemv_config import GemvTile  # noqa: E402
from scoring.decoder.int4 import attach  # noqa: E402
from scoring.decoder.kv_cache import KVCache, SamplingParams  # noqa: E402
from scoring.decoder.layer_groups import of_size  # noqa: E402
from scoring.decoder.model import quantize_weights  # noqa: E402
from scoring.decoder.prefill import Prefiller, admit, pieces, record  # noqa: E402
from scoring.decoder.torch_backend import TorchBackend  # noqa: E402
from scoring.quantization.loading import from_pretrained  # noqa: E402
from tests.published import publish  # noqa: E402
from tests.scoring.decoder.test_adapters import prompt, tiny  # noqa: E402
from tests.scoring.decoder.test_long_rotary import long_model  # noqa: E402
from tests.scoring.kernels.test_sampler import SAMPLINGS, packed  # noqa: E402
from tests.scoring.kernels.uncaptured import uncaptured  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::DeprecationWarning")
LENGTHS = (40, 70, 3, 90, 65)  # within a span of 64 keys and across; past the windows


def shuffled(model: Any, slots: int, length: int = 128, dtype: torch.dtype | None = None) -> KVCache:
    """A cache with a group for each layer, and the blocks of its slots in any order."""
    state = KVCache(model, slots, length, dtype=dtype, groups=of_size(model.kept, model.kv_heads * model.head_dim))
    order = torch.randperm(state.blocks, generator=torch.Generator().manual_seed(0)).int()
    state.table[:, : state.slots] = order.view(state.groups.count, state.slots, -1).to(state.table.device)
    state.in_place = False
    return state


def tokens_of(state: KVCache, slot: int, count: int) -> torch.Tensor:
    """Keys, then values, of a slot's first tokens: [2, layers, KV, count, D]."""
    layers = [state.layer(index) for index in range(len(state.groups.places))]
    both = [torch.stack((own.keys, own.values))[:, :, own.table[slot].long()] for own in layers]
    return torch.stack(both, 1).flatten(3, 4)[:, :, :, :count]


def prepared(hf_model: Any, slots: int, quantised: str = "") -> tuple[KVCache, TorchBackend, Launcher]:
    """A state whose slots hold prompts of LENGTHS and a next token, and both back ends over it."""
    model = build(hf_model, 128)
    if quantised == "int4":
        assert attach(model, hf_model) == len(model.products()) - 1  # all but the head, which is not stored so
    elif quantised:
        quantize_weights(model)
        for product in model.products():  # the reference reads what the kernels read
            product.wide = product.weight * product.scale[:, None]
    state = shuffled(model, slots)
    reference = TorchBackend(model, state)
    for slot in range(slots):
        state.open(slot, SamplingParams())
        ids = torch.tensor(prompt(hf_model, LENGTHS[slot]), device=DEVICE)
        reference.prefill([(slot, 0, len(ids))], ids)
        state.lengths[slot] = LENGTHS[slot]
        state.seen[slot, ids] = 1
        state.tokens[slot] = 7 + slot
    launcher = Launcher(model, state, max(slots, 4), pdl=DEVICE == "cuda")
    if DEVICE == "cpu":  # the interpreter runs programs one by one: let there be few
        launcher.tiles = {name: GemvTile(64, 64, 1) for name in ("qkv", "out", "up", "gated", "down", "head")}
    if quantised == "int4":  # programs that stay for several tiles, the last of which may be none of theirs
        launcher.tiles |= {name: GemvTile(4, 128, 1, 3) for name in ("qkv", "out", "up", "gated", "down")}
    return state, reference, launcher


@torch.inference_mode()
def compare(hf_model: Any, rows: list[int], quantised: str = "", steps: int = 2, far: bool = False) -> None:
    """Several steps by the kernels, each against the torch step of the same state."""
    state, reference, launcher = prepared(hf_model, 5, quantised)
    slots = torch.tensor(rows, device=DEVICE)
    launcher.buffers.slots[: len(rows)] = slots.int()
    for _ in range(steps):
        saved = state.keys.clone(), state.values.clone(), state.tokens.clone()
        expected = reference.step(slots, 128)
        written = state.keys.clone(), state.values.clone()
        state.keys.copy_(saved[0]), state.values.copy_(saved[1])
        before = state.lengths.clone()
        launcher.step(len(rows), far)
        logits = (launcher.buffers.logits if len(rows) <= 2 else launcher.buffers.narrow)[: len(rows)]
        close = 4e-3 if quantised == "int4" else 1e-4  # int4 weights take inputs as integers of 16 bits
        assert (logits - expected).abs().max() <= close
        assert (state.keys - written[0]).abs().max() <= close
        assert (state.values - written[1]).abs().max() <= close
        assert torch.equal(state.lengths[slots], before[slots] + 1)
        assert torch.equal(state.tokens[slots], expected.argmax(1))
        assert state.seen[slots, state.tokens[slots]].all()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rows", [[1], [3, 0], [4, 2, 1, 3]], ids=["one", "two", "four"])
def test_steps_match_the_reference(family: str, rows: list[int], tmp_path: Path) -> None:
    compare(tiny(family, tmp_path).to(DEVICE), rows)


@pytest.mark.parametrize("family", [*FAMILIES, "sinks"])
@torch.inference_mode()
def test_steps_with_drafts_match_the_reference(family: str, tmp_path: Path) -> None:
    """Drafts within a block and across, past a window and of one token; right, wrong in the middle, and empty."""
    hf_model = tiny("llama" if family == "sinks" else family, tmp_path).to(DEVICE)
    state, reference, _ = prepared(hf_model, 5)
    for layer in reference.model.layers if family == "sinks" else ():
        layer.attention.sinks = torch.linspace(-1, 2, reference.model.heads, device=DEVICE)
    drafter = DraftStep(reference.model, state, pdl=DEVICE == "cuda")
    placed = [(1, LENGTHS[1], [8]), (4, LENGTHS[4], [11, 5, 6]), (0, LENGTHS[0], [7])]
    for slot, at, tokens in (placed[0], placed[2]):  # followed by what the model picks
        saved = state.keys.clone(), state.values.clone()
        for number in range({1: 4, 0: 11}[slot]):
            fed = torch.tensor(tokens[number:], device=DEVICE)
            tokens.append(int(reference.speculate([(slot, at + number, 1)], fed)[0].argmax()))
        state.keys.copy_(saved[0]), state.values.copy_(saved[1])
    placed[2][2][9] += 1
    saved = state.keys.clone(), state.values.clone(), state.seen.clone()
    flat = torch.tensor([token for _, _, tokens in placed for token in tokens], device=DEVICE)
    expected = reference.speculate([(slot, at, len(tokens)) for slot, at, tokens in placed], flat)
    written = state.keys.clone(), state.values.clone()
    state.keys.copy_(saved[0]), state.values.copy_(saved[1])
    runs = kept([(slot, tokens) for slot, _, tokens in placed], expected.argmax(1).tolist())
    assert [len(run) for run in runs] == [5, runs[1].index(runs[1][-1]) + 1, 9]
    numbers = torch.empty(drafter.layout.size, dtype=torch.int32)
    drafter.layout.fill(numbers, placed, 5)
    drafter.numbers.copy_(numbers)
    drafter.step(len(flat) + 3)
    assert (drafter.buffers.narrow[: len(flat)] - expected).abs().max() <= 2e-4
    assert drafter.buffers.out[: len(flat)].tolist() == expected.argmax(1).tolist()
    for ours, other in zip((state.keys, state.values), written, strict=True):
        assert (ours[:, :, :-1] - other[:, :, :-1]).abs().max() <= 1e-4  # all but the scratch block
    for (slot, at, _), run in zip(placed, runs, strict=True):
        assert (int(state.lengths[slot]), int(state.tokens[slot])) == (at + len(run), run[-1])
        saved[2][slot, run] = 1
    assert torch.equal(state.seen[:5], saved[2][:5])
    assert [int(state.lengths[slot]) for slot in (2, 3, 5)] == [LENGTHS[2], LENGTHS[3], 0]


def test_a_steps_long_rows_are_split_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a small GPU, one program a row, unless a row of the step is long."""
    monkeypatch.setattr(decode_step, "_MULTIPROCESSORS", 1)
    monkeypatch.setattr(decode_step, "_FAR", 40)
    monkeypatch.setattr(decode_step, "_FAR_LEAST", 64)
    split: list[tuple[int, bool]] = []
    attention = Launcher.attention

    def spy(launcher: Launcher, rows: int, *layer: Any) -> None:
        split.append((launcher.splits(rows, launcher.far), launcher.is_far(rows, max(LENGTHS))))
        attention(launcher, rows, *layer)

    monkeypatch.setattr(Launcher, "attention", spy)
    hf_model = tiny("llama", tmp_path).to(DEVICE)
    for far in (False, True):
        compare(hf_model, [4, 2, 1, 3], far=far)
        assert set(split) == {(2 if far else 1, True)}
        split.clear()


@pytest.mark.parametrize("rows", [[1], [4, 2, 1, 3]], ids=["one", "four"])
def test_attention_sinks_take_their_part(rows: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = build

    def with_sinks(hf_model: Any, length: int) -> Any:
        model = made(hf_model, length)
        for layer in model.layers:
            layer.attention.sinks = torch.linspace(-1, 2, model.heads, device=DEVICE)
        return model

    monkeypatch.setitem(globals(), "build", with_sinks)
    compare(tiny("llama", tmp_path).to(DEVICE), rows)


def by_torch(reference: TorchBackend, parts: list[tuple[int, int, list[int]]]) -> torch.Tensor:
    """Logits by the plain back end, which writes keys and values."""
    tokens = torch.tensor([token for _, _, ids in parts for token in ids], device=DEVICE)
    return reference.prefill([(slot, start, len(ids)) for slot, start, ids in parts], tokens)


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_prompts_match_the_reference(family: str, tmp_path: Path) -> None:
    """Two pieces: prompts of several slots at once, then the rest of one beside a whole other one."""
    hf_model = tiny(family, tmp_path).to(DEVICE)
    model = build(hf_model, 128)
    state, plain = shuffled(model, 5), KVCache(model, 5, 128)
    reference, prefiller = TorchBackend(model, plain), Prefiller(model, state, pdl=DEVICE == "cuda")
    one, two, three = prompt(hf_model, 90), prompt(hf_model, 70, 3), prompt(hf_model, 3, 7)
    for parts in ([(4, 0, one[:20]), (2, 0, two)], [(4, 20, one[20:]), (0, 0, three)]):
        rows = sum(len(ids) for _, _, ids in parts) + 5  # padded, as up to a captured size
        numbers = torch.empty(prefiller.layout.size, dtype=torch.int32)
        prefiller.layout.fill(numbers, parts, 5)
        prefiller.numbers.copy_(numbers)
        prefiller.piece(rows)
        expected = by_torch(reference, parts)
        assert (prefiller.logits[: len(parts)] - expected).abs().max() <= 1e-4
    for slot, ids in ((4, one), (2, two), (0, three)):
        assert (tokens_of(state, slot, len(ids)) - tokens_of(plain, slot, len(ids))).abs().max() <= 1e-4
        assert state.lengths[slot] == len(ids)
        assert state.seen[slot].nonzero()[:, 0].tolist() == sorted(set(ids))
    assert state.lengths[5] == 0


@pytest.fixture
def back_end(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The GPU's back end on a CPU: interpreted kernels, graphs that are the launches themselves, memory as it is."""
    if DEVICE == "cuda":
        pytest.skip("tests/scoring/decoder/test_decoder_gpu.py has the real one")
    monkeypatch.setattr(cuda_backend, "pieces", lambda parts, rows, most: pieces(parts, 48, 2))
    return uncaptured(monkeypatch, cuda_backend.CudaBackend)


def test_slots_join_and_go_on_as_on_a_cpu(back_end: Any, tmp_path: Path) -> None:
    hf_model = tiny("llama", tmp_path)
    plain, ours = Decoder(hf_model, 6, 128), Decoder(hf_model, 6, 128, tokens=640)
    ours._cuda = back_end(ours.model, ours.state)
    ours._cuda.launcher.tiles = {name: GemvTile(64, 64, 1) for name in ("qkv", "out", "gated", "down", "head")}
    told = []
    for decoder in (plain, ours):
        for slot, sampling in zip((5, 0, 3), (SAMPLINGS[0], SAMPLINGS[5], SAMPLINGS[1]), strict=True):
            decoder.open(slot, sampling)
        decoder.prefill_many([(5, prompt(hf_model, 30)), (0, prompt(hf_model, 50, 3))])
        decoder.prefill_many([(5, prompt(hf_model, 9, 2)), (3, prompt(hf_model, 5, 4))])
        pending = [decoder.sample([5, 0, 3]), decoder.step([5, 0, 3]), decoder.step([5, 0, 3])]
        decoder.open(1)
        decoder.prefill(1, prompt(hf_model, 20))
        pending += [decoder.sample([1]), decoder.step([0, 1, 3, 5]), decoder.step([0, 1, 3, 5])]
        told.append([each.tokens() for each in pending])
        told[-1] += [getattr(decoder.state, name)[:6].tolist() for name in ("lengths", "tokens", "seen")]
    assert told[0] == told[1]


def test_masked_rows_and_those_beside_them_are_picked_at_once_as_apart(
    back_end: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens picked for all rows of a step together, only for some of them, or after others asked for them."""
    hf_model = tiny("llama", tmp_path)
    plain, ours = Decoder(hf_model, 6, 128), Decoder(hf_model, 6, 128, tokens=640)
    ours._cuda = back_end(ours.model, ours.state)
    ours._cuda.launcher.tiles = {name: GemvTile(64, 64, 1) for name in ("qkv", "out", "gated", "down", "head")}
    launcher, samplings = ours._cuda.launcher, list[bool]()
    launcher.gathered, sample = 64, launcher.sample

    def noted(rows: int, logits: Any, advance: bool, *others: Any, **named: Any) -> None:
        samplings.append(advance)
        sample(rows, logits, advance, *others, **named)

    monkeypatch.setattr(launcher, "sample", noted)
    drawn, told, vocabulary = torch.Generator().manual_seed(3), [], ours.model.vocabulary
    masks = [packed(torch.randint(0, vocabulary, (2, 5), generator=drawn), vocabulary) for _ in range(6)]
    for decoder in (plain, ours):
        for slot, own in zip((5, 0, 3, 4), (6, 1, 1, 5), strict=True):
            decoder.open(slot, replace(SAMPLINGS[own], constrained=slot in (0, 4)))
        decoder.prefill_many([(slot, prompt(hf_model, 9 + slot, slot)) for slot in (5, 0, 3, 4)])
        found = [decoder.sample([5, 3]).tokens(), decoder.sample([0, 4], masks[0]).tokens()]
        samplings.clear()
        for number, order in enumerate(([4, 0], [4], [0, 4], [0, 4])):
            step = decoder.step([5, 0, 3, 4])
            if number == 1:
                found.append(decoder.sample([0], masks[5][:1]).tokens())
            elif number == 2:
                decoder.picked(4)
            elif number == 3:
                decoder.open_logits([0, 4])
            found.append(decoder.sample(order, masks[1 + number][: len(order)]).tokens())
            found.append([step.tokens()[row] for row in (0, 2)])
        decoder.step([5, 0, 3, 4])
        found.append(decoder.step([5, 3]).tokens())
        told.append(found + [getattr(decoder.state, name)[[5, 3]].tolist() for name in ("lengths", "tokens", "seen")])
    assert told[0] == told[1]
    assert samplings == [True, True, False, True, False, True, False, True, True]


def test_slots_are_turned_by_their_own_table_as_on_a_cpu(back_end: Any) -> None:
    hf_model = long_model()
    told = []
    for blocks in (0, 640):
        decoder = Decoder(hf_model, 4, 128, tokens=blocks)
        if blocks:
            decoder._cuda = back_end(decoder.model, decoder.state)
            decoder._cuda.launcher.tiles = {n: GemvTile(64, 64, 1) for n in ("qkv", "out", "gated", "down", "head")}
        first, second = prompt(hf_model, 80), prompt(hf_model, 40, 1)
        decoder.open(3, None, first)
        decoder.open(1, None, second)
        logits = decoder.prefill_many([(3, first), (1, second)])
        rows = [decoder.sample([3, 1]).tokens(), decoder.step([3, 1]).tokens(), decoder.step([3, 1]).tokens()]
        decoder.open(0)  # in a batch of more rows, products are other kernels
        decoder.prefill(0, second[:9])
        decoder.sample([0])
        rows.append(decoder.step([0, 1, 3]).tokens())
        told.append((rows, logits, decoder.last_logits(3).clone(), decoder.state.long[:4].tolist()))
    assert told[0][0] == told[1][0]
    assert told[0][3] == told[1][3] == [0, 0, 0, 1]
    for here, there in zip(told[0][1:3], told[1][1:3], strict=True):
        assert (here - there).abs().max() <= 1e-4


def test_drafts_change_no_token(back_end: Any, tmp_path: Path) -> None:
    """Two slots, sampled and not, fed what comes and what does not; the third goes on beside them by single tokens."""
    hf_model = tiny("llama", tmp_path)
    slots, told = [5, 0, 3], []
    plain, ours = Decoder(hf_model, 6, 128, drafts=True), Decoder(hf_model, 6, 128, tokens=640, drafts=True)
    for decoder in (plain, ours):
        if decoder is ours:
            decoder._cuda = back_end(ours.model, ours.state, drafts=True)
            decoder._cuda.launcher.tiles = {
                name: GemvTile(64, 64, 1) for name in ("qkv", "out", "gated", "down", "head")
            }
        for slot, sampling in zip(slots, (SAMPLINGS[0], SAMPLINGS[5], SAMPLINGS[4]), strict=True):
            decoder.open(slot, sampling)
        decoder.prefill_many([(5, prompt(hf_model, 30)), (0, prompt(hf_model, 61, 3)), (3, prompt(hf_model, 5, 4))])
        found = [[token] for token in decoder.sample(slots).tokens()]
        if decoder is plain:
            for _ in range(9):
                for own, token in zip(found, decoder.step(slots).tokens(), strict=True):
                    own.append(token)
        else:
            while len(found[0]) < 10:
                ahead = [own[len(mine) - 1 : len(mine) + 3] for own, mine in zip(told[0][0], found, strict=True)]
                fed = [(5, ahead[0]), (0, [*ahead[1][:2], 9, 9]), (3, ahead[2][:1])]
                runs = decoder.speculate(fed)
                decoder.picked(9)
                for own, run in zip(found, runs.runs(), strict=True):
                    own += run
        told.append((found, [getattr(decoder.state, name)[:6].tolist() for name in ("lengths", "tokens")]))
        lengths = decoder.lengths[:]
        assert [int(length) for length in decoder.state.lengths[:6]] == lengths
    for mine, own in zip(told[1][0], told[0][0], strict=True):
        assert mine == own[: len(mine)] or own == mine[: len(own)]


def test_prompts_are_cut_into_pieces() -> None:
    parts = [(3, 5, list(range(10))), (1, 0, [7]), (2, 0, list(range(20, 45)))]
    cut = pieces(parts, rows=16, most=2)
    assert cut == [
        [(0, (3, 5, list(range(10)))), (1, (1, 0, [7]))],
        [(2, (2, 0, list(range(20, 36))))],
        [(2, (2, 16, list(range(36, 45))))],
    ]


@torch.inference_mode()
def test_slots_are_opened_together_as_one_by_one(tmp_path: Path) -> None:
    model = build(tiny("gpt2", tmp_path).to(DEVICE), 128)
    together, single = (KVCache(model, len(SAMPLINGS), 128) for _ in range(2))
    for state in (together, single):
        state.seen.fill_(1)
    for slot, sampling in enumerate(SAMPLINGS):
        single.open(slot, sampling, slot % 2 == 1)
    told = [record(slot, sampling, slot % 2 == 1) for slot, sampling in enumerate(SAMPLINGS)]
    records = torch.tensor(told, dtype=torch.int32)
    admit(model, together, records.to(DEVICE), len(SAMPLINGS))
    for name in (
        "seen",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "penalty",
        "seed",
        "forbidden",
        "forbidden_until",
        "constrained",
        "long",
    ):
        assert torch.equal(getattr(together, name), getattr(single, name)), name
    with pytest.raises(ValueError, match="5 forbidden"):
        record(0, SamplingParams(forbidden=(1, 2, 3, 4, 5)))


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "olmo2"])
def test_int8_weights_match_their_widened_reference(family: str, tmp_path: Path) -> None:
    compare(tiny(family, tmp_path).to(DEVICE), [3, 1], quantised="int8")


@pytest.mark.parametrize("method", ["gptq", "awq", "w4a16-rows"])
@pytest.mark.parametrize("family", ["llama", "gpt_neox", "opt", "olmo2"])
def test_int4_weights_are_the_stored_ones(family: str, method: str, tmp_path: Path) -> None:
    """Norms of both kinds and none, gates, biases, heads in groups and of their own; with and without zero points."""
    hf_model = tiny(family, tmp_path / "wide")
    hf_model.save_pretrained(tmp_path / "wide")
    publish(tmp_path / "wide", tmp_path / method, method)
    loaded = from_pretrained(type(hf_model), tmp_path / method, dtype=torch.float32)
    compare(loaded.eval().to(DEVICE), [3, 1], quantised="int4")


@pytest.mark.parametrize("family", ["qwen2", "mixtral"])
def test_products_cut_in_several_passes(family: str, tmp_path: Path) -> None:
    hf_model = tiny(family, tmp_path).to(DEVICE)
    _, reference, launcher = prepared(hf_model, 2)
    names = ("qkv", "out", "gated", "down", "router", "experts", "mixed", "head")
    launcher.tiles = {name: GemvTile(32, 16, 1) for name in names}
    slots = torch.tensor([1, 0], device=DEVICE)
    launcher.buffers.slots[:2] = slots.int()
    with torch.inference_mode():
        expected = reference.step(slots, 128)
        launcher.step(2)
    assert (launcher.buffers.logits[:2] - expected).abs().max() <= 1e-4
