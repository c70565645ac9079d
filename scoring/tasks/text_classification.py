"""text-classification: label and score of a text or a pair; the answer's shape is the pipeline's."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch

from scoring.engine.row import Row
from scoring.schema.requests import TextClassificationParameters, TextPair
from scoring.strict_json.body import text_bytes
from scoring.tasks.sequence_head import SequenceHead

Label = dict[str, Any]

_LABEL_BYTES = 48  # of an entry's JSON beside its label


class TextClassification(SequenceHead):
    """Sequence classification, regression (one label) and multi-label heads."""

    name = "text-classification"

    def encode(self, value: str | TextPair, parameters: TextClassificationParameters, item: int) -> list[Row]:
        if isinstance(value, str):
            texts = [value]
        else:
            texts = [value.text] if value.text_pair is None else [value.text, value.text_pair]
        return [self.row(self.tokenize(texts, parameters.truncation, item), item)]

    def answer_bytes(self, value: Any, parameters: TextClassificationParameters, rows: Sequence[Row]) -> int:
        labels = len(self._names)
        return min(parameters.top_k or labels, labels) * self._label_bytes

    @cached_property
    def _names(self) -> dict[int, str]:
        """Labels by number; a config's properties are slow."""
        names: dict[int, str] = self.model.config.id2label
        return names

    @cached_property
    def _usual(self) -> str:
        """Function that turns logits into scores unless a request says one."""
        config = self.model.config
        if config.problem_type == "regression":
            return "none"
        several = config.problem_type == "multi_label_classification"
        return "sigmoid" if several or config.num_labels == 1 else "softmax"

    @cached_property
    def _label_bytes(self) -> int:
        """Most bytes that one label's entry takes in a reply."""
        return max(map(text_bytes, self._names.values())) + _LABEL_BYTES

    def decode(
        self,
        value: str | TextPair,
        parameters: TextClassificationParameters,
        rows: Sequence[Row],
        outputs: Sequence[torch.Tensor],
    ) -> list[Label]:
        scores = self._scores(outputs[0], parameters.function_to_apply)
        names = self._names
        ranked = sorted(
            ({"label": names[i], "score": score} for i, score in enumerate(scores.tolist())),
            key=lambda entry: -entry["score"],
        )
        return ranked[: parameters.top_k]

    def collect(self, answers: list[list[Label]], single: bool, parameters: Any) -> Any:
        # Without an explicit top_k the pipeline answers a text with [{...}] and two texts with [{...}, {...}].
        if "top_k" not in parameters.model_fields_set:
            return [answer[0] for answer in answers]
        return answers[0] if single else answers

    def plain(self, answer: list[Label]) -> Any:
        return answer[0] if len(answer) == 1 else answer

    def _scores(self, logits: torch.Tensor, function: str | None) -> torch.Tensor:
        function = function or self._usual
        if function == "sigmoid":
            return torch.sigmoid(logits)
        return torch.softmax(logits, -1) if function == "softmax" else logits
