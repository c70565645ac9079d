"""sentence-similarity: cosines of sentences with a source sentence, of the vectors that the model's folder makes."""

from collections.abc import Sequence
from typing import Any

import torch

from scoring.engine.row import Row
from scoring.schema.requests import EmbeddingParameters
from scoring.strict_json.body import NUMBER_BYTES
from scoring.tasks.base import placed
from scoring.tasks.embeddings import Embeddings


class SentenceSimilarity(Embeddings):
    """One cosine per sentence, in the sentences' order."""

    name = "sentence-similarity"
    smaller = "Send fewer sentences at once."

    def encode(self, value: Any, parameters: Any, item: int) -> list[Row]:
        asked = EmbeddingParameters(**parameters.model_dump(), normalize=True)
        places = [".source_sentence", *(f".sentences[{number}]" for number in range(len(value.sentences)))]
        rows = []
        for place, text in zip(places, [value.source_sentence, *value.sentences], strict=True):
            with placed(f"inputs[{item}]", place):
                rows += super().encode(text, asked, item)
        return rows

    def answer_bytes(self, value: Any, parameters: Any, rows: Sequence[Row]) -> int:
        return NUMBER_BYTES * len(value.sentences)

    def decode(self, value: Any, parameters: Any, rows: Sequence[Row], outputs: Sequence[torch.Tensor]) -> Any:
        source, *others = outputs
        return (torch.stack(others) @ source).tolist()
