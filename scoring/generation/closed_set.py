"""Text generation for a closed set of rows on a decoder's slots."""

from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Any

from scoring.decoder.decoder import Decoder
from scoring.engine.row import Row
from scoring.generation.scheduler import Scheduler
from scoring.generation.text_generator import TextGenerator


def generate_on_slots(task: TextGenerator, decoder: Decoder, rows: Sequence[Row]) -> list[list[list[int]]]:
    """Generate for a closed set of rows; per row its one answer's tokens, the end token included.

    Raises the error of the first row that failed.
    """
    slots = Scheduler(task, decoder, decoder.capacity)
    outputs: dict[int, Any] = {}
    waiting = deque(enumerate(rows))
    while waiting or slots.active:
        while waiting and slots.fits(waiting[0][1]):
            position, row = waiting.popleft()
            slots.add(row, partial(outputs.__setitem__, position))
        slots.step()
    for output in outputs.values():
        if isinstance(output, Exception):
            raise output
    return [outputs[position] for position in range(len(rows))]
