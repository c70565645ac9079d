"""Launches of a GPU's steps and chunks that can be enqueued again, by size."""

from dataclasses import dataclass, field
from typing import Protocol


class Launches(Protocol):
    """Launches that can be enqueued again."""

    def replay(self) -> None:
        """Enqueue them."""


@dataclass
class Graphs:
    """Graphs by size: rows of a step, with long rows in `far`, tokens of a chunk, rows of a step with drafts.

    `unpicked`: steps without their sampling, also by whether they are far. `spanned`: by most tokens of a chunk that is
    one part, and keys in spans before it.
    """

    near: dict[int, Launches] = field(default_factory=dict)
    far: dict[int, Launches] = field(default_factory=dict)
    unpicked: dict[tuple[int, bool], Launches] = field(default_factory=dict)
    prompts: dict[int, Launches] = field(default_factory=dict)
    drafts: dict[int, Launches] = field(default_factory=dict)
    spanned: dict[tuple[int, int], Launches] = field(default_factory=dict)

    def step(self, size: int, far: bool, picked: bool) -> Launches | None:
        """Return the graph of a step, if there is one yet."""
        return (self.far if far else self.near).get(size) if picked else self.unpicked.get((size, far))

    def keep(self, graph: Launches, size: int, far: bool, picked: bool) -> Launches:
        """Keep the graph of a step."""
        if picked:
            (self.far if far else self.near)[size] = graph
        else:
            self.unpicked[size, far] = graph
        return graph


def batch_sizes(slots: int) -> list[int]:
    """Batch sizes that get a graph: powers of two below the number of slots, and that number."""
    sizes = [1]
    while sizes[-1] * 2 < slots:
        sizes.append(sizes[-1] * 2)
    return sizes if sizes[-1] == slots else [*sizes, slots]
