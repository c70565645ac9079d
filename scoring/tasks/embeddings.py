"""feature-extraction and sentence-embeddings: hidden states of an encoder, pooled or not."""

from collections.abc import Sequence
from typing import Any

import torch

from scoring.engine.row import Row
from scoring.model.loaded import Loaded
from scoring.schema.requests import EmbeddingParameters
from scoring.strict_json.body import NUMBER_BYTES
from scoring.tasks.base import EncoderTask

#: Pooling and normalize unless the deployment sets them.
_DEFAULTS = {"feature-extraction": ("none", False), "sentence-embeddings": ("mean", True)}


class Embeddings(EncoderTask):
    """One vector per text, or with pooling "none" one per token, special tokens included."""

    name = "sentence-embeddings"
    auto_class = "AutoModel"
    smaller = "Send fewer or shorter inputs at once, or have token vectors pooled into one."

    def __init__(self, loaded: Loaded, name: str) -> None:
        super().__init__(loaded, name)
        pooling, normalize = _DEFAULTS[name]
        self._pooling = str(loaded.options.get("pooling", pooling))
        self._normalize = bool(loaded.options.get("normalize", normalize))

    def encode(self, value: str, parameters: EmbeddingParameters, item: int) -> list[Row]:
        encoded = self.tokenize([value], parameters.truncation, item)
        return [self.row(encoded, item, parameters=parameters)]

    def answer_bytes(self, value: str, parameters: EmbeddingParameters, rows: Sequence[Row]) -> int:
        vectors = rows[0].tokens if (parameters.pooling or self._pooling) == "none" else 1
        return vectors * int(self.model.config.hidden_size) * NUMBER_BYTES

    def split(self, output: Any, rows: Sequence[Row]) -> list[torch.Tensor]:
        hidden = output[0].float()  # [B, S, H]
        live = zip(self.live(hidden, rows), rows, strict=True)
        vectors = [self._pool(states, row.parameters) for states, row in live]
        return [vector.cpu() for vector in vectors]

    def _pool(self, states: torch.Tensor, parameters: EmbeddingParameters) -> torch.Tensor:
        """Pool [S, H] to [H], or to [1, S, H] for "none"."""
        pooling = parameters.pooling or self._pooling
        if pooling == "mean":
            vector = states.mean(0)
        elif pooling == "max":
            vector = states.amax(0)
        else:
            vector = states[0] if pooling == "cls" else states[None]
        normalize = self._normalize if parameters.normalize is None else parameters.normalize
        return torch.nn.functional.normalize(vector, dim=-1) if normalize else vector

    def decode(
        self, value: str, parameters: EmbeddingParameters, rows: Sequence[Row], outputs: Sequence[torch.Tensor]
    ) -> list[Any]:
        vector: list[Any] = outputs[0].tolist()
        return vector
