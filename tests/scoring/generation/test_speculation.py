"""Drafts change how fast tokens come, and nothing about them: every answer is as without, however rows share steps."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from scoring.config import Limits
from scoring.decoder.block_pool import BLOCK
from scoring.decoder.decoder import Decoder
from scoring.decoder.drafts import kept
from scoring.decoder.kv_cache import SamplingParams
from scoring.engine.row import Row
from scoring.generation import drafting
from scoring.generation.prompt_lookup import PromptLookup
from scoring.generation.scheduler import Scheduler
from tests.conftest import Tiny
from tests.scoring.conftest import Served
from tests.scoring.generating import repeating

TASK = "text-generation"
SLOTS = 6
COPIED = "one two three four " * 3
ALWAYS = drafting.Payoff(SLOTS, 32, 0.0, 0.001)  # so that wrong drafts come too

Ask = dict[str, Any]


@pytest.fixture(scope="module")
def served(tiny: Tiny) -> Served:
    """A tiny model that repeats itself."""
    found = Served(tiny("llama", TASK), TASK, Limits())
    assert found.service.drain(20)
    repeating(found.service.loaded.model)
    return found


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(drafting.PAYOFFS, "cpu", ALWAYS)
    monkeypatch.setattr("scoring.generation.prompt_lookup._LEAST", 1)


def row_of(served: Served, text: str, **parameters: Any) -> Row:
    task = served.service.task
    [row] = task.encode(text, task.schema.parse_parameters(parameters), 0)
    return row


def answers(
    served: Served,
    asks: list[Ask],
    speculation: bool,
    late: bool = False,
    tokens: int = 0,
    between: Callable[[Scheduler, dict[int, Row]], None] = lambda scheduler, rows: None,
    draft: Decoder | None = None,
    **options: Any,
) -> list[Any]:
    """Outputs of rows that run together, on slots of their own decoder."""
    task: Any = served.service.task
    decoder = Decoder(served.service.loaded.model, SLOTS, 128, tokens=tokens, drafts=speculation, **options)
    decoder.draft, decoder.draft_cost = draft, 0.02
    scheduler = Scheduler(task, decoder, decoder.capacity)
    scheduler._late = late
    rows = {number: row_of(served, **ask) for number, ask in enumerate(asks)}
    waiting, done = list(rows.items()), {}
    while waiting or scheduler.active:
        while waiting and scheduler.fits(waiting[0][1]):
            number, row = waiting.pop(0)
            scheduler.add(row, partial(done.__setitem__, number))
        scheduler.step()
        between(scheduler, rows)
    assert decoder.tables.pool.used == 0
    for output in done.values():
        if isinstance(output, Exception):
            raise output
    return [done[number][0] for number in rows]


def accepted(served: Served) -> int:
    return int(served.service.statistics()["accepted_tokens"])


def asks_of(rng: random.Random, count: int) -> list[Ask]:
    """Requests of every kind that slots follow; cool enough to repeat themselves, or not."""
    kinds: list[Ask] = [
        {},
        {"return_details": True, "top_n_tokens": 2},
        {"repetition_penalty": 1.3},
        {"ignore_eos": True},
        {"do_sample": True, "temperature": 0.3, "return_details": True},
        {"do_sample": True, "temperature": 1.1, "top_k": 5},
        {"do_sample": True, "temperature": 0.7, "top_p": 0.8},
        {"guided_regex": "[a-c]{3,30}"},
    ]
    return [
        kinds[number % len(kinds)]
        | {"text": COPIED[rng.randrange(20) :], "max_new_tokens": rng.randint(1, 60)}
        | ({"seed": number} if "do_sample" in kinds[number % len(kinds)] else {})
        for number in range(count)
    ]


@pytest.mark.parametrize("late", [False, True], ids=["at once", "a step late"])
@pytest.mark.parametrize("tokens", [0, 7 * BLOCK], ids=["room for all", "preempted"])
def test_mixed_rows_are_answered_as_without_drafts(served: Served, late: bool, tokens: int) -> None:
    asks = asks_of(random.Random(3), 21)
    plain = answers(served, asks, speculation=False)
    before, given_up = accepted(served), served.service.statistics()["preemptions"]
    drafted = answers(served, asks, True, late, tokens)
    assert drafted == plain
    for ask, one, other in zip(asks, drafted, plain, strict=True):
        if "return_details" in ask:
            assert [chance.logprob for chance in one.logprobs] == pytest.approx(
                [chance.logprob for chance in other.logprobs], abs=1e-4
            )
            assert len(one.logprobs) == len(one)
            assert [[token for token, _ in chance.top] for chance in one.logprobs] == [
                [token for token, _ in chance.top] for chance in other.logprobs
            ]
    assert accepted(served) > before + 50
    assert served.service.statistics()["drafted_tokens"] > accepted(served)
    assert (served.service.statistics()["preemptions"] > given_up) == (tokens > 0)


def test_the_generic_tier_is_drafted_too(served: Served) -> None:
    asks = asks_of(random.Random(4), 8)
    before = accepted(served)
    assert answers(served, asks, True, tier="generic") == answers(served, asks, False)
    assert accepted(served) > before


def test_a_pool_that_ranks_of_blocks_bound_is_never_outgrown_by_a_draft(served: Served) -> None:
    """A row alone fills the pool to its last place: its drafts ask for no block that its next token does not need."""
    ask = {"text": "one two", "ignore_eos": True}
    start = row_of(served, **ask).tokens
    asks = [ask | {"max_new_tokens": 128 - start}]
    assert answers(served, asks, True, late=True, tokens=2 * BLOCK) == answers(served, asks, False)


@pytest.mark.parametrize("late", [False, True], ids=["at once", "a step late"])
def test_what_ends_a_row_inside_a_draft_ends_it_there(served: Served, late: bool) -> None:
    ask: Ask = {"text": COPIED, "max_new_tokens": 60, "ignore_eos": True}
    [whole] = answers(served, [ask], False)
    task: Any = served.service.task
    before = accepted(served)
    asks = [ask | {"max_new_tokens": count} for count in range(30, 42)]
    assert answers(served, asks, True, late) == [whole[:count] for count in range(30, 42)]
    assert accepted(served) > before + 100
    for place in range(30, 42):
        text = task.tokenizer.decode(whole[:place])
        stopped = answers(served, [{**ask, "ignore_eos": False, "stop": [text[-5:]]}], True, late)
        assert stopped == answers(served, [{**ask, "ignore_eos": False, "stop": [text[-5:]]}], False), place


@pytest.mark.parametrize("late", [False, True], ids=["at once", "a step late"])
def test_cancelled_rows_leave_and_the_others_go_on(served: Served, late: bool) -> None:
    asks = [{"text": COPIED[number:], "max_new_tokens": 50, "ignore_eos": True} for number in range(6)]
    plain = answers(served, asks, False)
    steps = 0

    def cancel(scheduler: Scheduler, rows: dict[int, Row]) -> None:
        nonlocal steps
        steps += 1
        if steps in (4, 6, 8):
            rows[steps // 2].cancelled.set()

    found = answers(served, asks, True, late, between=cancel)
    for number, (one, other) in enumerate(zip(found, plain, strict=True)):
        assert one == other[: len(one)]
        assert (len(one) < 50) == (number in (2, 3, 4)), number


def test_a_streams_events_are_well_formed(served: Served) -> None:
    ask = {"text": COPIED, "max_new_tokens": 40, "ignore_eos": True, "return_details": True}
    events: list[Any] = []
    task: Any = served.service.task
    decoder = Decoder(served.service.loaded.model, SLOTS, 128, drafts=True)
    scheduler, done = Scheduler(task, decoder, decoder.capacity), {}
    row = row_of(served, **ask)
    row.emit = events.append
    scheduler.add(row, partial(done.__setitem__, 0))
    while scheduler.active:
        scheduler.step()
    [whole] = answers(served, [ask], False)
    assert done[0][0] == whole
    assert "".join(event["token"]["text"] for event in events) == task.text(whole, row.parameters)
    assert [entry["id"] for event in events for entry in event["details"]["tokens"]] == whole


def test_a_prefix_that_drafts_wrote_is_reused(served: Served) -> None:
    task: Any = served.service.task
    decoder = Decoder(served.service.loaded.model, SLOTS, 128, tokens=7 * BLOCK, drafts=True)
    scheduler = Scheduler(task, decoder, decoder.capacity)
    ask: Ask = {"text": COPIED, "ignore_eos": True}
    first = row_of(served, **ask, max_new_tokens=60)
    done: dict[int, Any] = {}
    scheduler.add(first, partial(done.__setitem__, 0))
    while scheduler.active:
        scheduler.step()
    [whole] = answers(served, [ask | {"max_new_tokens": 60}], False)
    again = row_of(served, **ask, max_new_tokens=20)
    again.features["input_ids"] = [*first.features["input_ids"], *whole[:40]]
    scheduler.add(again, partial(done.__setitem__, 1))
    while scheduler.active:
        scheduler.step()
    assert again.cached > first.tokens + 30
    assert (done[0][0], done[1][0]) == (whole, whole[40:])


# -- the parts ---------------------------------------------------------------------------------------------------------


def test_a_draft_is_kept_as_far_as_it_is_picked() -> None:
    fed = [(4, [7, 1, 2, 3]), (0, [9]), (2, [5, 6])]
    assert kept(fed, [1, 2, 8, 4, 11, 5, 6]) == [[1, 2, 8], [11], [5]]
    assert kept(fed, [1, 2, 3, 4, 11, 6, 0]) == [[1, 2, 3, 4], [11], [6, 0]]


def test_lengths_are_told_once_drafts_are_read(served: Served) -> None:
    decoder = Decoder(served.service.loaded.model, 3, 128)
    for slot in range(2):
        decoder.open(slot, SamplingParams())
        decoder.prefill(slot, [5, 6, 7])
    tokens = decoder.sample([0, 1]).tokens()
    plain = [[token] for token in tokens]
    for _ in range(4):
        for own, token in zip(plain, decoder.step([0, 1]).tokens(), strict=True):
            own.append(token)
    for slot in range(2):
        decoder.release(slot)
        decoder.open(slot, SamplingParams())
        decoder.prefill(slot, [5, 6, 7])
    decoder.sample([0, 1])
    runs = decoder.speculate([(0, plain[0][:3]), (1, [plain[1][0], 0, 0])])
    assert decoder.lengths == [4, 4, 0]
    assert runs.runs()[0] == plain[0][1:4]
    decoder.release(1)  # before it is known how far it has come
    decoder.open(1, SamplingParams())
    assert decoder.step([0]).tokens() == plain[0][4:5]
    assert decoder.lengths == [7, 0, 0]


def test_lookup_foretells_what_followed_and_measures_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scoring.generation.prompt_lookup._LEAST", 2)
    lookup = PromptLookup([1, 2, 3, 4, 5, 9, 8])
    assert lookup.draft(9) == []
    lookup.push([2, 3])
    assert (lookup.matched, lookup.draft(4), lookup.draft(1)) == (2, [4, 5, 9, 8], [4])
    rate = lookup.rate
    lookup.push([4, 5])
    assert lookup.rate > rate
    assert lookup.draft(4) == [9, 8, 2, 3]
    assert lookup.idle == 0
    lookup.push([7, 6])
    assert (lookup.draft(9), lookup.idle) == ([], 1)
    assert lookup.last == 6
    loop = PromptLookup([3, 1, 2, 1, 2, 1, 2])
    assert loop.draft(4) == [1, 2, 1, 2]
    assert loop.draft(5) == [1, 2, 1, 2, 1]
    assert PromptLookup([]).draft(3) == PromptLookup([4]).draft(3) == []


def test_lookup_takes_many_tokens_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scoring.generation.prompt_lookup._LEAST", 2)
    rng = random.Random(0)
    tokens = [rng.randrange(6) for _ in range(400)]
    whole, grown = PromptLookup(tokens), PromptLookup(tokens[:100])
    grown.push(tokens[100:])
    assert (whole.count, whole.matched, whole.draft(8)) == (grown.count, grown.matched, grown.draft(8))
    matched = next(n for n in range(1, 17) if not any(tokens[i - n : i] == tokens[-n:] for i in range(n, 400))) - 1
    assert whole.matched == matched
    source = max(i for i in range(matched, 400) if tokens[i - matched : i] == tokens[-matched:])
    assert whole.draft(1) == [tokens[source]]
