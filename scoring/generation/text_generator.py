"""What following, describing and scheduling generated text takes of the task that it is for."""

from collections.abc import Sequence
from typing import Any, Protocol

from scoring.telemetry.statistics import Statistics


class TextGenerator(Protocol):
    """A task that generates text."""

    tokenizer: Any
    encoder_decoder: bool
    eos: list[int]  # tokens that end an answer
    statistics: Statistics

    def generation_config(self, settings: Any) -> tuple[Any, int | None]:
        """The model's generation config with a row's settings, not to be changed, and the seed of a sampled row."""

    def text(self, tokens: list[int], stop: Sequence[str]) -> str:
        """The text of generated tokens, without special ones, cut at the first stop text."""
