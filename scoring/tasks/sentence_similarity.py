"""sentence-similarity: likeness of sentences to a source sentence, by the vectors that the model's folder makes."""

from collections.abc import Sequence
from typing import Any

import torch

from scoring.config import Limits
from scoring.engine.row import Row
from scoring.schema.requests import EmbeddingParameters
from scoring.strict_json.body import NUMBER_BYTES
from scoring.tasks.base import placed
from scoring.tasks.embeddings import Embeddings
from scoring.tasks.vector_forms import DOCUMENT, QUERY


class SentenceSimilarity(Embeddings):
    """One cosine per sentence, in the sentences' order; products of sparse vectors, and best ones of tokens'."""

    name = "sentence-similarity"
    smaller = "Send fewer sentences at once."

    def encode(self, value: Any, parameters: Any, item: int) -> list[Row]:
        own = parameters.model_dump(exclude_unset=True)
        if self.form:
            sides = [EmbeddingParameters(**{**own, "input_type": side}) for side in (QUERY, DOCUMENT)]
        else:
            sides = [EmbeddingParameters(**own, normalize=True)] * 2
        places = [".source_sentence", *(f".sentences[{number}]" for number in range(len(value.sentences)))]
        rows: list[Row] = []
        for place, text in zip(places, [value.source_sentence, *value.sentences], strict=True):
            with placed(f"inputs[{item}]", place):
                rows += super().encode(text, sides[bool(rows)], item)
        return rows

    def most_rows(self, limits: Limits) -> int:
        return 2 * super().most_rows(limits)  # each sentence may have a source of its own

    def answer_bytes(self, value: Any, parameters: Any, rows: Sequence[Row]) -> int:
        return NUMBER_BYTES * len(value.sentences)

    def output_bytes(self, row: Row, output: Any) -> int:
        return 0  # no vector is in the answer

    def decode(self, value: Any, parameters: Any, rows: Sequence[Row], outputs: Sequence[Any]) -> Any:
        source, *others = outputs
        if self.form:
            return self.form.compare(source, others)
        return (torch.stack(others) @ source).tolist()
