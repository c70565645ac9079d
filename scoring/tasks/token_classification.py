"""token-classification: labels of tokens, or of the entities they form; the answer's shape is the pipeline's."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from scoring.engine.row import Row
from scoring.errors import InvalidInput, InvalidParameter
from scoring.model.loaded import Loaded
from scoring.schema.requests import TokenClassificationParameters
from scoring.strict_json.body import text_bytes
from scoring.tasks.base import EncoderTask

Scores = np.ndarray[Any, np.dtype[np.float32]]
Entity = dict[str, Any]

_MAX_WINDOWS = 1024  # of one text
_ENTITY_BYTES = 96  # of an entity's JSON beside its label and its text


class Token(NamedTuple):
    """One token that is part of the text."""

    position: int  # in the row
    word: str  # as the vocabulary spells it
    start: int
    end: int
    continues: bool  # a word that an earlier token began
    scores: Scores  # [labels]
    best: int  # the likeliest label


class Tagged(NamedTuple):
    """The answer to one text, and, for Azure's form of it, a tag per white-space word."""

    entities: list[Entity]  # the pipeline's
    text: str
    tokens: list[Token]


class TokenClassification(EncoderTask):
    """Named entities, parts of speech: one label per token."""

    name = "token-classification"
    auto_class = "AutoModelForTokenClassification"
    smaller = "Send fewer or shorter inputs at once."

    def __init__(self, loaded: Loaded, name: str) -> None:
        super().__init__(loaded, name)
        self.require_offsets()
        self._labels: dict[int, str] = self.model.config.id2label
        self._longest_label = max(map(text_bytes, self._labels.values()))
        self._unknown = self.tokenizer.unk_token_id
        backend = self.tokenizer.backend_tokenizer.model
        # WordPiece marks tokens that continue a word; elsewhere leading white space shows where words begin.
        self._marks_pieces = bool(getattr(backend, "continuing_subword_prefix", None))

    def encode(self, value: str, parameters: TokenClassificationParameters, item: int) -> list[Row]:
        told: dict[str, Any] = {"return_offsets_mapping": True, "return_special_tokens_mask": True}
        if parameters.stride is not None:
            if parameters.aggregation_strategy == "none":
                raise InvalidParameter(
                    "Windows are joined by their entities.", "Set aggregation_strategy too.", where="parameters.stride"
                )
            encoded = self.call_tokenizer(value, most=_MAX_WINDOWS * self.loaded.context_length, **told)
            return self._windows(encoded, parameters.stride, item)
        encoded = self.tokenize([value], parameters.truncation, item, **told)
        return [self.row(encoded, item, extra=(encoded["offset_mapping"], encoded["special_tokens_mask"]))]

    def _windows(self, encoded: Any, stride: int, item: int) -> list[Row]:
        """Rows of a text's windows, each with the special tokens of the whole; neighbours share `stride` tokens."""
        special = encoded["special_tokens_mask"]
        begin = next((at for at, each in enumerate(special) if not each), len(special))
        end = len(special) - next((at for at, each in enumerate(reversed(special)) if not each), 0)
        room = self.loaded.context_length - (len(special) - (end - begin))
        if end - begin > room <= stride:
            raise InvalidParameter(
                f"stride must be smaller than the {room} tokens of text in a window.", where="parameters.stride"
            )
        if not special:
            raise InvalidInput("The tokenizer finds nothing in the text.", "Send visible text.", f"inputs[{item}]")
        begins = range(begin, max(begin + 1, end - stride), max(1, room - stride))
        if len(begins) > _MAX_WINDOWS:
            raise InvalidInput(
                f"The text needs {len(begins):,} windows; at most {_MAX_WINDOWS:,} are read.",
                "Send it in parts, or lower stride.",
                f"inputs[{item}]",
            )
        rows = []
        for first in begins:
            last = min(first + room, end)
            own = {name: [*ids[:begin], *ids[first:last], *ids[end:]] for name, ids in encoded.items()}
            rows.append(self.row(own, item, extra=(own["offset_mapping"], own["special_tokens_mask"])))
            if last == end:
                break
        return rows

    def answer_bytes(self, value: str, parameters: TokenClassificationParameters, rows: Sequence[Row]) -> int:
        return sum(row.tokens for row in rows) * (_ENTITY_BYTES + self._longest_label) + text_bytes(value)

    def split(self, output: Any, rows: Sequence[Row]) -> list[torch.Tensor]:
        return self.live(torch.softmax(output.logits.float(), -1).cpu(), rows)  # each [S, labels]

    def decode(
        self,
        value: str,
        parameters: TokenClassificationParameters,
        rows: Sequence[Row],
        outputs: Sequence[torch.Tensor],
    ) -> Tagged:
        found = [list(self._tokens(value, row, output.numpy())) for row, output in zip(rows, outputs, strict=True)]
        kept = [entity for tokens in found for entity in self._entities(tokens, parameters)]
        return Tagged(_apart(kept) if len(rows) > 1 else kept, value, [token for tokens in found for token in tokens])

    def _entities(self, tokens: list[Token], parameters: TokenClassificationParameters) -> list[Entity]:
        strategy = parameters.aggregation_strategy
        if strategy in ("none", "simple"):
            entities = [self._entity(token) for token in tokens]
        else:
            entities = [self._word(group, strategy) for group in _words(tokens)]
        if strategy != "none":
            entities = [self._join(group) for group in _adjacent(entities)]
        kind = "entity" if strategy == "none" else "entity_group"
        return [entity for entity in entities if entity[kind] not in parameters.ignore_labels]

    def collect(self, answers: list[Tagged], single: bool, parameters: Any) -> Any:
        entities = [answer.entities for answer in answers]
        return entities[0] if single else entities

    def plain(self, answer: Tagged) -> list[str]:
        return self._tags(answer.text, answer.tokens)

    def _tokens(self, text: str, row: Row, scores: Scores) -> Iterable[Token]:
        offsets, special = row.extra
        ids, unknown = row.features["input_ids"], self._unknown
        bests = scores.argmax(-1).tolist()
        for index, word in enumerate(self.tokenizer.convert_ids_to_tokens(ids)):
            if special[index]:
                continue
            start, end = offsets[index]
            written = text[start:end]
            if ids[index] == unknown:
                word, continues = written, False
            elif self._marks_pieces:
                continues = len(word) != len(written)
            else:
                continues = start > 0 and " " not in text[start - 1 : start + 1]
            yield Token(index, word, start, end, continues, scores[index], bests[index])

    def _entity(self, token: Token) -> Entity:
        return {
            "entity": self._labels[token.best],
            "score": float(token.scores[token.best]),
            "index": token.position,
            "word": token.word,
            "start": token.start,
            "end": token.end,
        }

    def _word(self, tokens: list[Token], strategy: str) -> Entity:
        """One word with one label, chosen by the strategy."""
        if strategy == "first":
            scores = tokens[0].scores
        elif strategy == "max":
            scores = max(tokens, key=lambda token: float(token.scores.max())).scores
        else:
            scores = np.stack([token.scores for token in tokens]).mean(0)
        best = int(scores.argmax())
        return {
            "entity": self._labels[best],
            "score": float(scores[best]),
            "word": self.tokenizer.convert_tokens_to_string([token.word for token in tokens]),
            "start": tokens[0].start,
            "end": tokens[-1].end,
        }

    def _join(self, entities: list[Entity]) -> Entity:
        return {
            "entity_group": entities[0]["entity"].split("-", 1)[-1],
            "score": float(np.mean([entity["score"] for entity in entities])),
            "word": self.tokenizer.convert_tokens_to_string([entity["word"] for entity in entities]),
            "start": entities[0]["start"],
            "end": entities[-1]["end"],
        }

    def _tags(self, text: str, tokens: list[Token]) -> list[str]:
        """The label of each white-space word's first token; "O" for a word without one, cut off or invisible."""
        found = [""] * len(text)
        for token in reversed(tokens):
            found[token.start : token.end] = [self._labels[token.best]] * (token.end - token.start)
        words = (found[match.start() : match.end()] for match in re.finditer(r"\S+", text))
        return [next(filter(None, word), "O") for word in words]


def _apart(entities: Iterable[Entity]) -> list[Entity]:
    """Entities of several windows in order; of two that overlap the longer stays, of equals the likelier."""
    kept: list[Entity] = []
    for entity in sorted(entities, key=lambda each: int(each["start"])):
        if not kept or entity["start"] >= kept[-1]["end"]:
            kept.append(entity)
        elif _weight(entity) > _weight(kept[-1]):
            kept[-1] = entity
    return kept


def _weight(entity: Entity) -> tuple[int, float]:
    return entity["end"] - entity["start"], entity["score"]


def _words(tokens: Iterable[Token]) -> list[list[Token]]:
    return _runs(tokens, lambda _, token: token.continues)


def _adjacent(entities: Iterable[Entity]) -> list[list[Entity]]:
    """Runs of one tag; a B- begins a new one."""

    def joins(last: Entity, entity: Entity) -> bool:
        return not entity["entity"].startswith("B-") and _tag(entity["entity"]) == _tag(last["entity"])

    return _runs(entities, joins)


def _tag(label: str) -> str:
    return label[2:] if label.startswith(("B-", "I-")) else label


def _runs(values: Iterable[Any], joins: Callable[[Any, Any], bool]) -> list[list[Any]]:
    runs: list[list[Any]] = []
    for value in values:
        if runs and joins(runs[-1][-1], value):
            runs[-1].append(value)
        else:
            runs.append([value])
    return runs
