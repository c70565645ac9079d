"""zero-shot-classification: labels that the request names, by a model of entailment; the pipeline's arithmetic."""

from collections.abc import Sequence
from string import Formatter
from typing import Any

import torch

from scoring.config import Limits
from scoring.engine.row import Row
from scoring.errors import InvalidParameter, LoadError, PromptTooLong
from scoring.limits.deadline import check
from scoring.model.loaded import Loaded
from scoring.schema.requests import MOST_WORDS
from scoring.schema.retrieval import ZeroShotParameters
from scoring.strict_json.body import NUMBER_BYTES, text_bytes
from scoring.tasks.sequence_head import SequenceHead

_ENTRY_BYTES = NUMBER_BYTES + 8  # of a label's JSON beside its text
_TEMPLATE = "parameters.hypothesis_template"


class ZeroShotClassification(SequenceHead):
    """One pair a label: the text, and a hypothesis with the label in it."""

    name = "zero-shot-classification"
    smaller = "Send fewer texts or labels at once."

    def __init__(self, loaded: Loaded, name: str) -> None:
        found = entailment_label(loaded.model.config.label2id)
        if found is None or len(loaded.model.config.label2id) < 2:
            raise LoadError(
                f"None of the model's labels says entailment: {', '.join(loaded.model.config.label2id)[:200]}.",
                'Serve a model of natural language inference, whose label2id has "entailment".',
            )
        super().__init__(loaded, name)
        self._entailed = found
        self._contradicted = -1 if found == 0 else 0  # as the pipeline takes it

    def encode(self, value: str, parameters: ZeroShotParameters, item: int) -> list[Row]:
        rows = []
        for label in parameters.labels:
            check()
            pair = [value, _hypothesis(parameters.hypothesis_template, label)]
            try:
                encoded = self.tokenize(pair, "only_first" if parameters.truncation else False, item)
            except Exception as error:
                if "Truncation error" not in str(error):
                    raise
                raise PromptTooLong(
                    "The hypothesis leaves no room for the text.", "Shorten the template, or the labels.", _TEMPLATE
                ) from error
            rows.append(self.row(encoded, item))
        return rows

    def answer_bytes(self, value: str, parameters: ZeroShotParameters, rows: Sequence[Row]) -> int:
        return text_bytes(value) + sum(_ENTRY_BYTES + text_bytes(label) for label in parameters.labels)

    def most_rows(self, limits: Limits) -> int:
        return max(limits.queue_size, MOST_WORDS)

    def decode(
        self, value: str, parameters: ZeroShotParameters, rows: Sequence[Row], outputs: Sequence[torch.Tensor]
    ) -> dict[str, Any]:
        labels, logits = parameters.labels, torch.stack(list(outputs))  # [labels, L]
        if parameters.multi_label or len(labels) == 1:
            scores = logits[:, [self._contradicted, self._entailed]].softmax(1)[:, 1]
        else:
            scores = logits[:, self._entailed].softmax(0)
        order = scores.argsort(descending=True).tolist()
        return {
            "sequence": value,
            "labels": [labels[number] for number in order],
            "scores": [float(scores[number]) for number in order],
        }


def entailment_label(labels: dict[str, int]) -> int | None:
    """The first label that says entailment, as the pipeline finds it."""
    return next((number for label, number in labels.items() if label.lower().startswith("entail")), None)


def _hypothesis(template: str, label: str) -> str:
    """The template with the label in it; raises InvalidParameter for one with other fields, or with none."""
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise InvalidParameter(
            f"The template cannot be read: {error}.", 'Write "{}" for the label.', _TEMPLATE
        ) from None
    fields = [name for _, name, _, _ in parts if name is not None]
    if fields not in ([""], ["0"]) or any(spec or conversion for _, _, spec, conversion in parts):
        raise InvalidParameter('The template needs one "{}", the label\'s place.', "", _TEMPLATE)
    return "".join(text + (label if name is not None else "") for text, name, _, _ in parts)
