"""What a device that is out of memory means for a request: a smaller batch first, then a 413 or a 503 of its own."""

import logging

import torch

from scoring.errors import DeviceFull, MiiAzureError, PayloadTooLarge

logger = logging.getLogger("mii_azure.oom")

_SAID = ("out of memory", "can't allocate memory", "not enough memory")  # by a CPU's allocator, and by libraries


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error says that memory was short."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        said in str(error).lower() for said in _SAID if isinstance(error, RuntimeError)
    )


def free_memory(error: BaseException) -> None:
    """Free what a failed call left: what the frames of its traceback hold, and what torch keeps of a GPU's memory."""
    error.__traceback__ = None
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call,unused-ignore]
        torch.cuda.empty_cache()


class LargestServed:
    """The largest row that was served; tells one that does not fit from one that would, at another time."""

    def __init__(self, unit: str = "tokens") -> None:
        self._unit = unit
        self._served = 0

    def note(self, footprint: int) -> None:
        """A row of this many tokens has been served."""
        self._served = max(self._served, footprint)

    def refusal(self, footprint: int) -> MiiAzureError:
        """Why a row of this many tokens, which ran out of memory by itself, is not answered."""
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
