"""Base of every pass: it decides from facts, changes a model in place, and verifies that the answers are the same."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from scoring.model.loaded import Runtime

#: Largest relative error against plain transformers in fp32 that is served.
TOLERANCE = 5e-3
#: Multiple of the plain 16-bit model's own error that another order of the same sums may cost.
OWN_ERRORS = 1.25

#: Least speed-up of a pass that is timed against what it replaces; a smaller one is noise.
GAIN = 1.03

#: Largest relative error of each format against float32: its rounding over a dozen layers. int8's is a cosine of 0.99,
#: on random tokens; `scoring.encoder.real_text` judges it by text besides.
BOUNDS = {"float32": 1e-4, "bfloat16": 2e-2, "int8": 1.4e-1}

FP8_CAPABILITY = (8, 9)  # from which on GPUs convert to and from FP8

LATENCY, COST = "latency", "cost"


@dataclass(frozen=True)
class Hardware:
    """Hardware on which the model runs, or would: `capability` is (0, 0) on a CPU, `memory_bytes` is one device's."""

    device: str  # "cuda" or "cpu"
    name: str
    capability: tuple[int, int]
    memory_bytes: int
    gpus: int
    nvcc: bool

    @classmethod
    def here(cls) -> "Hardware":
        """The hardware of this machine."""
        import os
        import shutil

        import torch

        home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
        nvcc = shutil.which("nvcc") is not None or os.access(os.path.join(home, "bin", "nvcc"), os.X_OK)  # noqa: PTH118
        if not torch.cuda.is_available():
            return cls("cpu", "cpu", (0, 0), 0, 0, nvcc)
        card = torch.cuda.get_device_properties(0)
        return cls("cuda", card.name, (card.major, card.minor), card.total_memory, torch.cuda.device_count(), nvcc)


@dataclass(frozen=True)
class Facts:
    """Facts of a model that need no weights; `kind` is encoder, decoder or encoder-decoder."""

    family: str  # transformers' model_type
    architecture: str
    kind: str
    parameters: int
    weight_bytes: int
    layers: int
    heads: int
    kv_heads: int
    hidden_size: int
    adapters: int = 0  # served beside the model
    shipped: str = ""  # "int8" if the products' weights are quantised in the model's folder
    head_width: int = 0  # numbers of the widest head, where it is said; 0: heads divide the hidden size

    @property
    def head_dim(self) -> int:
        """Numbers of the widest head."""
        return self.head_width or (self.hidden_size // self.heads if self.heads else 0)


@dataclass(frozen=True)
class Applicability:
    """Decision to take a pass or not, and the sentence that says why."""

    take: bool
    reason: str


@dataclass(frozen=True)
class Applied:
    """Result of a pass: the number of modules replaced, and an undo that restores the plain model."""

    count: int
    detail: str
    undo: Callable[[], None]
    made: Runtime = field(default_factory=Runtime)  # objects that tasks use once the pass is verified


class PassRefused(Exception):
    """Refusal of a pass for something in the loaded model that `applies` could not see; the model is unchanged."""


class Pass(ABC):
    """One optimisation."""

    name: ClassVar[str]
    public: ClassVar[bool] = False  # one of DeepSpeed's own open passes, or torch's own
    tolerance: ClassVar[float] = TOLERANCE
    supersedes: ClassVar[tuple[str, ...]] = ()  # passes over the same layers that this one makes pointless
    timed: ClassVar[bool] = False  # chosen by seconds of timing, which a few requests do not repay
    serves_adapters: ClassVar[bool] = False  # rows with adapters run through what it makes as well
    places: ClassVar[bool] = False  # moves the weights to the devices itself: they are loaded into host memory

    def repays(self, facts: Facts, hardware: Hardware) -> bool:
        """Return True if even a process that answers few requests takes it."""
        return not self.timed

    @abstractmethod
    def applies(self, facts: Facts, hardware: Hardware, objective: str) -> Applicability:
        """Decide from facts alone, for hardware that need not be here; objective is "latency" or "cost"."""

    @abstractmethod
    def apply(self, model: Any) -> Applied:
        """Change the model in place; raises PassRefused, with the model unchanged, if it cannot."""

    @abstractmethod
    def verify(self, model: Any, reference: Callable[..., Any]) -> float:
        """Relative error of the changed model against plain transformers' answers; NaN is a failure."""

    def another(self) -> bool:
        """Change to another way to do the same, where the one that was applied was dropped; False without one."""
        return False

    def warm(self, model: Any) -> None:
        """Do work ahead of the first request that it would otherwise wait for; called once all passes are verified."""
        return

    def bound(self, reference: Callable[..., Any]) -> float:
        """The largest error that is served, given plain transformers' answers."""
        return self.tolerance

    def own_bound(self, reference: Callable[..., Any]) -> float:
        """Error bound for passes that compute the same decoder, unquantized.

        At 7 B, 16 bits alone cost plain transformers more than the tolerance: then its own error is the measure.
        """
        return max(self.tolerance, OWN_ERRORS * float(getattr(reference(), "own_error", 0.0)))
