"""Encoders on CPUs: number format and prepared weights, chosen by timing them on this machine."""

import os
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from scoring.passes.base import BOUNDS, Applicability, Applied, Facts, Hardware, Pass, PassRefused
from scoring.passes.families import CPU_STACK

#: Number format that another host on this machine runs in, in the environment of one that is compared with it.
FORMAT = "MII_AZURE_NUMBER_FORMAT"


class Cpu(Pass):
    """Runs an encoder without padding in the fastest of its number formats, or not at all where none is faster."""

    name: ClassVar[str] = "cpu"
    timed: ClassVar[bool] = True
    tolerance: ClassVar[float] = BOUNDS["int8"]  # each format's own, finer bound is kept by `apply`

    def __init__(
        self,
        precisions: Sequence[str] = ("int8", "bfloat16", "float32"),
        shapes: Sequence[tuple[int, int]] = ((1, 32), (1, 128), (4, 128)),
        seconds: float = 4.0,
    ) -> None:
        self.precisions = tuple(precisions)
        self._shapes = tuple(shapes)
        self._seconds = seconds

    def applies(self, facts: Facts, hardware: Hardware, objective: str) -> Applicability:
        if hardware.device != "cpu":
            return Applicability(False, "the model runs on a GPU")
        if facts.kind != "encoder":
            return Applicability(False, "it covers encoders")
        formats = ", ".join(self.precisions)
        means = ", run by OpenVINO where it is installed" if facts.family in CPU_STACK else ""
        return Applicability(True, f"{formats} are timed at start{means}; the fastest is kept if it beats eager")

    def apply(self, model: Any) -> Applied:
        """Apply the format that the environment names, or the fastest one.

        Raises PassRefused, with the times, if none is faster than plain transformers.
        """
        import torch

        from scoring.encoder.cpu_autotune import keep, keep_fastest

        if model.dtype != torch.float32:
            raise PassRefused(f"the weights are {str(model.dtype)[6:]} already; it starts from float32")
        if (told := os.environ.get(FORMAT)) in self.precisions:
            return keep(model, told)
        return keep_fastest(model, self.precisions, self._shapes, self._seconds)

    def verify(self, model: Any, reference: Callable[..., Any]) -> float:
        from scoring.encoder.verify import verify_encoder

        return verify_encoder(model, reference)
