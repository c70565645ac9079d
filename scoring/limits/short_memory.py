"""Errors that say that memory ran out, whoever raised them. Standard library only."""

import errno

#: As torch's allocators, C libraries, and the loader of shared libraries put it.
_SAID = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "failed to map segment from shared object",
)


def says_so(error: BaseException | None) -> bool:
    """Return True if an error says that memory ran out."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return isinstance(error, RuntimeError | OSError | ImportError) and any(said in str(error).lower() for said in _SAID)
