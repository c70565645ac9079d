"""Handling of out-of-memory errors for a request: first a smaller batch, then a 413 or a 503 for the row alone."""

import logging

import torch

from scoring.errors import DeviceFull, MiiAzureError, PayloadTooLarge
from scoring.limits import short_memory

logger = logging.getLogger("mii_azure.oom")


def is_out_of_memory(error: BaseException | None) -> bool:
    """Return True if an error says that memory ran out."""
    return isinstance(error, torch.OutOfMemoryError) or short_memory.says_so(error)


def free_memory(error: BaseException) -> None:
    """Free the memory of a failed call: objects held by its traceback's frames, and torch's cached GPU memory."""
    error.__traceback__ = None
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call,unused-ignore]
        torch.cuda.empty_cache()


class LargestServed:
    """Largest row served so far; distinguishes a row that never fits from one that would fit at another time."""

    def __init__(self, unit: str = "tokens") -> None:
        self._unit = unit
        self._served = 0

    def note(self, footprint: int) -> None:
        """Record that a row of this many tokens has been served."""
        self._served = max(self._served, footprint)

    def refusal(self, footprint: int) -> MiiAzureError:
        """Error for a row of this many tokens that ran out of memory by itself."""
        logger.warning("a row of %d %s ran out of the device's memory", footprint, self._unit)
        if footprint <= self._served:
            return DeviceFull("The device has no memory for the request just now.", "Send it again in a second.")
        served = (
            f"requests of up to {self._served:,} {self._unit} have been served"
            if self._served
            else "none has been served yet"
        )
        return PayloadTooLarge(
            f"{footprint:,} {self._unit} do not fit the device's memory; {served}.",
            "Send a shorter input, or ask for less.",
        )
