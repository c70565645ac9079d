"""Memory that a container leaves to a model, beyond which the kernel ends the process half-way, without a word."""

from collections.abc import Callable

from scoring.errors import OutOfMemory
from scoring.limits.control_groups import held, memory_limit
from scoring.limits.memory_shares import LOADED


def refuse_beyond_limit(size: Callable[[], int], dtype: str) -> None:
    """Raise OutOfMemory if the weights' size in bytes, beside what is held, is more than the control groups allow."""
    limit, before = memory_limit(), held()
    if limit is not None and (needed := size()) + before > limit:
        raise OutOfMemory(
            f"The weights take {needed / 1e9:.2f} GB as {dtype}, and libraries {before / 1e9:.2f} GB; "
            f"the container may use {limit / 1e9:.2f} GB.",
            f"Give it {(LOADED * needed + before) / 1e9:.1f} GB or more.",
        )


def too_small(size: int, dtype: str) -> OutOfMemory:
    """Error for weights of a size in bytes of which the machine, or a limit of this process, had too little memory."""
    return OutOfMemory(
        f"The weights take {size / 1e9:.2f} GB as {dtype}, and memory ran out while they were loaded.",
        f"Give it {LOADED * size / 1e9:.1f} GB or more; a limit on the process (ulimit -v) counts libraries too.",
    )
