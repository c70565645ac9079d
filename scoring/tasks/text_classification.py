"""text-classification: label and score of a text or a pair; the answer's shape is the pipeline's."""

from collections.abc import Hashable, Sequence
from functools import cached_property
from typing import Any

import torch

from scoring.engine.batch_invariance import lend
from scoring.engine.row import Row
from scoring.model.loaded import Loaded
from scoring.schema.requests import TextClassificationParameters, TextPair
from scoring.strict_json.body import text_bytes
from scoring.tasks.base import EncoderTask, vocabulary

Label = dict[str, Any]

_LABEL_BYTES = 48  # of an entry's JSON beside its label


class Mistaken:
    """Unique key of a row that ends in the token used as its model's padding, so that it runs alone."""


class TextClassification(EncoderTask):
    """Sequence classification, regression (one label) and multi-label heads."""

    name = "text-classification"
    auto_class = "AutoModelForSequenceClassification"

    def __init__(self, loaded: Loaded, name: str) -> None:
        super().__init__(loaded, name)
        config = loaded.model.config
        self._own_pad = getattr(config, "pad_token_id", None)
        # A decoder's head reads the last token that is not its config's padding; without any, it takes one row only.
        self._lent = not config.is_encoder_decoder and self.pad_id != self._own_pad
        if self._lent:
            self.pad_id = self._unmistakable()
            lend(config, self.pad_id)

    def _unmistakable(self) -> int:
        """Padding id that ends no text: one without a token in the tokenizer, else its padding token."""
        end = self.call_tokenizer("a")["input_ids"][-1:]
        unused = range(len(self.tokenizer), min(vocabulary(self.model.config), len(self.tokenizer) + 1))
        ids = (*unused, self.tokenizer.pad_token_id, self.tokenizer.unk_token_id, 0, 1)
        return next(int(each) for each in ids if each is not None and each not in end)

    def encode(self, value: str | TextPair, parameters: TextClassificationParameters, item: int) -> list[Row]:
        if isinstance(value, str):
            texts = [value]
        else:
            texts = [value.text] if value.text_pair is None else [value.text, value.text_pair]
        return [self.row(self.tokenize(texts, parameters.truncation, item), item)]

    def kin(self, row: Row) -> Hashable:
        config, ids = self.model.config, row.features["input_ids"]
        if config.is_encoder_decoder:  # the heads of BART and T5 take one number of end tokens per batch
            return ids.count(config.eos_token_id)
        return Mistaken() if self._lent and ids[-1] == self.pad_id else None

    def run(self, rows: Sequence[Row]) -> Any:
        if not isinstance(self.kin(rows[0]), Mistaken):
            return super().run(rows)
        lend(self.model.config, self._own_pad)
        try:  # bypasses what passes put before the forward: graphs keep the padding with which they were captured
            return type(self.model).forward(self.model, **self.pad(rows))
        finally:
            lend(self.model.config, self.pad_id)

    def answer_bytes(self, value: Any, parameters: TextClassificationParameters, rows: Sequence[Row]) -> int:
        labels = len(self.model.config.id2label)
        return min(parameters.top_k or labels, labels) * self._label_bytes

    @cached_property
    def _label_bytes(self) -> int:
        """Most bytes that one label's entry takes in a reply."""
        return max(map(text_bytes, self.model.config.id2label.values())) + _LABEL_BYTES

    def split(self, output: Any, rows: Sequence[Row]) -> list[torch.Tensor]:
        return list(output.logits.float().cpu())  # each [L]

    def decode(
        self,
        value: str | TextPair,
        parameters: TextClassificationParameters,
        rows: Sequence[Row],
        outputs: Sequence[torch.Tensor],
    ) -> list[Label]:
        scores = self._scores(outputs[0], parameters.function_to_apply)
        names = self.model.config.id2label
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
        config = self.model.config
        if function is None:
            if config.problem_type == "regression":
                function = "none"
            elif config.problem_type == "multi_label_classification" or config.num_labels == 1:
                function = "sigmoid"
            else:
                function = "softmax"
        if function == "sigmoid":
            return torch.sigmoid(logits)
        return torch.softmax(logits, -1) if function == "softmax" else logits
