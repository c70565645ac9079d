"""question-answering: the span of a context that answers a question.

transformers 5 has no pipeline for it; the answers are those of its predecessor's: start and end probabilities over the
tokens of the context and the classification token of each window, a span's score their product, a long context read
through overlapping windows. A span found in several windows is one answer, with its best score (the last of the old
pipelines added the scores of equal texts up, past 1).
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np
import torch

from scoring.engine.row import Row
from scoring.errors import InvalidInput, InvalidParameter, PromptTooLong
from scoring.limits.deadline import check
from scoring.model.loaded import Loaded
from scoring.schema.requests import QuestionAnsweringParameters, QuestionContext
from scoring.strict_json.body import CHARACTER_BYTES, text_bytes
from scoring.tasks.base import EncoderTask

Answer = dict[str, Any]

#: More windows over one context are refused before they are built.
_MAX_WINDOWS = 1024
_MAX_TOKENS = 1 << 19  # of one context, whatever the windows' length
_ANSWER_BYTES = 96  # of an answer's JSON beside its text


@dataclass(frozen=True)
class Window:
    """The part of the context that a row shows."""

    at: int  # position in the row of the first context token
    starts: list[int]  # per context token, the character at which an answer starting with it begins
    ends: list[int]  # per context token, the character at which an answer ending with it ends

    def longest(self, tokens: int) -> int:
        """Characters of the longest answer of the given number of tokens."""
        last = len(self.ends) - 1
        return max(self.ends[min(at + tokens - 1, last)] - start for at, start in enumerate(self.starts))


class QuestionAnswering(EncoderTask):
    """Extractive question answering."""

    name = "question-answering"
    auto_class = "AutoModelForQuestionAnswering"
    smaller = "Lower top_k or max_answer_len, or send fewer inputs at once."

    def __init__(self, loaded: Loaded, name: str) -> None:
        super().__init__(loaded, name)
        self.require_offsets()
        # Models whose tokenizer pads on the left were trained with the context first.
        self._question_first = self.tokenizer.padding_side == "right"

    def encode(self, value: QuestionContext, parameters: QuestionAnsweringParameters, item: int) -> list[Row]:
        question = self._cut_question(value.question, parameters.max_question_len)
        most = min(_MAX_TOKENS, _MAX_WINDOWS * min(parameters.max_seq_len, self.loaded.context_length))
        texts = (question, value.context) if self._question_first else (value.context, question)
        # Token types by name: ALBERT was trained with them, and its tokenizer no longer gives them unasked.
        encoded = self.call_tokenizer(*texts, most=most, return_offsets_mapping=True, return_token_type_ids=True)
        of_context = int(self._question_first)
        positions = [i for i, sequence in enumerate(encoded.sequence_ids(0)) if sequence == of_context]
        starts, ends = _characters(encoded, positions, parameters.align_to_words)
        if not value.context.strip() or starts == ends:
            raise InvalidInput("The context holds no text.", "Send the text to search.", f"inputs[{item}].context")
        first, count = positions[0], len(positions)
        rows = []
        for begin, end in self._windows(count, len(encoded["input_ids"]) - count, parameters, item):
            window = Window(first, starts[begin:end], ends[begin:end])
            shown = {
                name: ids[:first] + ids[first + begin : first + end] + ids[first + count :]
                for name, ids in encoded.items()
                if name in self._inputs
            }
            rows.append(self.row(shown, item, extra=window))
        return rows

    def _cut_question(self, question: str, length: int) -> str:
        options = {"add_special_tokens": False, "return_offsets_mapping": True}
        most = min(length, self.loaded.context_length)  # more would leave no room for the context
        (question,) = self.call_tokenizer.bounded((question,), most, {"truncation": True, **options})
        with self.call_tokenizer.turn():
            offsets = self.tokenizer(question, **options)["offset_mapping"]
        return question if len(offsets) <= length else question[: offsets[length - 1][1]]

    def _windows(
        self, tokens: int, others: int, parameters: QuestionAnsweringParameters, item: int
    ) -> list[tuple[int, int]]:
        """Ranges of context tokens that fit beside `others`: the question and special tokens."""
        length = min(parameters.max_seq_len, self.loaded.context_length)
        room = length - others
        if tokens <= room:
            return [(0, tokens)]
        if room < 1:
            raise PromptTooLong(
                f"The question leaves no room for the context: {others} of {length} tokens.",
                "Shorten it, or lower max_question_len.",
                where=f"inputs[{item}].question",
            )
        stride = parameters.doc_stride
        if "doc_stride" not in parameters.model_fields_set:
            stride = min(stride, length // 2)
            stride = stride if stride < room else room // 2
        if stride >= room:
            raise InvalidParameter(
                f"doc_stride must be smaller than the {room} tokens of context in a window.",
                "Lower it, or raise max_seq_len.",
                where="parameters.doc_stride",
            )
        count = 1 + -(-(tokens - room) // (room - stride))
        if count > _MAX_WINDOWS:
            raise InvalidInput(
                f"The context needs {count} windows; at most {_MAX_WINDOWS} are read.",
                "Send it in parts, or lower doc_stride.",
                where=f"inputs[{item}].context",
            )
        begins = (window * (room - stride) for window in range(count))
        return [(begin, min(begin + room, tokens)) for begin in begins]

    def answer_bytes(self, value: QuestionContext, parameters: QuestionAnsweringParameters, rows: Sequence[Row]) -> int:
        whole = text_bytes(value.context) + _ANSWER_BYTES
        if parameters.top_k == 1:
            return whole
        windows: list[Window] = [row.extra for row in rows]
        longest = max(window.longest(parameters.max_answer_len) for window in windows)
        spans = sum(len(window.starts) for window in windows) * parameters.max_answer_len + 1
        return min(parameters.top_k, spans) * min(whole, CHARACTER_BYTES * longest + _ANSWER_BYTES)

    def split(self, output: Any, rows: Sequence[Row]) -> list[torch.Tensor]:
        logits = torch.stack([output.start_logits, output.end_logits], -1).float().cpu()
        return [each.T for each in self.live(logits, rows)]  # each [2, S]

    def decode(
        self,
        value: QuestionContext,
        parameters: QuestionAnsweringParameters,
        rows: Sequence[Row],
        outputs: Sequence[torch.Tensor],
    ) -> Answer | list[Answer]:
        best: dict[tuple[int, int], float] = {}
        null = 1.0
        for row, logits in zip(rows, outputs, strict=True):
            check()
            start, end, null_score = self._probabilities(row, logits)
            null = min(null, null_score)
            for span, score in _spans(row.extra, start, end, parameters):
                best[span] = max(score, best.get(span, 0.0))
            if len(best) > 2 * parameters.top_k:  # a thousand windows have many millions
                best = dict(heapq.nlargest(parameters.top_k, best.items(), key=itemgetter(1)))
        answers: list[Answer] = [
            {"score": score, "start": start, "end": end, "answer": value.context[start:end]}
            for (start, end), score in best.items()
        ]
        if parameters.handle_impossible_answer:
            answers.append({"score": null, "start": 0, "end": 0, "answer": ""})
        answers.sort(key=lambda answer: -answer["score"])
        return answers[0] if parameters.top_k == 1 else answers[: parameters.top_k]

    def _probabilities(self, row: Row, logits: torch.Tensor) -> tuple[Any, Any, float]:
        """Start and end probabilities of the window's context tokens, each [n]; and the score of "no answer"."""
        window: Window = row.extra
        shown = range(window.at, window.at + len(window.starts))
        ids = row.features["input_ids"]
        cls = [i for i, token in enumerate(ids) if token == self.tokenizer.cls_token_id and i not in shown][:1]
        start, end = torch.softmax(logits[:, [*cls, *shown]], -1).numpy()
        return start[len(cls) :], end[len(cls) :], float(start[0] * end[0]) if cls else 0.0

    def plain(self, answer: Answer | list[Answer]) -> Any:
        if isinstance(answer, list):
            return [self.plain(each) for each in answer]
        return answer["answer"].strip()


def _characters(encoded: Any, positions: list[int], align_to_words: bool) -> tuple[list[int], list[int]]:
    """Characters of the context at which answers may begin and end, per context token."""
    offsets = [encoded["offset_mapping"][i] for i in positions]
    starts, ends = [start for start, _ in offsets], [end for _, end in offsets]
    if not align_to_words:
        return starts, ends
    word_ids = encoded.word_ids(0)
    words = [f"token {i}" if word_ids[i] is None else word_ids[i] for i in positions]
    last = dict(zip(words, ends, strict=True))
    first = dict(zip(reversed(words), reversed(starts), strict=True))
    return [first[word] for word in words], [last[word] for word in words]


def _spans(
    window: Window, start: Any, end: Any, parameters: QuestionAnsweringParameters
) -> list[tuple[tuple[int, int], float]]:
    """The best `top_k` distinct spans of a window, best first, as characters, with their scores."""
    tokens = len(start)
    longest = min(parameters.max_answer_len, tokens)
    first, length = (each.ravel() for each in np.mgrid[:tokens, :longest])
    inside = first + length < tokens
    first, last = first[inside], (first + length)[inside]
    begins, finishes = np.asarray(window.starts)[first], np.asarray(window.ends)[last]
    scores = np.where(begins < finishes, start[first] * end[last], -1.0)  # a lone space mark is no answer
    order = np.argsort(-scores, kind="stable")
    _, firsts = np.unique((begins * (max(window.ends) + 1) + finishes)[order], return_index=True)
    best = order[np.sort(firsts)[: parameters.top_k]]
    return [((int(begins[i]), int(finishes[i])), float(scores[i])) for i in best if scores[i] >= 0]
