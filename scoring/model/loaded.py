"""A loaded model, and the objects that passes made beside it."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from scoring.lora.served import ServedAdapters

if TYPE_CHECKING:
    import torch

    from scoring.decoder.decoder import Decoder
    from scoring.lora.bank import AdapterBank
    from scoring.sentence.head import Head
    from scoring.sentence.ranker import Ranker
    from scoring.tensor_parallel.workers import Workers


@dataclass
class Runtime:
    """Objects that passes made beside the model, for tasks and hosts; a false value means that no pass made one."""

    decoder: "Decoder | None" = None  # generates text on slots
    ranks: "Workers | None" = None  # the other processes of a sliced model
    precision: str = ""  # of the products, if it differs from that of the weights
    zero_engine: Any = None  # DeepSpeed's engine, which has to live as long as the model
    host_inputs: bool = False  # the forward copies its inputs from host memory itself, faster than the caller would

    def become(self, parts: "Iterable[Runtime]") -> None:
        """Replace the contents by those that these passes made; later passes take precedence."""
        vars(self).update(vars(Runtime()))
        for made in parts:
            vars(self).update({name: value for name, value in vars(made).items() if value})


@dataclass(frozen=True)
class Loaded:
    """A model ready to serve, with the facts that tasks need."""

    model: Any  # transformers.PreTrainedModel, eval mode
    tokenizer: Any  # transformers.PreTrainedTokenizerBase
    device: "torch.device"
    context_length: int  # tokens, special ones included
    options: dict[str, Any]  # the deployment's task options
    head: "Head | None" = None  # of a sentence-transformers folder, for tasks that embed
    extractor: Any = None  # transformers' feature extractor, for tasks that hear
    ranker: "Ranker | None" = None  # what the folder says of its scores, for tasks that rank
    runtime: Runtime = field(default_factory=Runtime)
    served: ServedAdapters = field(default_factory=ServedAdapters)  # adapters beside the model, by name
    adapters: "AdapterBank | None" = None  # the same, loaded

    @property
    def precision(self) -> str:
        """The number format of the model's products, e.g. bfloat16."""
        return self.runtime.precision or str(self.model.dtype).removeprefix("torch.")
