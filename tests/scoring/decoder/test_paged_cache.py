"""The paged cache on a CPU: sequences whose blocks lie anywhere, are shared, full or given up."""

import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from scoring.config import Limits
from scoring.decoder.block_pool import BLOCK
from scoring.decoder.block_tables import BlockTables
from scoring.decoder.decoder import Decoder
from scoring.decoder.kv_cache import SamplingParams
from scoring.decoder.layer_groups import STEP_TOKENS
from scoring.decoder.prompt_cost import PromptCost
from scoring.decoder.verify import errors, reference
from scoring.engine.row import Row
from scoring.errors import DeviceFull, PromptTooLong
from scoring.generation.scheduler import Scheduler
from scoring.generation.sequence import supports
from tests.conftest import Tiny
from tests.scoring.conftest import Served
from tests.scoring.decoder.test_adapters import prompt

LENGTHS = (1, 63, 64, 65, 130, 200)


@pytest.fixture(scope="module", params=["llama", "mistral"])
def model(request: pytest.FixtureRequest) -> Any:
    """A tiny model with long positions; Mistral sees 70 tokens, which are parts of two or three blocks."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 199}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 131_072}
    if request.param == "llama":
        config: Any = transformers.LlamaConfig(**sizes, **heads)
    else:
        config = transformers.MistralConfig(**sizes, **heads, sliding_window=70)
    made = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in made.parameters():
        parameter.data *= 3  # so that attention decides the tokens
    return made


@torch.inference_mode()
def check_greedy(model: Any, ids: list[int], answer: list[int]) -> None:
    """Each token of the answer is the likeliest one by plain transformers: what a greedy `generate` gives."""
    logits = model(torch.tensor([ids + answer])).logits[0, len(ids) - 1 : -1]
    assert logits.argmax(-1).tolist() == answer


def steps(decoder: Decoder, slots: list[int], count: int) -> list[list[int]]:
    """Tokens of each slot: the first, and those of so many steps."""
    rows = [decoder.sample(slots).tokens()] + [decoder.step(slots).tokens() for _ in range(count)]
    return [list(tokens) for tokens in zip(*rows, strict=True)]


@pytest.mark.parametrize("tokens", [0, 16 * BLOCK], ids=["in place", "anywhere"])
def test_prompts_and_steps_across_blocks_match(model: Any, tokens: int) -> None:
    decoder = Decoder(model, len(LENGTHS), 512, tokens=tokens)
    assert decoder.state.in_place == (tokens == 0)
    prompts = [prompt(model, length) for length in LENGTHS]
    order = [3, 0, 5, 1, 4, 2]
    for first in range(0, 200, 50):  # in pieces that end within blocks
        parts = [(slot, ids) for slot in order if (ids := prompts[slot][first : first + 50])]
        decoder.prefill_many(parts)
    for ids, answer in zip((prompts[slot] for slot in order), steps(decoder, order, 6), strict=True):
        check_greedy(model, ids, answer)


def test_a_cached_prefix_is_marked_for_a_penalty_of_repetitions_alone(model: Any) -> None:
    decoder, ids = Decoder(model, 3, 256), prompt(model, 150)
    decoder.open(0, None, ids, "salt")
    decoder.prefill(0, ids)
    assert decoder.open(1, None, ids, "salt") == 149
    assert not decoder.state.seen[1].any()
    assert decoder.open(2, SamplingParams(repetition_penalty=1.2), ids, "salt") == 149
    assert decoder.state.seen[2].nonzero()[:, 0].tolist() == sorted(set(ids[:149]))


@pytest.mark.parametrize("tokens", [0, 24 * BLOCK], ids=["in place", "anywhere"])
def test_two_live_sequences_share_their_blocks_and_diverge(model: Any, tokens: int) -> None:
    decoder = Decoder(model, 3, 1024, tokens=tokens)
    common = prompt(model, 150)
    first, second = [*common, 7, 8, 9], [*common, 9, 8]
    assert decoder.open(0, None, first, "salt") == 0
    decoder.prefill(0, first)
    one = steps(decoder, [0], 3)[0]
    assert decoder.open(1, None, second, "salt") == 150
    assert decoder.open(2, None, second, "other") == 0
    shared = set(decoder.tables.blocks(0)) & set(decoder.tables.blocks(1))
    whole = 1 if any(decoder.tables.windows) else 2  # the first is before the window
    assert len(shared) == (whole if tokens else 0)  # in place they are copied
    assert len(decoder.tables.blocks(0)) == len(decoder.tables.blocks(1)) == whole + 1
    decoder.prefill(1, second[150:])
    two = decoder.sample([1]).tokens()
    for _ in range(60):
        a, b = decoder.step([0, 1]).tokens()
        one.append(a)
        two.append(b)
    check_greedy(model, first, one)
    check_greedy(model, second, two)
    decoder.release(0, first + one)
    assert decoder.tables.pool.used == len(decoder.tables.blocks(1))
    again = first + one
    assert decoder.open(0, None, again, "salt") == len(again) - 1
    decoder.prefill(0, again[-1:])
    check_greedy(model, again, steps(decoder, [0], 5)[0])


def test_a_full_pool_refuses_before_anything_changes(model: Any) -> None:
    decoder = Decoder(model, 3, 512, tokens=3 * BLOCK)
    assert (decoder.max_length, decoder.capacity) == (192, 192)
    ids = [prompt(model, length) for length in (100, 64, 65)]
    for slot in range(3):
        decoder.open(slot)
    decoder.prefill_many([(0, ids[0]), (1, ids[1])])
    with pytest.raises(DeviceFull, match="1 more blocks of 64 tokens; 0 of 3 are not in use"):
        decoder.prefill_many([(2, [5])])
    tokens = decoder.sample([0, 1]).tokens()
    with pytest.raises(DeviceFull):
        decoder.step([0, 1])  # slot 1 needs another block
    assert decoder.lengths == [100, 64, 0]
    check_greedy(model, ids[0], tokens[:1] + decoder.step([0]).tokens())
    decoder.release(0)
    check_greedy(model, ids[1], tokens[1:] + decoder.step([1]).tokens())
    decoder.prefill(2, ids[2][:64])
    with pytest.raises(PromptTooLong):
        decoder.prefill(1, [7] * 128)


def test_a_context_of_131072_tokens_takes_memory_for_those_that_are_written(model: Any) -> None:
    before = _resident()
    decoder = Decoder(model, 64, 131_072)
    for slot in range(64):
        decoder.open(slot)
        decoder.prefill(slot, prompt(model, 70))
    tokens = steps(decoder, list(range(64)), 2)
    check_greedy(model, prompt(model, 70), tokens[63])
    assert decoder.state.bytes() > 1 << 30
    written = 64 * 2 * BLOCK * decoder.state.bytes() // (64 * 131_072)
    assert _resident() - before < written + (150 << 20)


def _resident() -> int:
    status = Path("/proc/self/statm")
    if not status.exists():
        pytest.skip("needs Linux")
    return int(status.read_text(encoding="ascii").split()[1]) * 4096


def test_a_row_that_the_pool_can_never_hold_is_refused_with_the_sizes(model: Any) -> None:
    decoder = Decoder(model, 3, 1024, tokens=4 * BLOCK)
    config = transformers.GenerationConfig()
    assert supports(config, [2], 256, decoder)
    with pytest.raises(PromptTooLong, match="may have 257 tokens; the KV cache has room for 256 in all"):
        supports(config, [2], 257, decoder)
    assert not supports(config, [2], 1025, decoder)


@pytest.fixture
def windowed() -> Any:
    """A tiny model of which every layer sees 70 tokens."""
    torch.manual_seed(0)
    config = transformers.MistralConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, vocab_size=199, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=131_072, sliding_window=70,
    )  # fmt: skip
    made = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in made.parameters():
        parameter.data *= 3
    return made


@pytest.mark.parametrize("tokens", [0, 6 * BLOCK], ids=["in place", "anywhere"])
def test_a_sequence_keeps_no_more_blocks_than_its_window(
    windowed: Any, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Far longer than the pool, in pieces and steps, while others take what it gave up; it goes on after a prefix."""
    monkeypatch.setitem(STEP_TOKENS, "cpu", 64)
    decoder = Decoder(windowed, 3, 1024, tokens=tokens)
    assert decoder.max_length == 1024
    ids, other = prompt(windowed, 500), prompt(windowed, 60, 7)
    pool = decoder.tables.pool
    assert decoder.open(1, None, ids, "salt") == 0
    for start in range(0, 500, 90):
        decoder.prefill(1, ids[start : start + 90])
        assert pool.used <= 3
    decoder.open(2)
    decoder.prefill(2, other)
    answers = steps(decoder, [1, 2], 200)
    assert pool.used <= 6
    for one, answer in zip((ids, other), answers, strict=True):
        check_greedy(windowed, one, answer)
    decoder.release(2)
    known = [*ids, *answers[0]]
    decoder.release(1, known)
    assert pool.used == 0
    held = decoder.open(0, None, known, "salt")
    assert held == (0 if tokens else 500)  # others took what was given up; in place nobody can
    for start in range(held, len(known), 128):
        decoder.prefill(0, known[start : start + 128])
    check_greedy(windowed, known, steps(decoder, [0], 5)[0])


def test_rows_of_a_window_are_admitted_by_what_they_keep(
    tiny: Tiny, windowed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(STEP_TOKENS, "cpu", 64)
    served = Served(tiny("llama", "text-generation"), "text-generation", Limits())
    decoder = Decoder(windowed, 4, 1024, tokens=14 * BLOCK)
    monkeypatch.setattr(served.service.task, "eos", [])  # another model's
    scheduler = Scheduler(served.service.task, decoder, decoder.capacity)
    scheduler.budget = 64
    rows, done = rows_of(served, random.Random(0), 6), {}
    for number, row in enumerate(rows):
        row.features["input_ids"] = prompt(windowed, 700, number)
    waiting, together = list(enumerate(rows)), 0
    while waiting or scheduler.active:
        while waiting and scheduler.fits(waiting[0][1]):
            number, row = waiting.pop(0)
            scheduler.add(row, partial(done.__setitem__, number))
        scheduler.step()
        together = max(together, scheduler.active)
        assert decoder.tables.pool.used <= 14
        assert 0 <= scheduler.cache["kv_tokens"] <= 14 * BLOCK
    assert together >= 3  # of 4 blocks each at most, where 11 would be needed for all their tokens
    for number, row in enumerate(rows):
        check_greedy(windowed, row.features["input_ids"], list(done[number][0]))


def rows_of(served: Served, generator: random.Random, count: int) -> list[Row]:
    """Rows of random tokens, of which some begin alike."""
    task = served.service.task
    common = [generator.randrange(5, 300) for _ in range(70)]
    found = []
    for number in range(count):
        parameters = task.schema.parse_parameters({"max_new_tokens": generator.randrange(4, 20), "ignore_eos": True})
        [row] = task.encode("The", parameters, 0)
        own = [generator.randrange(5, 300) for _ in range(generator.randrange(1, 100))]
        row.features["input_ids"] = (common + own)[:100] if number % 3 == 0 else own
        found.append(row)
    generator.shuffle(found)
    return found


@pytest.mark.parametrize("late", ["at once", "late", "late and slow"])
def test_64_sequences_in_a_pool_far_smaller_than_all_are_each_as_alone(
    tiny: Tiny, late: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if late == "late and slow":
        monkeypatch.setattr(Decoder, "prompt_cost", PromptCost(1.0))
    served = Served(tiny("llama", "text-generation"), "text-generation", Limits())
    model = served.service.loaded.model
    decoder = Decoder(model, 64, 128, tokens=12 * BLOCK)
    served.service.loaded.runtime.decoder = decoder
    scheduler = Scheduler(served.service.task, decoder, decoder.capacity)
    scheduler._late = late != "at once"
    waiting = list(enumerate(rows_of(served, random.Random(0), 64)))
    rows, done, most = dict(waiting), {}, 0
    while waiting or scheduler.active:
        while waiting and scheduler.fits(waiting[0][1]):
            number, row = waiting.pop(0)
            scheduler.add(row, partial(done.__setitem__, number))
        scheduler.step()
        most = max(most, len(scheduler._decoding))
        assert decoder.tables.pool.used <= 12
        assert 0 <= scheduler.cache["kv_tokens"] <= scheduler.cache["kv_capacity"] == 12 * BLOCK
    assert most > 6
    for number, row in rows.items():
        assert not isinstance(done[number], Exception)
        assert len(done[number][0]) == row.new_tokens
        check_greedy(model, row.features["input_ids"], list(done[number][0]))
    told = served.service.statistics()
    assert told["preemptions"] > 0
    assert told["cached_tokens"] > 0
    assert decoder.tables.pool.used == 0


class Written:
    """Random sequences over block tables alone, and what was written into each block."""

    SLOTS, WIDTH = 6, 4

    def __init__(self, in_place: bool, windows: tuple[int, ...]) -> None:
        self.random = random.Random(1)
        self.windows = windows
        self.blocks = len(windows) * (24 if in_place else 13)
        self.tables = BlockTables(self.SLOTS, self.WIDTH, self.blocks, in_place, windows)
        self.contents: list[list[int]] = [[] for _ in range(self.blocks)]  # tokens
        self.owners = [-1] * self.blocks  # group that each block was last written for
        self.held: dict[int, list[int]] = {}  # tokens of each open slot

    def check(self, slot: int) -> None:
        """Blocks of each group that a next token sees hold the sequence's tokens."""
        own, ids = self.tables._slots[slot], self.held[slot]
        for group, window in enumerate(self.windows):
            first = max(0, len(ids) - window + 1) // BLOCK if window else 0
            assert own.past[group] <= first
            for number in range(first, -(-len(ids) // BLOCK)):
                block, tokens = own.blocks[group][number], ids[number * BLOCK : (number + 1) * BLOCK]
                assert (self.owners[block], self.contents[block][: len(tokens)]) == (group, tokens)

    def begin(self, slot: int) -> None:
        rng = self.random
        head = [rng.randrange(2)] * rng.randrange(1, 200)
        ids = (head + [rng.randrange(4) for _ in range(250)])[: rng.randrange(20, 250)]
        if (len(ids) // BLOCK + 2) * len(self.windows) > self.tables.pool.available:
            return
        salt = rng.choice("ab")
        least = self.tables.match(ids, salt)
        count = self.tables.open(slot, ids, salt)
        self._follow()
        assert least <= count < len(ids)
        self.held[slot] = ids[:count]
        self.check(slot)
        self._write(slot, ids[count : count + rng.randrange(1, len(ids) - count + 1)])

    def grow(self, slot: int) -> None:
        if len(self.held[slot]) < self.WIDTH * BLOCK - 10 and self.tables.pool.available >= len(self.windows):
            self._write(slot, [self.random.randrange(4)] * 10)

    def end(self, slot: int) -> None:
        ids = self.held.pop(slot)
        self.tables.close(slot, ids if self.random.random() < 0.8 else None)

    def check_users(self) -> bool:
        """Compare the pool with what the tables of all slots say; True if a block has several users."""
        users = [0] * self.blocks
        for block in (block for slot in self.held for block in self.tables.blocks(slot)):
            users[block] += 1
        pool = self.tables.pool
        assert [pool.users(block) for block in range(self.blocks)] == users
        assert pool.used == sum(count > 0 for count in users)
        assert all(block in self.tables.cache for block in range(self.blocks) if pool.is_idle(block))
        return max(users) > 1

    def _follow(self) -> None:
        for _, source, target in self.tables.copies:
            self.contents[target] = list(self.contents[source])
            self.owners[target] = self.owners[source]
        self.tables.copies.clear()

    def _write(self, slot: int, ids: list[int]) -> None:
        start = len(self.held[slot])
        self.tables.reserve(slot, start + len(ids))
        for group, own in enumerate(self.tables._slots[slot].blocks):
            for at, token in enumerate(ids, start):
                block = self.contents[own[at // BLOCK]]
                del block[at % BLOCK :]
                block.append(token)
                self.owners[own[at // BLOCK]] = group
        self.tables.written(slot, ids)
        self.held[slot] = self.held[slot] + ids
        self.tables.advance(slot, len(self.held[slot]))
        self.check(slot)


@pytest.mark.parametrize("windows", [(0,), (70,), (0, 70, 70)], ids=["all", "window", "both"])
@pytest.mark.parametrize("in_place", [False, True])
def test_every_block_has_the_users_that_tables_say(in_place: bool, windows: tuple[int, ...]) -> None:
    """Random sequences over the tables alone; what is found is checked against what was written into the blocks."""
    written = Written(in_place, windows)
    rng = written.random
    counted = reused = 0
    for _ in range(2000):
        slot = rng.randrange(written.SLOTS)
        actions = (written.end, written.grow, written.grow, written.begin)
        action = rng.choice(actions) if slot in written.held else written.begin
        action(slot)
        reused += action == written.begin and len(written.held.get(slot, ())) > BLOCK
        if rng.random() < 0.02:
            written.tables.evict(2)
        counted += written.check_users()
    assert reused > 100
    assert (counted > 0) == (not in_place)


def test_verification_leaves_all_blocks_to_sequences(model: Any) -> None:
    """One of full length fits a pool of no more; it was refused for good while probes' slots kept some blocks."""
    length = 3 * BLOCK
    decoder = Decoder(model, 4, length, tokens=length)
    found = errors(decoder, reference(model)())
    assert max(found.values()) <= 1e-5 and decoder.tables.pool.used == 0
    decoder.open(0)
    decoder.prefill(0, [7 + at % 50 for at in range(length)])
