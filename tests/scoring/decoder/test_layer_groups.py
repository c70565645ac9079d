"""Decoders of which some layers see a window: these keep no more, and answers are those of plain transformers."""

import shutil
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
import transformers

from scoring.config import Limits
from scoring.decoder.block_pool import BLOCK
from scoring.decoder.decoder import Decoder
from scoring.decoder.kv_cache import FP8, SamplingParams
from scoring.decoder.layer_groups import STEP_TOKENS, Kept, LayerGroups, group_layers, most_of
from scoring.errors import DeviceFull, PromptTooLong
from scoring.generation.scheduler import Scheduler
from scoring.generation.sequence import supports
from tests.conftest import Tiny
from tests.scoring.conftest import Served
from tests.scoring.decoder.test_adapters import prompt
from tests.scoring.decoder.test_paged_cache import check_greedy, steps
from tests.tiny_causal import tiny_causal

WINDOW = 70  # keys, which are parts of two or three blocks
#: Families of both tiers, with the layers that see a window.
MIXED = {
    "gemma2": "SF",
    "gemma3_text": "SSFS",
    "cohere2": "SSF",
    "gpt_oss": "SF",
    "olmo3": "SSFS",
}
_NAMES = {"S": "sliding_attention", "F": "full_attention"}


def mixed(family: str, layers: str = "") -> Any:
    """A model whose attention decides its tokens."""
    torch.set_num_threads(1)
    layers = layers or MIXED[family]
    made = tiny_causal(
        family, num_hidden_layers=len(layers), layer_types=[_NAMES[kind] for kind in layers], sliding_window=WINDOW,
        max_position_embeddings=131_072,
    )  # fmt: skip
    for name, parameter in made.named_parameters():
        if "expert" not in name and "router" not in name:  # whose choice a last bit may change
            parameter.data *= 3
    if getattr(made.config, "attn_logit_softcapping", None):
        made.set_attn_implementation("eager")  # transformers' other one leaves the cap out
    return made


@pytest.fixture(scope="module")
def gemma3() -> Any:
    return mixed("gemma3_text")


def grouped(windows: Sequence[int], length: int) -> LayerGroups:
    """Groups of layers whose heads are alike."""
    return group_layers([Kept(window) for window in windows], length)


def all_together(layers: Sequence[Kept], length: int) -> LayerGroups:
    """One group, in which no layer gives anything up."""
    return group_layers([layer._replace(window=0) for layer in layers], length)


def prefill(decoder: Decoder, slot: int, ids: list[int], piece: int = 90) -> None:
    for start in range(0, len(ids), piece):
        decoder.prefill(slot, ids[start : start + piece])


# --- groups


@pytest.mark.parametrize(
    ("full", "windowed", "window", "size", "counts"),
    [
        (5, 29, 1024, 5, (1, 6)),  # Gemma-3-4B: one place stays empty
        (10, 52, 1024, 5, (2, 11)),  # Gemma-3-27B
        (12, 12, 128, 12, (1, 1)),  # gpt-oss-20b
        (8, 24, 4096, 8, (1, 3)),  # Command R7B
        (28, 8, 32_768, 4, (7, 2)),  # a Qwen2 with max_window_layers
        (0, 32, 4096, 32, (0, 1)),
        (32, 0, 0, 32, (1, 0)),
    ],
)
def test_groups_waste_little_and_are_few(
    full: int, windowed: int, window: int, size: int, counts: tuple[int, int]
) -> None:
    windows = [0] * full + [window] * windowed
    groups = grouped(windows, 131_072)
    assert (groups.size, groups.windows) == (size, (0,) * counts[0] + (window,) * counts[1])
    assert len(set(groups.places)) == len(windows)
    assert all(groups.windows[group] == own for (group, _), own in zip(groups.places, windows, strict=True))
    assert all(place < size for _, place in groups.places)
    assert groups.size * groups.blocks(4 * window, 1) <= 1.1 * sum(
        min(4 * window, own or 4 * window) / BLOCK + 2 for own in windows
    )


def test_there_is_one_group_where_windows_are_as_long_as_sequences() -> None:
    for length in (500, 1024, 1060):
        assert grouped([0, 1024, 1024], length).windows == (0,)
    assert grouped([512, 1024, 1024], 512).windows == (0,)


def test_a_window_and_a_piece_never_take_more_blocks_than_counted() -> None:
    for window in (1, 5, 63, 64, 65, 70, 129):
        for piece in (1, 2, 63, 64, 90):
            for length in range(300):
                first, last = max(0, length - window + 1) // BLOCK, (length + piece - 1) // BLOCK
                assert last - first + 1 <= most_of(window, piece)


def test_the_longest_sequence_is_one_that_fits() -> None:
    groups = grouped([0, 100, 100], 4096)
    for blocks in range(2, 40):
        longest = groups.longest(blocks, 128, 4096)
        assert groups.blocks(longest, 128) <= blocks
        assert longest == 4096 or groups.blocks(longest + 1, 128) > blocks
    assert groups.at_once(100, 640, 128) == 1 + (100 - groups.blocks(640, 128)) // groups.blocks(640, 1)
    assert groups.at_once(3, 640, 128) == 0


# --- sequences


@pytest.mark.parametrize("tokens", [0, 22 * BLOCK], ids=["in place", "anywhere"])
@pytest.mark.parametrize("family", MIXED)
def test_windowed_layers_keep_their_window_and_tokens_are_those_of_transformers(family: str, tokens: int) -> None:
    """Several windows long, in pieces and steps, while a second sequence takes what the first gives up."""
    model = mixed(family)
    decoder = Decoder(model, 3, 1024, tokens=tokens)
    assert decoder.tier == "fused"
    groups, pool = decoder.groups, decoder.tables.pool
    full = groups.windows.count(0)
    assert 0 < full < groups.count
    ids, other = prompt(model, 500), prompt(model, 60, 7)
    decoder.open(1, None, ids, "salt")
    decoder.open(2)
    for start in range(0, 500, 90):
        decoder.prefill(1, ids[start : start + 90])
        assert pool.used <= groups.blocks(min(500, start + 90), 90)
    decoder.prefill(2, other)
    answers = steps(decoder, [1, 2], 75)
    assert pool.used <= full * (9 + 3) + (groups.count - full) * 2 * most_of(WINDOW, 1)
    assert len(decoder.tables.blocks(1)) <= full * 9 + (groups.count - full) * 3
    for one, answer in zip((ids, other), answers, strict=True):
        check_greedy(model, one, answer)
    known = [*ids, *answers[0]]
    decoder.release(1, known)
    decoder.release(2)
    assert pool.used == 0
    # What the window before its end needs is there; the last token was never fed.
    assert decoder.open(0, None, [*known, 5, 6], "salt") == len(known) - 1
    decoder.prefill(0, [known[-1], 5, 6])
    check_greedy(model, [*known, 5, 6], steps(decoder, [0], 5)[0])


def test_a_prefix_whose_window_was_given_up_is_shorter_or_none(gemma3: Any) -> None:
    decoder = Decoder(gemma3, 4, 1024, tokens=24 * BLOCK)
    ids = prompt(gemma3, 700)
    decoder.open(0, None, ids, "a")
    prefill(decoder, 0, ids)
    decoder.release(0, ids)
    asked = [*ids[:300], 5, 6, 7]
    assert decoder.open(1, None, asked, "a") == 300  # nobody needed the blocks before the window yet
    decoder.prefill(1, asked[300:])
    check_greedy(gemma3, asked, steps(decoder, [1], 3)[0])
    pool, tables, lengths = decoder.tables.pool, decoder.tables, []
    decoder.release(1, asked)
    while pool.idle:
        decoder.evict(pool.idle - 1)
        lengths.append(tables.match(asked, "a"))
    assert sorted(lengths, reverse=True) == lengths
    assert lengths[-1] == 0
    assert 0 < lengths[0] < len(asked)
    assert decoder.open(1, None, asked, "a") == 0
    prefill(decoder, 1, asked)
    check_greedy(gemma3, asked, steps(decoder, [1], 3)[0])


def test_two_sequences_share_what_their_windows_see(gemma3: Any) -> None:
    decoder = Decoder(gemma3, 3, 1024, tokens=24 * BLOCK)
    common = prompt(gemma3, 400)
    first, second = [*common, 7, 8, 9], [*common, 9, 8]
    decoder.open(0, None, first, "salt")
    prefill(decoder, 0, first)
    one = steps(decoder, [0], 3)[0]
    assert decoder.open(1, None, second, "salt") == 400
    shared = set(decoder.tables.blocks(0)) & set(decoder.tables.blocks(1))
    windowed = decoder.groups.count - 1
    assert len(shared) == 6 + windowed  # whole blocks: of the window, that from 320 on
    decoder.prefill(1, second[400:])
    two = decoder.sample([1]).tokens()
    for _ in range(100):
        a, b = decoder.step([0, 1]).tokens()
        one.append(a)
        two.append(b)
    check_greedy(gemma3, first, one)
    check_greedy(gemma3, second, two)


def test_a_pool_that_was_too_small_when_all_layers_kept_all_serves_the_same(gemma3: Any) -> None:
    decoder = Decoder(gemma3, 2, 1024, tokens=6 * BLOCK)
    room = (6 * 4 - 3 * most_of(WINDOW, STEP_TOKENS["cpu"])) * BLOCK
    assert (decoder.capacity, decoder.max_length) == (6 * BLOCK, room)
    assert room == 9 * BLOCK
    ids = prompt(gemma3, room - 3)
    decoder.open(0)
    prefill(decoder, 0, ids, STEP_TOKENS["cpu"])
    decoder.open(1)
    with pytest.raises(DeviceFull, match="of 24 are not in use"):
        decoder.prefill(1, ids[:500])
    check_greedy(gemma3, ids, steps(decoder, [0], 3)[0])
    with pytest.raises(PromptTooLong, match="a slot holds 576"):
        decoder.step([0])
    assert not supports(transformers.GenerationConfig(), [2], 1025, decoder)
    with pytest.raises(PromptTooLong, match="may have 577 tokens; the KV cache has room for 576 in all"):
        supports(transformers.GenerationConfig(), [2], 577, decoder)


@pytest.mark.parametrize("crowded", [False, True], ids=["admitted", "preempted"])
def test_rows_in_a_small_pool_are_as_alone(
    tiny: Tiny, gemma3: Any, crowded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of several windows that begin alike or not; together longer than what fits if all layers keep all.

    Crowded, they join whether they fit or not, and steps are enqueued before the last one's tokens are read.
    """
    served = Served(tiny("llama", "text-generation"), "text-generation", Limits())
    monkeypatch.setitem(STEP_TOKENS, "cpu", 64)
    decoder = Decoder(gemma3, 12, 1024, tokens=11 * BLOCK)
    monkeypatch.setattr(served.service.task, "eos", [])  # another model's
    scheduler = Scheduler(served.service.task, decoder, decoder.capacity)
    scheduler._late = crowded
    rows, done = rows_of(served, gemma3), dict[int, Any]()
    waiting, together = list(enumerate(rows)), 0
    while waiting or scheduler.active:
        while waiting and (scheduler.active < 6 if crowded else scheduler.fits(waiting[0][1])):
            number, row = waiting.pop(0)
            scheduler.add(row, partial(done.__setitem__, number))
        scheduler.step()
        together = max(together, len({block for own in decoder.tables._slots for block in own.blocks[0]}))
        assert decoder.tables.pool.used <= 11 * decoder.groups.count
        assert 0 <= scheduler.cache["kv_tokens"] <= scheduler.cache["kv_capacity"] == 11 * BLOCK
    assert together > 11
    for number, row in enumerate(rows):
        check_greedy(gemma3, row.features["input_ids"], list(done[number][0]))
    told = served.service.statistics()
    assert (told["preemptions"] > 0) == crowded
    assert told["cached_tokens"] > 0
    assert decoder.tables.pool.used == 0


def rows_of(served: Served, model: Any) -> list[Any]:
    task, common, rows = served.service.task, prompt(model, 320, 9), []
    for number in range(12):
        new = 120 if number % 2 else 9
        parameters = task.schema.parse_parameters({"max_new_tokens": new, "ignore_eos": True})
        [row] = task.encode("The", parameters, 0)
        row.features["input_ids"] = (common if number % 3 == 0 else []) + prompt(model, 60 + 50 * (number % 6), number)
        rows.append(row)
    return rows


def test_drafts_past_a_window_change_no_token(gemma3: Any) -> None:
    """Drafts that come, that do not, and that cross blocks; what was rejected is written again."""
    plain, ours = (Decoder(gemma3, 2, 1024, tokens=24 * BLOCK, drafts=True) for _ in range(2))
    ids = prompt(gemma3, 250)
    for decoder in (plain, ours):
        decoder.open(1)
        prefill(decoder, 1, ids)
    wanted = steps(plain, [1], 90)[0]
    found = ours.sample([1]).tokens()
    while len(found) < 80:
        ahead = wanted[len(found) - 1 : len(found) + 9]
        if len(found) % 3 == 0:
            ahead[4] += 1 if ahead[4] < 100 else -1
        found += ours.speculate([(1, ahead)]).runs()[0]
        assert len(ours.tables.blocks(1)) <= ours.groups.blocks(ours.lengths[1] + 9, 10)
    assert found == wanted[: len(found)]


def test_a_sequence_can_be_wound_back_as_far_as_was_told(gemma3: Any) -> None:
    """As a draft model's is, to the first token that came otherwise."""
    decoder = Decoder(gemma3, 2, 1024, tokens=24 * BLOCK, rewinds=32)
    assert set(decoder.groups.windows) == {0, WINDOW + 32}
    ids = prompt(gemma3, 400)
    decoder.open(0)
    prefill(decoder, 0, ids)
    for length in range(400, 550, 30):
        ids = [*ids, *prompt(gemma3, 30, length)]
        decoder.prefill(0, ids[length : length + 10])
        decoder.prefill(0, [9] * 31)  # what was foretold, and does not come
        decoder.lengths[0] = length + 10
        decoder.prefill(0, ids[length + 10 :])
    assert len(decoder.tables.blocks(0)) < decoder.groups.count * 9 / 2 + 5
    check_greedy(gemma3, ids, steps(decoder, [0], 5)[0])


@torch.inference_mode()
def test_sums_of_one_order_are_the_same_bits_in_groups(gemma3: Any) -> None:
    """Alone in one group; in company, in pieces and blocks anywhere, in groups."""
    ids, other = prompt(gemma3, 330), prompt(gemma3, 90, 3)
    alone, busy = Decoder(gemma3, 4, 1024, fixed=True), Decoder(gemma3, 4, 1024, tokens=30 * BLOCK, fixed=True)
    alone.open(2)
    found = [alone.prefill(2, ids)]
    busy.open(0), busy.open(1)
    busy.prefill_many([(1, other), (0, ids[:100])])
    told = [busy.prefill_many([(0, ids[100:]), (1, other[:7])])[0]]
    for token in (7, 9, 11):
        for decoder, slots in ((alone, [2]), (busy, [1, 0])):
            for slot in slots:
                decoder.feed(slot, token)
            decoder.step(slots)
        found.append(alone.last_logits(1)[0].clone())
        told.append(busy.last_logits(2)[1].clone())
    assert all(torch.equal(one, two) for one, two in zip(found, told, strict=True))
    assert len(busy.tables.blocks(0)) < busy.groups.count * 6


@pytest.mark.parametrize("narrow", [False, True], ids=["as the model", "FP8"])
@torch.inference_mode()
def test_answers_are_those_of_one_group(gemma3: Any, narrow: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    several = Decoder(gemma3, 2, 1024, narrow=narrow, tokens=24 * BLOCK)
    monkeypatch.setattr("scoring.decoder.decoder.group_layers", all_together)
    whole = Decoder(gemma3, 2, 1024, narrow=narrow, tokens=24 * BLOCK)
    assert (several.groups.count, whole.groups.count) == (4, 1)
    assert several.state.keys.dtype == (FP8 if narrow else torch.float32)
    ids, told = prompt(gemma3, 300), []
    for decoder in (several, whole):
        decoder.open(1, SamplingParams())
        prefill(decoder, 1, ids)
        found = [decoder.sample([1]).tokens()[0]]
        for _ in range(70):
            found += decoder.step([1]).tokens()
        told.append((found, decoder.last_logits(1).clone()))
    assert told[0][0] == told[1][0]
    assert torch.equal(told[0][1], told[1][1])


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
@torch.inference_mode()
def test_a_step_in_c_reads_its_layers_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_causal(
        "qwen2", num_hidden_layers=3, layer_types=[_NAMES[kind] for kind in "FSS"], use_sliding_window=True,
        sliding_window=WINDOW, max_window_layers=1, max_position_embeddings=1024,
    )  # fmt: skip
    ids, told = prompt(model, 300), []
    for groups in (group_layers, all_together):
        monkeypatch.setattr("scoring.decoder.decoder.group_layers", groups)
        decoder = Decoder(model, 2, 1024, tokens=24 * BLOCK, tier="fused")
        decoder.use_int8()
        decoder.plain.use_narrow()
        decoder.open(1)
        prefill(decoder, 1, ids)
        decoder.sample([1])
        for token in prompt(model, 70, 5):
            decoder.feed(1, token)
            decoder.step([1])
        told.append((len(decoder.tables.blocks(1)), decoder.last_logits(1).clone()))
        decoder.plain.use_wide()
    assert told[0][0] < told[1][0] * decoder.groups.count * 3
    assert torch.equal(told[0][1], told[1][1])
