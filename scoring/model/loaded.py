"""A loaded model, and what passes made beside it."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from scoring.decoder.decoder import Decoder
    from scoring.tensor_parallel.workers import Workers


@dataclass
class Runtime:
    """What passes made beside the model, for tasks and hosts; a value that is false says that no pass did."""

    decoder: "Decoder | None" = None  # generates text on slots
    ranks: "Workers | None" = None  # the other processes of a sliced model
    precision: str = ""  # of the products, where it is not that of the weights
    zero_engine: Any = None  # DeepSpeed's, which has to live as long as the model
    host_inputs: bool = False  # the forward takes its inputs from host memory, which is faster than the caller's copy

    def become(self, parts: "Iterable[Runtime]") -> None:
        """Hold what these passes made, the later before the earlier, and nothing of what was held before."""
        vars(self).update(vars(Runtime()))
        for made in parts:
            vars(self).update({name: value for name, value in vars(made).items() if value})


@dataclass(frozen=True)
class Loaded:
    """A model ready to serve, with what tasks need to know of it."""

    model: Any  # transformers.PreTrainedModel, eval mode
    tokenizer: Any  # transformers.PreTrainedTokenizerBase
    device: "torch.device"
    context_length: int  # tokens, special ones included
    options: dict[str, Any]  # the deployment's task options
    runtime: Runtime = field(default_factory=Runtime)

    @property
    def precision(self) -> str:
        """The number format of the model's products, e.g. bfloat16."""
        return self.runtime.precision or str(self.model.dtype).removeprefix("torch.")
