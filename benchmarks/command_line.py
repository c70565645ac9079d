"""Command lines of the benchmarks: their module's text as help, a folder for results, and the GPUs that they need."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"


class Parser(argparse.ArgumentParser):
    """Parser of one benchmark, which ends with a sentence on a machine with fewer GPUs than it needs."""

    def __init__(self, text: str | None, *, gpus: int = 0) -> None:
        super().__init__(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
        self.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER", help="where the JSON goes")
        self._gpus = gpus

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """Arguments as attributes; the process ends with 1 where GPUs are missing."""
        found = super().parse_args(args, namespace)
        if self._gpus:
            import torch

            if (here := torch.cuda.device_count()) < self._gpus:
                self.exit(1, f"{self.prog}: needs {self._gpus} CUDA GPU{'s' * (self._gpus > 1)}; {here} found here\n")
        return found
