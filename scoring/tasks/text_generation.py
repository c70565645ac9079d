"""text-generation: a decoder continues a prompt."""

from collections.abc import Sequence
from typing import Any

from scoring.engine.row import Row
from scoring.generation.settings import Bound
from scoring.schema.requests import TextGenerationParameters
from scoring.schema.structured import constraint_of
from scoring.strict_json.body import text_bytes
from scoring.tasks.generation import Generative, Tokens
from scoring.tasks.generation_parameters import last_of

_MESSAGE_BYTES = 40  # of a message's JSON beside its content


class TextGeneration(Generative):
    """Continues a text; the answer's shape is the pipeline's."""

    name = "text-generation"
    auto_class = "AutoModelForCausalLM"

    def repeated_bytes(self, value: str, parameters: TextGenerationParameters) -> int:
        return text_bytes(value) if parameters.return_full_text else 0

    def encode(self, value: str, parameters: TextGenerationParameters, item: int) -> list[Row]:
        tokens = last_of(self.call_tokenizer.ids(value), parameters)
        return self.generation_rows(tokens, parameters, item, Bound(constraint_of(parameters)))

    def decode(
        self,
        value: str,
        parameters: TextGenerationParameters,
        rows: Sequence[Row],
        outputs: Sequence[list[Tokens]],
    ) -> list[dict[str, Any]]:
        prompt = value if parameters.return_full_text else ""
        entries = [{"generated_text": prompt + text} for text in self.texts(rows, outputs)]
        return self.detailed(entries, rows, outputs)

    def plain_text(self, entry: dict[str, Any]) -> str:
        return str(entry["generated_text"])
