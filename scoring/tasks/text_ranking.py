"""text-ranking: how well texts answer a query, by a cross-encoder or by a decoder that writes yes or no."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from scoring.config import Limits
from scoring.engine.row import Row
from scoring.errors import InvalidParameter, LoadError
from scoring.model.loaded import Loaded
from scoring.schema.requests import MOST_EMBEDDED, TextPair
from scoring.schema.retrieval import QueryTexts, RankingParameters
from scoring.sentence.ranker import Ranker
from scoring.strict_json.body import NUMBER_BYTES, text_bytes
from scoring.tasks.base import placed
from scoring.tasks.pair_prompt import PairPrompt
from scoring.tasks.sequence_head import SequenceHead

Value = QueryTexts | TextPair | list[str]

_ENTRY_BYTES = NUMBER_BYTES + 64  # of an entry's JSON beside its text
_CUT = 'Shorten it, or set "parameters": {"truncation": true}.'


class TextRanking(SequenceHead):
    """Scores of pairs of texts; a query's texts are answered the best first."""

    name = "text-ranking"
    smaller = "Send fewer texts at once, or leave their text out of the answer."

    def __init__(self, loaded: Loaded, name: str) -> None:
        if loaded.model.config.num_labels != 1:
            raise LoadError(
                f"A model that ranks gives one number a pair; this one has {loaded.model.config.num_labels} labels.",
                "Its task is text-classification, which takes pairs too.",
            )
        super().__init__(loaded, name)
        self.ranker = loaded.ranker or Ranker()
        self._activation = getattr(torch.nn, self.ranker.activation)()
        self._prompt = PairPrompt(self.tokenizer) if self.ranker.templated else None

    def encode(self, value: Value, parameters: RankingParameters, item: int) -> list[Row]:
        return [
            replace(row, item=item)
            for number, pair in enumerate(_pairs(value))
            for row in self._encoded(
                *pair, parameters, item, f".texts[{number}]" if isinstance(value, QueryTexts) else ""
            )
        ]

    def _encoded(self, query: str, text: str, parameters: RankingParameters, item: int, place: str) -> list[Row]:
        with placed(f"inputs[{item}]", place):
            text, shortened = self._shortened(text, parameters.max_tokens_per_doc)
            if self._prompt is not None:
                row = self.row(self._judged(query, text, parameters, item), item)
            else:
                prompt = self.ranker.prompt if parameters.instruction is None else parameters.instruction
                row = self.row(self.tokenize([prompt + query, text], parameters.cut, item), item)
        row.cut = row.cut or shortened
        return [row]

    def _judged(self, query: str, text: str, parameters: RankingParameters, item: int) -> dict[str, Any]:
        """Features of a prompt; one past the context is cut within its texts, and keeps what follows them."""
        assert self._prompt is not None
        asked = self.ranker.prompt if parameters.instruction is None else parameters.instruction
        prompt = self._prompt.write(query, text, asked or None, item)
        most = self.loaded.context_length
        whole: dict[str, Any] = {"add_special_tokens": False}
        if not parameters.cut:
            encoded = self.call_tokenizer(prompt, **whole)
            self.check_length(len(encoded["input_ids"]), item, _CUT)
            return dict(encoded)
        encoded = dict(self.call_tokenizer(prompt, truncation=True, max_length=most, **whole))
        if encoded["cut"]:
            after = self._prompt.after(query, asked or None, item)
            tail = self.call_tokenizer(after, **whole)["input_ids"][-most:]
            encoded["input_ids"] = [*encoded["input_ids"][: most - len(tail)], *tail]
        return encoded

    def _shortened(self, text: str, most: int | None) -> tuple[str, bool]:
        """A text cut to `most` tokens, and whether it was; raises InvalidParameter without a fast tokenizer."""
        if most is None:
            return text, False
        if not self.tokenizer.is_fast:
            raise InvalidParameter(
                "The model's tokenizer does not tell where a token ends.",
                "Cut the texts on your side.",
                "parameters.max_tokens_per_doc",
            )
        most = min(most, self.loaded.context_length)
        options = {"add_special_tokens": False, "return_offsets_mapping": True}
        encoded = self.call_tokenizer(text, truncation=True, max_length=most, side="right", **options)
        return (text[: encoded["offset_mapping"][-1][1]], True) if encoded["cut"] else (text, False)

    def answer_bytes(self, value: Value, parameters: RankingParameters, rows: Sequence[Row]) -> int:
        if not isinstance(value, QueryTexts):
            return NUMBER_BYTES
        texts = sorted(map(text_bytes, value.texts), reverse=True)[: parameters.top_k]
        return _ENTRY_BYTES * len(texts) + (sum(texts) if parameters.return_text else 0)

    def most_rows(self, limits: Limits) -> int:
        return max(limits.queue_size, MOST_EMBEDDED)

    def decode(
        self, value: Value, parameters: RankingParameters, rows: Sequence[Row], outputs: Sequence[torch.Tensor]
    ) -> Any:
        logits = torch.cat([output.reshape(1) for output in outputs])
        scores = (logits if parameters.raw_scores else self._activation(logits)).tolist()
        if not isinstance(value, QueryTexts):
            return scores[0]
        entries = [
            {
                "index": index,
                "score": score,
                **({"text": value.texts[index]} if parameters.return_text else {}),
                **({"truncated": True} if rows[index].cut else {}),
            }
            for index, score in enumerate(scores)
        ]
        return sorted(entries, key=lambda entry: -entry["score"])[: parameters.top_k]


def _pairs(value: Value) -> Iterator[tuple[str, str]]:
    if isinstance(value, QueryTexts):
        yield from ((value.query, text) for text in value.texts)
    elif isinstance(value, TextPair):
        yield value.text, value.text_pair or ""
    else:
        yield value[0], value[1]
