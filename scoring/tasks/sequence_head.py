"""A head over a whole text or pair: the part common to tasks whose models are sequence classifiers."""

from collections.abc import Hashable, Sequence
from typing import Any

import torch

from scoring.engine.batch_invariance import lend
from scoring.engine.row import Row
from scoring.model.loaded import Loaded
from scoring.tasks.base import EncoderTask, vocabulary


class Mistaken:
    """Unique key of a row that ends in the token used as its model's padding, so that it runs alone."""


class SequenceHead(EncoderTask):
    """A task over a model with logits for each sequence; batches so that a decoder's head finds the end of each."""

    auto_class = "AutoModelForSequenceClassification"

    def __init__(self, loaded: Loaded, name: str) -> None:
        super().__init__(loaded, name)
        config = loaded.model.config
        self._encodes_first = bool(config.is_encoder_decoder)  # a config's properties are slow
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

    def kin(self, row: Row) -> Hashable:
        ids = row.features["input_ids"]
        if self._encodes_first:  # the heads of BART and T5 take one number of end tokens per batch
            return ids.count(self.model.config.eos_token_id)
        return Mistaken() if self._lent and ids[-1] == self.pad_id else None

    def run(self, rows: Sequence[Row]) -> Any:
        if not isinstance(self.kin(rows[0]), Mistaken):
            return super().run(rows)
        lend(self.model.config, self._own_pad)
        try:  # bypasses what passes put before the forward: graphs keep the padding with which they were captured
            return type(self.model).forward(self.model, **self.pad(rows))
        finally:
            lend(self.model.config, self.pad_id)

    def split(self, output: Any, rows: Sequence[Row]) -> list[torch.Tensor]:
        return list(output.logits.float().cpu())  # each [L]
