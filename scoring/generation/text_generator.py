"""Interface of a text-generating task to streaming, token details and the scheduler."""

from typing import Any, Protocol

from scoring.generation.grammars import Grammars
from scoring.generation.settings import ModelStops
from scoring.telemetry.statistics import Statistics


class TextGenerator(Protocol):
    """A task that generates text."""

    tokenizer: Any
    encoder_decoder: bool
    eos: list[int]  # tokens that end an answer
    stops: ModelStops | None  # texts of the model's own that end one
    grammars: Grammars
    statistics: Statistics

    def generation_config(self, settings: Any) -> tuple[Any, int | None]:
        """The model's generation config with a row's settings (read-only), and the seed of a sampled row."""

    def text(self, tokens: list[int], settings: Any) -> str:
        """The text of generated tokens, without special ones, cut at the first stop text."""
