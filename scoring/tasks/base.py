"""What every task is: encode on the caller's thread, forward on the inference thread, decode on the caller's."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from scoring.config import Limits
from scoring.errors import InvalidInput, LoadError, PromptTooLong
from scoring.loaded import Loaded
from scoring.rows import Between, Row, Slots, nothing
from scoring.schemas import Strict, TaskSchema
from scoring.statistics import Statistics
from scoring.tasks import task_schema
from scoring.tokenizing import Tokenizing


class Task(ABC):
    """One task over one loaded model."""

    unit: ClassVar[str] = "tokens"  # of a row's footprint
    smaller: ClassVar[str] = "Send fewer inputs at once."  # what makes a reply smaller
    name: ClassVar[str]
    auto_class: ClassVar[str]  # of transformers

    def __init__(self, loaded: Loaded, name: str) -> None:
        self.loaded = loaded
        self.model = loaded.model
        self.tokenizer = loaded.tokenizer
        self.schema: TaskSchema = task_schema(name)
        self.statistics = Statistics()  # the engine counts here too
        #: Tokenises one text or a pair into a BatchEncoding, within bounds.
        self.call_tokenizer = Tokenizing(self.tokenizer, loaded.context_length)

    @abstractmethod
    def encode(self, value: Any, parameters: Any, item: int) -> list[Row]:
        """Tokenise one checked input into one row or several."""

    @abstractmethod
    def forward(self, rows: Sequence[Row], between: Between = nothing) -> list[Any]:
        """Run the model over rows with equal keys; one output per row, on the CPU. Inference thread only.

        A forward of several steps calls `between` after each.
        """

    def slots(self, limits: Limits) -> Slots | None:
        """What runs rows with the key SLOTS, where there is such a thing."""
        return None

    @abstractmethod
    def decode(self, value: Any, parameters: Any, rows: Sequence[Row], outputs: Sequence[Any]) -> Any:
        """Turn the outputs of one input's rows into the answer, in the Hugging Face pipeline's shape for one input."""

    def collect(self, answers: list[Any], single: bool, parameters: Strict) -> Any:
        """The canonical answer of a request: one answer, or the list of them."""
        return answers[0] if single else answers

    def plain(self, answer: Any) -> Any:
        """One answer as Azure ML's own model images give it: bare text where there is one."""
        return answer

    def table(self, answers: list[Any]) -> list[Any]:
        """A request's answers as Azure ML's own model images list them."""
        return [self.plain(answer) for answer in answers]

    def answer_bytes(self, value: Any, parameters: Any, rows: Sequence[Row]) -> int:
        """Most bytes that the answer to one encoded input takes of a reply."""
        return 0

    def most_bytes(self, limits: Limits) -> int:
        """Most bytes that a reply may take; a request whose answers may take more is refused before it runs."""
        return limits.max_answer_bytes

    def warm_up(self) -> None:
        """Run the sample once, so that the first request does not pay for lazy initialisation."""
        sample = self.schema.sample
        value = sample["inputs"]
        if isinstance(value, list) and self.schema.name != "conversational":
            value = value[0]
        parameters = self.schema.parse_parameters(sample.get("parameters", {}))
        self.forward(self.encode(self.schema.parse_input(value, ""), parameters, 0))

    def check_length(self, length: int, item: int, remedy: str) -> None:
        """Raise PromptTooLong when a row has more tokens than the model's context."""
        if length > self.loaded.context_length:
            raise PromptTooLong(
                f"The text has {length} tokens; the model takes {self.loaded.context_length}.",
                remedy,
                where=f"inputs[{item}]",
            )


class EncoderTask(Task):
    """A task whose forward is one pass of an encoder over right-padded rows."""

    def __init__(self, loaded: Loaded, name: str) -> None:
        super().__init__(loaded, name)
        config = loaded.model.config
        accepted = set(inspect.signature(type(loaded.model).forward).parameters)
        if getattr(config, "type_vocab_size", 2) < 2:
            accepted.discard("token_type_ids")  # the one type there is, is the model's own default
        self._inputs = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in accepted]

    def tokenize(self, texts: Sequence[str], truncation: bool, item: int, **options: Any) -> Any:
        """Tokenise one text or a pair into a BatchEncoding; refuse or cut what exceeds the context length."""
        limit = self.loaded.context_length if truncation else None
        encoded = self.call_tokenizer(*texts, truncation=truncation, max_length=limit, **options)
        if not encoded["input_ids"]:
            raise InvalidInput("The tokenizer finds nothing in the text.", "Send visible text.", f"inputs[{item}]")
        if not truncation:
            remedy = 'Shorten it, or set "parameters": {"truncation": true}.'
            self.check_length(len(encoded["input_ids"]), item, remedy)
        return encoded

    def row(self, encoded: Any, item: int, **rest: Any) -> Row:
        """A row of what the model takes of an encoding; some tokenizers give token types to models that have none."""
        return Row({name: encoded[name] for name in self._inputs if name in encoded}, item, **rest)

    def forward(self, rows: Sequence[Row], between: Between = nothing) -> list[Any]:
        with torch.inference_mode():
            output = self.model(**self.pad(rows))
            return self.split(output, rows)

    @abstractmethod
    def split(self, output: Any, rows: Sequence[Row]) -> list[Any]:
        """Cut the model's output into one float32 CPU tensor (or tuple) per row, padding removed."""

    def pad(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """Right-pad rows into model inputs, each [B, S] int64."""
        longest = max(row.tokens for row in rows)
        fill = {
            "input_ids": self.tokenizer.pad_token_id or 0,  # any id does where there is none: it is masked
            "attention_mask": 0,
            "token_type_ids": int(getattr(self.tokenizer, "pad_token_type_id", 0) or 0),
        }
        device = "cpu" if self.loaded.runtime.host_inputs else self.loaded.device
        batch = {}
        for name in rows[0].features:
            padded = [row.features[name] + [fill[name]] * (longest - row.tokens) for row in rows]
            batch[name] = torch.tensor(padded, device=device)
        return batch

    def require_offsets(self) -> None:
        """Raise LoadError for a tokenizer that cannot say where its tokens lie in the text."""
        if not self.tokenizer.is_fast:
            raise LoadError(
                f"{type(self.tokenizer).__name__} gives no character offsets, which {self.schema.name} needs.",
                "Save the model with a fast tokenizer: the folder then has tokenizer.json.",
            )
