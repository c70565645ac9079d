"""Requests of tasks that compare texts: rankings of texts by a query, pairs, sentences beside a source."""

from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from scoring.errors import InvalidParameter
from scoring.schema.requests import (
    MOST_EMBEDDED,
    MOST_PROMPT_CHARACTERS,
    MOST_WORDS,
    Strict,
    Text,
    TextPair,
    VectorParameters,
    Words,
)


class RankingParameters(Strict):
    top_k: int | None = Field(None, ge=1, le=MOST_EMBEDDED, description="How many texts to return; null: all.")
    return_text: bool = Field(False, description="Answer with each text beside its score.")
    raw_scores: bool = Field(False, description="The model's own logits, before the activation of its folder.")
    instruction: Annotated[str, Field(max_length=MOST_PROMPT_CHARACTERS)] | None = Field(
        None, description="What makes a text relevant, in place of the model's own prompt; empty: none."
    )
    max_tokens_per_doc: int | None = Field(None, ge=1, le=2**31 - 1, description="Cut each text to so many tokens.")
    truncation: bool = Field(False, description="Cut texts at the context length instead of refusing them.")
    truncate: bool | None = Field(None, description="text-embeddings-inference's name of truncation; before it.")

    @property
    def cut(self) -> bool:
        """True if texts past the context length are cut."""
        return self.truncation if self.truncate is None else self.truncate


class QueryTexts(Strict):
    query: Text
    texts: Annotated[list[str], Field(min_length=1, max_length=MOST_EMBEDDED)]


def _form(value: Any) -> str:
    if isinstance(value, list):
        return "function-list"
    named = value if isinstance(value, dict) else vars(value) if isinstance(value, Strict) else {}
    return "function-pair" if "text" in named else "function-ranking"


#: A query with its texts; or one pair, as text and text_pair or as a list of two. No refusal names these tags.
RankingInput = Annotated[
    Annotated[QueryTexts, Tag("function-ranking")]
    | Annotated[TextPair, Tag("function-pair")]
    | Annotated[Annotated[list[str], Field(min_length=2, max_length=2)], Tag("function-list")],
    Discriminator(_form),
]


class SimilarityParameters(VectorParameters):
    pooling: Literal["mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken", "model"] | None = Field(
        None, description="How token vectors become one; null: as the model's folder says, else the mean."
    )


class SourceSentences(Strict):
    source_sentence: Text
    sentences: Annotated[list[Text], Field(min_length=1, max_length=MOST_EMBEDDED)]


class ZeroShotParameters(Strict):
    candidate_labels: Annotated[Words, Field(min_length=1)] | Annotated[str, Field(min_length=1, max_length=2**16)] = (
        Field(description="The labels; or one text, with commas between them.")
    )
    hypothesis_template: Annotated[str, Field(max_length=MOST_PROMPT_CHARACTERS)] = Field(
        "This example is {}.", description="A sentence with {} in the label's place."
    )
    multi_label: bool = Field(False, description="Score each label by itself; else the scores add up to 1.")
    truncation: bool = Field(False, description="Cut texts at the context length instead of refusing them.")

    @cached_property
    def labels(self) -> list[str]:
        """The labels of either form; raises InvalidParameter for a text that holds none, or more than a list may."""
        named, where = self.candidate_labels, "parameters.candidate_labels"
        if not isinstance(named, str):
            return list(named)
        found = [each.strip() for each in named.split(",") if each.strip()]
        if not found:
            raise InvalidParameter("There is no label.", "Send a list of labels.", where)
        if len(found) > MOST_WORDS:
            raise InvalidParameter(
                f"There are {len(found):,} labels; at most {MOST_WORDS:,} are taken.", "Send fewer labels.", where
            )
        return found
