"""text-generation: a decoder continues a prompt."""

from collections.abc import Sequence
from typing import Any

from scoring.engine.row import Row
from scoring.generation.settings import Bound
from scoring.schema.requests import TextGenerationParameters
from scoring.schema.structured import constraint_of
from scoring.strict_json.body import text_bytes
from scoring.tasks.generation import Generative, Tokens

_MESSAGE_BYTES = 40  # of a message's JSON beside its content


class TextGeneration(Generative):
    """Continues a text; the answer's shape is the pipeline's."""

    name = "text-generation"
    auto_class = "AutoModelForCausalLM"

    def repeated_bytes(self, value: str | list[int], parameters: TextGenerationParameters) -> int:
        return text_bytes(self._said(value)) if parameters.return_full_text else 0

    def encode(self, value: str | list[int], parameters: TextGenerationParameters, item: int) -> list[Row]:
        if not isinstance(value, str):
            self.check_known(value, item)
        tokens = self.last_of(self.call_tokenizer.ids(value) if isinstance(value, str) else value, parameters)
        return self.generation_rows(tokens, parameters, item, Bound(constraint_of(parameters)))

    def _said(self, value: str | list[int]) -> str:
        """Text of a prompt, which may have come as token ids."""
        return value if isinstance(value, str) else str(self.tokenizer.decode(value, skip_special_tokens=True))

    def decode(
        self,
        value: str | list[int],
        parameters: TextGenerationParameters,
        rows: Sequence[Row],
        outputs: Sequence[list[Tokens]],
    ) -> list[dict[str, Any]]:
        prompt = self._said(value) if parameters.return_full_text else ""
        entries = [{"generated_text": prompt + text} for text in self.texts(rows, outputs)]
        return self.detailed(entries, rows, outputs)

    def plain_text(self, entry: dict[str, Any]) -> str:
        return str(entry["generated_text"])
