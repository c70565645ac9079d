"""Prompts of a CPU's step in two halves at once, a thread each, which meet once instead of after each operation.

Several short prompts are many small operations, which two threads share badly. Where there are more threads, or one
prompt alone, all of them share each operation: halves were measured with two (docs/performance.md).
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from threading import Barrier

import torch
from torch import Tensor

Part = tuple[int, int, int]  # slot, start position, number of tokens
_THREADS = 2
_LEAST = 32  # tokens that are worth two threads' start
_LARGER = 0.7  # of the tokens, at most, in the larger half: one thread needs two thirds to three quarters of two's time


def halves_of(counts: Sequence[int]) -> tuple[list[int], list[int]] | None:
    """Numbers of the parts of each half, which have nearly as many tokens; None where halves are not worth it."""
    halves: tuple[list[int], list[int]] = [], []
    tokens = [0, 0]
    for number in sorted(range(len(counts)), key=lambda each: -counts[each]):
        lighter = tokens.index(min(tokens))
        halves[lighter].append(number)
        tokens[lighter] += counts[number]
    return halves if sum(tokens) >= _LEAST and max(tokens) <= _LARGER * sum(tokens) else None


class PromptHalves:
    """Two threads of one of torch's threads each, started with the first prompts that they halve."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None

    def run(
        self, parts: Sequence[Part], tokens: Tensor, forward: Callable[[Sequence[Part], Tensor], Tensor]
    ) -> Tensor | None:
        """Rows of `forward` for each part [parts, ...], computed in halves; None where they are not worth it."""
        counts = [count for _, _, count in parts]
        halves = halves_of(counts) if torch.get_num_threads() == _THREADS else None
        if halves is None:
            return None
        pool = self._pool = self._pool or _started()
        pieces = torch.split(tokens, counts)
        begun = [
            pool.submit(_inferred, forward, [parts[each] for each in half], torch.cat([pieces[each] for each in half]))
            for half in halves
        ]
        wait(begun)  # both: none may write into the cache later
        found = torch.cat([each.result() for each in begun])
        order = torch.tensor([*halves[0], *halves[1]]).argsort()
        return found[order]


def _inferred(forward: Callable[[Sequence[Part], Tensor], Tensor], parts: Sequence[Part], tokens: Tensor) -> Tensor:
    with torch.inference_mode():  # which a thread has for itself
        return forward(parts, tokens)


def _started() -> ThreadPoolExecutor:
    """A pool whose threads run torch's operations by themselves; the caller's keeps all of torch's."""
    threads, both = torch.get_num_threads(), Barrier(_THREADS)
    pool = ThreadPoolExecutor(_THREADS, "prompts", _alone)
    wait([pool.submit(both.wait) for _ in range(_THREADS)])
    torch.set_num_threads(threads)  # threads set the number for those that start later too
    return pool


def _alone() -> None:
    torch.set_num_threads(1)
    torch.get_num_threads()  # a thread that has never asked takes over what others set later
