"""A word at a start about the number of processes, where another number serves many clients better."""

from local_runner.front_ends.number import STREAMING

#: Cores with which it was measured (docs/performance.md).
_CORES = 2


def hint(task: str, cores: int, gpu: bool) -> str:
    """Sentence for who serves a text generator in one process; empty where nothing is known to be better."""
    if gpu or cores != _CORES or task not in STREAMING:
        return ""
    return (
        "note: many clients of a small model get two fifths more tokens from two processes (--replicas 2), which take "
        "twice the memory; one client gets none more."
    )
