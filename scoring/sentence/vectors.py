"""Forms of a model's vectors beside one list of numbers a text: sparse ones, and one vector for each token."""

from dataclasses import dataclass

#: How a deployment's options name the forms.
SPARSE, MULTI_VECTOR = "sparse", "multi_vector"


@dataclass(frozen=True)
class Splade:
    """Way from a masked language model's logits to one weight for each token of its vocabulary."""

    pooling: str = "max"  # or sum, over the text's tokens
    logarithms: int = 1  # how often log(1 + x) is taken of what is above zero
    similarity: str = "dot"  # or cosine

    def told(self) -> str:
        """Describe the weights in a phrase."""
        twice = " twice" if self.logarithms > 1 else ""
        return f"sparse: a weight for each token of the vocabulary (log(1 + relu){twice}, {self.pooling})"


@dataclass(frozen=True)
class Expansion:
    """Tokens that fill queries up to a length, whose vectors are compared too."""

    length: int
    attended: bool = False  # False: they see the query, and it does not see them
    cut: bool = True  # longer queries are cut to the length
    token: str | None = None  # None: the tokenizer's mask, else its end


@dataclass(frozen=True)
class LateInteraction:
    """Form of queries and documents, and choice of the tokens whose vectors are compared (ColBERT)."""

    query_length: int | None = None  # tokens
    document_length: int | None = None
    expansion: Expansion | None = None
    skipped: tuple[str, ...] = ()  # tokens whose vectors are left out
    skipped_in: tuple[str, ...] = ("document",)
    markers: tuple[str, ...] = ()  # in front of texts; each is one token if the vocabulary has it
    mean: bool = False  # the sum of a query's best products is divided by their number

    def told(self) -> str:
        """Describe the vectors in a phrase."""
        queries = f", queries filled up to {self.expansion.length} tokens" if self.expansion else ""
        return f"a vector for each token{queries}"
