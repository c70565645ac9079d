"""Blocks that active rows need: counted once between steps, and always what counting anew gives."""

from functools import partial
from typing import Any

import pytest

from benchmarks.host_side import InstantDecoder
from scoring.decoder.block_pool import BLOCK
from scoring.decoder.block_tables import BlockTables
from scoring.engine.row import Row
from scoring.generation.scheduler import Scheduler
from tests.conftest import Tiny
from tests.scoring.conftest import Served
from tests.scoring.generation.slots import TASK, rows

ROWS = 48


def burst(served: Served) -> list[Row]:
    """Rows whose prompts and answers differ in length, some with one beginning."""
    texts = ["Once upon a time there was a king. " * (1 + number % 2) + "on " * (number // 4) for number in range(ROWS)]
    lengths = [10 + 7 * number % 60 for number in range(ROWS)]
    pairs = zip(texts, lengths, strict=True)
    return [row for text, new in pairs for row in rows(served, text, max_new_tokens=new, ignore_eos=True)]


def scheduler_of(served: Served, blocks: int) -> Scheduler:
    decoder: Any = InstantDecoder(ROWS, range(5, 50), 0.0, 2048)
    task: Any = served.service.task
    return Scheduler(task, decoder, blocks * BLOCK)


@pytest.mark.parametrize("blocks", [6, 400], ids=["few: rows are preempted", "enough"])
def test_what_rows_need_is_always_what_counting_anew_gives(tiny: Tiny, blocks: int) -> None:
    served = Served(tiny("gpt2", TASK), TASK)
    scheduler = scheduler_of(served, blocks)
    budget, waiting, done = scheduler._room, list(enumerate(burst(served))), dict[int, Any]()

    def check() -> None:
        active = [*scheduler._prefilling, *scheduler._decoding]
        assert budget._next in (None, budget._needed(active))
        assert budget._whole in (None, budget._expected(active))

    assert budget.bounded
    while waiting or scheduler.active:
        while waiting and scheduler.fits(waiting[0][1]):
            check()
            number, row = waiting.pop(0)
            scheduler.add(row, partial(done.__setitem__, number))
            check()
        scheduler.step()
        check()
    assert len(done) == ROWS
    assert not [each for each in done.values() if isinstance(each, Exception)]
    assert (served.service.statistics()["preemptions"] > 0) is (blocks < 100)


def test_a_burst_is_admitted_without_a_look_at_every_row_for_each(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    served = Served(tiny("gpt2", TASK), TASK)
    scheduler, looks = scheduler_of(served, 400), [0]
    waiting = burst(served)
    more = BlockTables.more

    def counted(self: BlockTables, *args: int) -> int:
        looks[0] += 1
        return more(self, *args)

    monkeypatch.setattr(BlockTables, "more", counted)
    for row in waiting:
        assert scheduler.fits(row)
        scheduler.add(row, lambda _: None)
    assert len(waiting) == ROWS
    assert looks[0] <= 4 * ROWS
