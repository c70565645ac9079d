"""fill-mask: the likeliest tokens for each mask of a text; the answer's shape is the pipeline's."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from scoring.engine.row import Row
from scoring.errors import InvalidInput, InvalidParameter, LoadError
from scoring.limits.deadline import check
from scoring.model.loaded import Loaded
from scoring.schema.requests import FillMaskParameters
from scoring.strict_json.body import text_bytes
from scoring.tasks.base import EncoderTask

Filling = dict[str, Any]

#: Accepted in a text whatever the tokenizer's own mask token is.
_MASKS = ("[MASK]", "<mask>")
#: Bytes of a filling's JSON beside its sequence; and the most that spaces between tokens lengthen the text, a factor.
_FILLING_BYTES, _SPACED = 128, 2


@dataclass(frozen=True)
class Wanted:
    """Positions and tokens to compute for one text."""

    masks: list[int]  # positions in the row
    targets: list[int] | None  # only these token ids
    top_k: int


class FillMask(EncoderTask):
    """Masked language modelling over one text with one mask or several."""

    name = "fill-mask"
    auto_class = "AutoModelForMaskedLM"
    smaller = "Lower top_k, or send fewer inputs at once or fewer masks in each."

    def __init__(self, loaded: Loaded, name: str) -> None:
        super().__init__(loaded, name)
        # A tokenizer's properties are slow.
        self._mask, self._mask_id = self.tokenizer.mask_token, self.tokenizer.mask_token_id
        self._pad_id = self.tokenizer.pad_token_id
        self._target_ids = lru_cache(8)(self._find_targets)  # the same for all inputs of a request
        if self._mask_id is None:
            raise LoadError("The tokenizer has no mask token.", "Choose a model that was trained to fill masks.")

    def encode(self, value: str, parameters: FillMaskParameters, item: int) -> list[Row]:
        mask = self._mask
        for spelling in _MASKS:
            value = value.replace(spelling, mask)
        encoded = self.tokenize([value], parameters.truncation, item)
        masks = [i for i, token in enumerate(encoded["input_ids"]) if token == self._mask_id]
        if not masks:
            cut = mask in value
            raise InvalidInput(
                f"No mask is left in the first {self.loaded.context_length} tokens."
                if cut
                else f"The text has no {mask}.",
                f"Put {mask} where a word is wanted.",
                where=f"inputs[{item}]",
            )
        words = parameters.targets
        targets = None if words is None else self._target_ids((words,) if isinstance(words, str) else tuple(words))
        return [self.row(encoded, item, extra=Wanted(masks, targets, parameters.top_k))]

    def answer_bytes(self, value: str, parameters: FillMaskParameters, rows: Sequence[Row]) -> int:
        wanted: Wanted = rows[0].extra
        choices = len(self.tokenizer) if wanted.targets is None else len(wanted.targets)
        each = _FILLING_BYTES + _SPACED * text_bytes(value)  # a filling repeats the text
        return len(wanted.masks) * min(wanted.top_k, choices) * each

    def _find_targets(self, words: tuple[str, ...]) -> list[int]:
        """Token ids of the words; a word that is no single token is represented by its first sub-word."""
        ids = dict.fromkeys(token for word in words for token in self._first_piece(word))
        if not ids:
            raise InvalidParameter("The tokenizer finds nothing in the targets.", where="parameters.targets")
        return list(ids)

    def _first_piece(self, word: str) -> list[int]:
        """Token of the word, else the first of its sub-word tokens; None for white space."""
        whole = self.tokenizer.convert_tokens_to_ids(word)
        if whole is not None and self.tokenizer.convert_ids_to_tokens(whole) == word:
            return [whole]
        ids: list[int] = self.call_tokenizer(word, add_special_tokens=False)["input_ids"]
        return ids[:1]

    def split(self, output: Any, rows: Sequence[Row]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        # The top-k is taken here, on the device: a whole vocabulary per mask is large.
        return [self._best(logits, row.extra) for logits, row in zip(self.live(output.logits, rows), rows, strict=True)]

    def _best(self, logits: torch.Tensor, wanted: Wanted) -> tuple[torch.Tensor, torch.Tensor]:
        """Probabilities and token ids, best first: each [masks, k]."""
        at = wanted.masks
        masked = logits[at[0] : at[0] + 1] if len(at) == 1 else logits[at]  # a slice needs no copy of an index
        scores = torch.softmax(masked, -1, dtype=torch.float32)
        if wanted.targets is not None:
            scores = scores[:, wanted.targets]
        both = torch.stack([each.double() for each in scores.topk(min(wanted.top_k, scores.shape[-1]))]).cpu()
        values, picks = both[0].float(), both[1].long()
        return values, picks if wanted.targets is None else torch.tensor(wanted.targets)[picks]

    def decode(
        self,
        value: str,
        parameters: FillMaskParameters,
        rows: Sequence[Row],
        outputs: Sequence[tuple[torch.Tensor, torch.Tensor]],
    ) -> list[Filling] | list[list[Filling]]:
        scores, tokens = (tensor.tolist() for tensor in outputs[0])
        ids, masks = rows[0].features["input_ids"], rows[0].extra.masks
        answer = [
            [self._filling(ids, at, token, score, len(masks) == 1) for token, score in zip(*pair, strict=True)]
            for at, pair in zip(masks, zip(tokens, scores, strict=True), strict=True)
        ]
        return answer[0] if len(masks) == 1 else answer

    def _filling(self, ids: list[int], at: int, token: int, score: float, single: bool) -> Filling:
        check()
        filled = [token if i == at else old for i, old in enumerate(ids)]
        filled = [each for each in filled if each != self._pad_id]
        return {
            "score": score,
            "token": token,
            "token_str": self.tokenizer.decode([token]),
            # With several masks the special tokens are kept, or the other masks would vanish.
            "sequence": self.tokenizer.decode(filled, skip_special_tokens=single),
        }

    def plain(self, answer: Any) -> Any:
        if isinstance(answer[0], list):
            return [self.plain(fillings) for fillings in answer]
        return str(answer[0]["token_str"]).strip()
