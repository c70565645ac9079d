"""What every pass is: it decides on paper, changes a model in place, and proves that the model still answers alike."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from scoring.model.loaded import Runtime

#: Largest relative error against plain transformers in fp32 that is served.
TOLERANCE = 5e-3
#: Of the plain 16-bit model's own error: what another order of the same sums may cost.
OWN_ERRORS = 1.25

#: How many times as fast a pass that is timed against what it replaces has to be; less is noise.
GAIN = 1.03

#: Largest relative error against float32 of each format: what its digits lose in a dozen layers.
BOUNDS = {"float32": 1e-4, "bfloat16": 2e-2, "int8": 5e-2}

LATENCY, COST = "latency", "cost"


@dataclass(frozen=True)
class Hardware:
    """Where the model runs, or would run: `capability` is (0, 0) on a CPU, `memory_bytes` is one device's."""

    device: str  # "cuda" or "cpu"
    name: str
    capability: tuple[int, int]
    memory_bytes: int
    gpus: int
    nvcc: bool

    @classmethod
    def here(cls) -> "Hardware":
        """This machine."""
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
    """What a pass may know of a model without its weights; `kind` is encoder, decoder or encoder-decoder."""

    family: str  # transformers' model_type
    architecture: str
    kind: str
    parameters: int
    weight_bytes: int
    layers: int
    heads: int
    kv_heads: int
    hidden_size: int
    shipped: str = ""  # "int8" where the products' weights come quantised in the model's folder

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.heads if self.heads else 0


@dataclass(frozen=True)
class Applicability:
    """Whether a pass is taken, and the sentence that says why."""

    take: bool
    reason: str


@dataclass(frozen=True)
class Applied:
    """What a pass did: how many modules it replaced, and how to have the plain model back."""

    count: int
    detail: str
    undo: Callable[[], None]
    made: Runtime = field(default_factory=Runtime)  # beside the model: what tasks use once the pass is verified


class PassRefused(Exception):
    """A pass met something in the loaded model that `applies` could not see; the model is unchanged."""


class Pass(ABC):
    """One optimisation."""

    name: ClassVar[str]
    public: ClassVar[bool] = False  # one of DeepSpeed's own open passes, or torch's own
    tolerance: ClassVar[float] = TOLERANCE
    supersedes: ClassVar[tuple[str, ...]] = ()  # passes over the same layers, which this one makes pointless
    places: ClassVar[bool] = False  # brings the weights to the devices itself: they are loaded into host memory

    @abstractmethod
    def applies(self, facts: Facts, hardware: Hardware, objective: str) -> Applicability:
        """Decide from facts alone, for hardware that need not be here; objective is "latency" or "cost"."""

    @abstractmethod
    def apply(self, model: Any) -> Applied:
        """Change the model in place; raises PassRefused, with the model unchanged, where it cannot."""

    @abstractmethod
    def verify(self, model: Any, reference: Callable[..., Any]) -> float:
        """Relative error of the changed model against what plain transformers answers; NaN is a failure."""

    def warm(self, model: Any) -> None:
        """Do ahead of the first request what it would otherwise pay for; called once all passes are verified."""
        return

    def bound(self, reference: Callable[..., Any]) -> float:
        """The largest error that is served, given what plain transformers answers."""
        return self.tolerance

    def own_bound(self, reference: Callable[..., Any]) -> float:
        """A bound for passes that compute a decoder as it is.

        At 7 B, 16 bits alone cost plain transformers more than the tolerance: then that is the measure.
        """
        return max(self.tolerance, OWN_ERRORS * float(getattr(reference(), "own_error", 0.0)))
