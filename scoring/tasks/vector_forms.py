"""Sparse vectors and vectors of each token: how texts become rows, outputs become answers, and two are compared."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoring.engine.row import Row
from scoring.errors import InvalidInput, InvalidParameter, LoadError, PromptTooLong
from scoring.model.loaded import Loaded
from scoring.schema.requests import EmbeddingParameters
from scoring.sentence.head import Head
from scoring.sentence.vectors import Expansion, LateInteraction, Splade
from scoring.strict_json.body import NUMBER_BYTES, text_bytes

QUERY, DOCUMENT = "query", "document"
#: Prompts that a document takes, the first that a model has.
DOCUMENT_PROMPTS = (DOCUMENT, "passage", "corpus")
_KEY_BYTES = 16  # of a weight's key in JSON, a number


class SparseWeights(NamedTuple):
    """Weights above 0 of a sparse vector, on the CPU."""

    tokens: Tensor  # [n] int64
    values: Tensor  # [n] float32


class VectorForm(ABC):
    """A form of vectors beside one list of numbers a text."""

    told: str  # what the model answers, in a phrase
    smaller: str  # remedy for too large an answer

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded

    def role(self, parameters: EmbeddingParameters) -> str | None:
        """Side that a text is on, as far as it matters to this form."""
        return parameters.input_type

    def check(self, parameters: EmbeddingParameters, **refused: Any) -> None:
        """Refuse parameters that this form cannot honour, each given by its name."""
        for name, value in refused.items():
            if value is not None:
                raise InvalidParameter(
                    f"The model answers {self.told}, to which {name} does not apply.",
                    f'Leave out "{name}".',
                    f"parameters.{name}",
                )

    @abstractmethod
    def make(self, output: Tensor, row: Row) -> Any:
        """Vector of a row from its tokens' outputs [S, ...]."""

    @abstractmethod
    def answer(self, vector: Any, parameters: EmbeddingParameters) -> Any:
        """Answer in JSON's types."""

    @abstractmethod
    def answer_bytes(self, parameters: EmbeddingParameters, row: Row) -> int:
        """Most bytes of an answer, as far as they are known before its vector is."""

    def output_bytes(self, parameters: EmbeddingParameters, vector: Any) -> int:
        """Most bytes that a vector adds to what was counted before it was known."""
        return 0

    @abstractmethod
    def compare(self, source: Any, others: Sequence[Any]) -> list[float]:
        """Likeness of a query's vector to those of documents."""


class SparseVectors(VectorForm):
    """Weights of the vocabulary's tokens, by a masked language model's logits (SPLADE)."""

    told = "sparse vectors"
    smaller = 'Send fewer inputs at once, or ask for the largest weights only, by "max_active_dims".'

    def __init__(self, loaded: Loaded, splade: Splade) -> None:
        super().__init__(loaded)
        self._splade = splade

    def check(self, parameters: EmbeddingParameters, **refused: Any) -> None:
        base64 = None if parameters.encoding_format == "float" else parameters.encoding_format
        pooling = None if parameters.pooling == "model" else parameters.pooling
        super().check(
            parameters,
            pooling=pooling,
            normalize=parameters.normalize or None,
            dimensions=parameters.dimensions,
            encoding_format=base64,
        )

    def make(self, output: Tensor, row: Row) -> SparseWeights:
        weights = output.relu()
        for _ in range(self._splade.logarithms):
            weights = weights.log1p()
        whole = weights.amax(0) if self._splade.pooling == "max" else weights.sum(0)
        held = whole.nonzero().flatten()
        return SparseWeights(held.cpu(), whole[held].cpu())

    def answer(self, vector: SparseWeights, parameters: EmbeddingParameters) -> dict[str, float]:
        values, order = vector.values.sort(descending=True, stable=True)
        most = parameters.max_active_dims
        indices, weights = vector.tokens[order][:most].tolist(), values[:most].tolist()
        names = self.loaded.tokenizer.convert_ids_to_tokens(indices) if parameters.sparse_keys == "token" else indices
        return {
            str(index if name is None else name): weight
            for index, name, weight in zip(indices, names, weights, strict=True)
        }

    def answer_bytes(self, parameters: EmbeddingParameters, row: Row) -> int:
        return 0  # a text has hundreds of weights above 0, of a vocabulary of tens of thousands

    def output_bytes(self, parameters: EmbeddingParameters, vector: SparseWeights) -> int:
        size = len(vector.tokens)
        key = self._name_bytes if parameters.sparse_keys == "token" else _KEY_BYTES
        return min(size, parameters.max_active_dims or size) * (NUMBER_BYTES + key)

    @cached_property
    def _name_bytes(self) -> int:
        return 2 + max(map(text_bytes, self.loaded.tokenizer.get_vocab()))

    def compare(self, source: SparseWeights, others: Sequence[SparseWeights]) -> list[float]:
        query, *documents = (self._scaled(each) for each in (source, *others))
        dense = query.new_zeros(1 + max(int(each.tokens.max()) for each in (source, *others) if len(each.tokens)))
        dense[source.tokens] = query
        return [float(dense[each.tokens] @ own) for each, own in zip(others, documents, strict=True)]

    def _scaled(self, vector: SparseWeights) -> Tensor:
        unit = self._splade.similarity == "cosine"
        return torch.nn.functional.normalize(vector.values, dim=-1) if unit else vector.values


class TokenVectors(VectorForm):
    """A vector for each token that is compared, through the folder's projection (late interaction, ColBERT)."""

    told = "a vector for each token"
    smaller = "Send fewer or shorter inputs at once."

    def __init__(self, loaded: Loaded, head: Head, late: LateInteraction) -> None:
        super().__init__(loaded)
        self._head, self._late = head, late
        tokenizer = loaded.tokenizer
        known = tokenizer.get_vocab()
        self._skipped = frozenset(known[word] for word in late.skipped if word in known)
        self._filling = _filling(tokenizer, late.expansion) if late.expansion else 0

    def role(self, parameters: EmbeddingParameters) -> str:
        return parameters.input_type or DOCUMENT

    def check(self, parameters: EmbeddingParameters, **refused: Any) -> None:
        base64 = None if parameters.encoding_format == "float" else parameters.encoding_format
        pooling = None if parameters.pooling in ("none", "model") else parameters.pooling
        keys = parameters.sparse_keys if "sparse_keys" in parameters.model_fields_set else None
        weights = {"max_active_dims": parameters.max_active_dims, "sparse_keys": keys}
        super().check(parameters, pooling=pooling, encoding_format=base64, **weights)
        refuse_more(parameters.dimensions, self._head.dimension)

    def limit(self, role: str) -> int:
        """Most tokens of a text on a side."""
        late, most = self._late, self.loaded.context_length
        if role == QUERY and late.expansion and late.expansion.cut:
            return min(most, late.expansion.length)
        own = late.query_length if role == QUERY else late.document_length
        return min(most, own or most)

    def fill(self, encoded: dict[str, Any], role: str) -> tuple[dict[str, Any], tuple[int, ...]]:
        """Features of a text, queries filled up; and places of the tokens whose vectors are compared."""
        ids = list(encoded["input_ids"])
        skipped = self._skipped if role in self._late.skipped_in else frozenset()
        expansion = self._late.expansion if role == QUERY else None
        more = max(0, min(expansion.length, self.loaded.context_length) - len(ids)) if expansion else 0
        attended = int(expansion.attended) if expansion else 1
        whole = {
            "input_ids": [*ids, *[self._filling] * more],
            "attention_mask": [1] * len(ids) + [attended] * more,
            "token_type_ids": [*encoded.get("token_type_ids", [0] * len(ids)), *[0] * more],
            "cut": encoded.get("cut", False),
        }
        return whole, tuple(at for at, each in enumerate(whole["input_ids"]) if each not in skipped)

    def check_length(self, length: int, role: str, item: int) -> None:
        """Raise PromptTooLong for a text past the length of its side."""
        if length > self.limit(role):
            raise PromptTooLong(
                f"The text has {length} tokens; the model takes {self.limit(role)} of a {role}.",
                'Shorten it, or set "parameters": {"truncation": true}.',
                where=f"inputs[{item}]",
            )

    def make(self, output: Tensor, row: Row) -> Tensor:
        kept = output[list(row.extra)]
        found: Tensor = self._head.layers.to(kept.device)(kept)
        return found

    def answer(self, vector: Tensor, parameters: EmbeddingParameters) -> list[list[float]]:
        found: list[list[float]] = vector.tolist()
        return found

    def answer_bytes(self, parameters: EmbeddingParameters, row: Row) -> int:
        return len(row.extra) * (parameters.dimensions or self._head.dimension) * NUMBER_BYTES

    def compare(self, source: Tensor, others: Sequence[Tensor]) -> list[float]:
        best = torch.stack(
            [(source @ other.T).amax(1).sum() if len(other) else source.new_zeros(()) for other in others]
        )
        found: list[float] = (best / len(source) if self._late.mean else best).tolist()
        return found


def _filling(tokenizer: Any, expansion: Expansion) -> int:
    """Token that fills queries up; raises LoadError if the tokenizer has none."""
    if expansion.token is not None:
        found = tokenizer.get_vocab().get(expansion.token)
    else:
        found = tokenizer.mask_token_id if tokenizer.mask_token_id is not None else tokenizer.eos_token_id
    if found is None:
        raise LoadError(
            f"Queries are filled up with {expansion.token or 'a mask'}, which the tokenizer does not have.",
            "Copy the model's folder again, as its library saved it.",
        )
    return int(found)


def form_of(loaded: Loaded) -> VectorForm | None:
    """Form of a model's vectors; None for one list of numbers a text."""
    told = loaded.head.told if loaded.head else None
    if loaded.head is None or told is None or not told.form:
        return None
    if told.splade is not None:
        return SparseVectors(loaded, told.splade)
    assert told.late is not None
    return TokenVectors(loaded, loaded.head, told.late)


def refuse_more(dimensions: int | None, size: int) -> None:
    """Raise InvalidParameter for more dimensions than vectors have."""
    if dimensions is not None and dimensions > size:
        raise InvalidParameter(
            f"The model's vectors have {size} numbers.",
            f'Ask for 1 to {size} "dimensions".',
            "parameters.dimensions",
        )


def refuse_empty(row: Row, item: int) -> None:
    """Raise InvalidInput for a text of which no token is compared."""
    if row.extra == ():
        raise InvalidInput(
            "No token of the text is compared: the model leaves all of them out.", "Send words.", f"inputs[{item}]"
        )
