"""question-answering against a brute force over plain transformers outputs; transformers 5 has no pipeline for it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from scoring.config import Limits
from tests.conftest import Tiny
from tests.scoring.conftest import Serve
from tests.scoring.encoders import ENCODERS, LONG, TEXTS, assert_agree, random_model
from tests.tiny_models import load_tiny

TASK = "question-answering"
QUESTION = "Where does Anna live?"
#: Several windows of 128 tokens; accents, and symbols that no tiny vocabulary has.
CONTEXT = "Anna Müller lives in Zürich with her brother Paul. Das Haus ist schön, 名前 😀! " * 6
CONTEXTS = ["Seattle", "My name is John and I live in Seattle.", TEXTS[2], TEXTS[3], CONTEXT]
Answer = dict[str, Any]


class Reference:
    """Every window, every span, in straight loops; no array arithmetic."""

    def __init__(self, folder: Path) -> None:
        self.model, self.tokenizer = load_tiny(folder, TASK)

    def answers(
        self,
        question: str,
        context: str,
        top_k: int = 1,
        max_seq_len: int = 128,
        doc_stride: int = 64,
        max_answer_len: int = 15,
        handle_impossible_answer: bool = False,
        align_to_words: bool = True,
    ) -> list[Answer]:
        windows = self.tokenizer(
            question,
            context,
            truncation="only_second",
            max_length=max_seq_len,
            stride=doc_stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_token_type_ids=True,
        )
        words = self.words(context) if align_to_words else None
        best: dict[tuple[int, int], float] = {}
        null = math.inf
        for number in range(len(windows["input_ids"])):
            starts, ends, spans = self.read(windows, number, max_answer_len)
            null = min(null, starts[0] * ends[0])
            for (i, j), (first, last) in spans.items():
                span = (first[0], last[1]) if words is None else (words[first][0], words[last][1])
                if span[0] < span[1]:
                    best[span] = max(best.get(span, 0.0), starts[i] * ends[j])
        answers = [
            {"score": score, "start": start, "end": end, "answer": context[start:end]}
            for (start, end), score in best.items()
        ]
        if handle_impossible_answer:
            answers.append({"score": null, "start": 0, "end": 0, "answer": ""})
        return sorted(answers, key=lambda answer: answer["score"], reverse=True)[:top_k]

    def read(self, windows: Any, number: int, longest: int) -> tuple[Any, Any, dict[tuple[int, int], Any]]:
        """Probabilities by position, and the characters of the first and last token of every allowed span."""
        offsets = windows["offset_mapping"][number]
        places = {i: offsets[i] for i, sequence in enumerate(windows.sequence_ids(number)) if sequence == 1}
        starts, ends = self.probabilities(windows, number, [0, *places])
        pairs = [(i, j) for i in places for j in range(i, i + longest) if j in places]
        return starts, ends, {(i, j): (places[i], places[j]) for i, j in pairs}

    def probabilities(self, windows: Any, number: int, allowed: list[int]) -> tuple[dict[int, float], dict[int, float]]:
        """Softmax over the allowed positions of one window, of the start and of the end logits."""
        features = {"input_ids": windows["input_ids"][number]}
        if self.model.config.model_type in ("bert", "albert", "electra", "deberta-v2"):
            features["token_type_ids"] = windows["token_type_ids"][number]
        with torch.no_grad():
            output = self.model(**{name: torch.tensor([ids]) for name, ids in features.items()})
        found = []
        for logits in (output.start_logits[0].tolist(), output.end_logits[0].tolist()):
            powers = {i: math.exp(logits[i]) for i in allowed}
            total = sum(powers.values())
            found.append({i: power / total for i, power in powers.items()})
        return found[0], found[1]

    def words(self, context: str) -> dict[tuple[int, int], tuple[int, int]]:
        """For each token's characters in the context, those of its word."""
        encoded = self.tokenizer(context, add_special_tokens=False, return_offsets_mapping=True)
        spans: dict[int, list[tuple[int, int]]] = {}
        for word, offsets in zip(encoded.word_ids(0), encoded["offset_mapping"], strict=True):
            spans.setdefault(word, []).append(offsets)
        return {part: (parts[0][0], parts[-1][1]) for parts in spans.values() for part in parts}


def ask(context: str, question: str = QUESTION) -> dict[str, str]:
    return {"question": question, "context": context}


def assert_same(actual: Any, expected: list[Answer], context: str) -> None:
    """Equal spans and scores; a top_k of 1 answers with an object."""
    assert_agree(actual if isinstance(actual, list) else [actual], expected)
    for answer in expected:
        assert context[answer["start"] : answer["end"]] == answer["answer"]


@pytest.mark.parametrize("family", ENCODERS)
def test_served_equals_brute_force(family: str, tiny: Tiny, serve: Serve) -> None:
    served, reference = serve(tiny(family, TASK), TASK), Reference(tiny(family, TASK))
    for context in CONTEXTS:
        for parameters in ({}, {"top_k": 3}, {"top_k": 3, "align_to_words": False}):
            actual = served.ok(ask(context), **parameters)
            assert isinstance(actual, dict) == ("top_k" not in parameters)
            assert_same(actual, reference.answers(QUESTION, context, **parameters), context)


@pytest.mark.parametrize("family", ENCODERS)
def test_batched_equals_single(family: str, tiny: Tiny, serve: Serve) -> None:
    served = serve(tiny(family, TASK), TASK)
    inputs = [ask(context) for context in CONTEXTS]
    parameters = {"top_k": 2, "handle_impossible_answer": True}
    assert_agree(served.ok(inputs, **parameters), [served.ok(value, **parameters) for value in inputs])


@pytest.mark.parametrize(
    "parameters",
    [
        {"max_answer_len": 1},
        {"max_answer_len": 4, "align_to_words": False},
        {"max_seq_len": 40, "doc_stride": 10},
        {"max_seq_len": 64, "doc_stride": 0, "align_to_words": False},
        {"max_seq_len": 100, "doc_stride": 60, "handle_impossible_answer": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("family", ["bert", "roberta", "deberta-v2"])
def test_parameters(family: str, parameters: dict[str, Any], tiny: Tiny, serve: Serve) -> None:
    served, reference = serve(tiny(family, TASK), TASK), Reference(tiny(family, TASK))
    expected = reference.answers(QUESTION, CONTEXT, top_k=5, **parameters)
    assert_same(served.ok(ask(CONTEXT), top_k=5, **parameters), expected, CONTEXT)


def test_a_window_never_stands_still(tiny: Tiny, serve: Serve) -> None:
    """Beside a long question, half a window of overlap is more than a window has of context; then half of that."""
    served, reference = serve(tiny("bert", TASK), TASK), Reference(tiny("bert", TASK))
    question = "What is the capital of France and who wanted to know everything?"
    asked = len(reference.tokenizer(question)["input_ids"]) + 1
    length = 2 * asked - 4
    room = length - asked
    assert room < length // 2
    expected = reference.answers(question, CONTEXT, max_seq_len=length, doc_stride=room // 2)
    assert_same(served.ok(ask(CONTEXT, question), max_seq_len=length), expected, CONTEXT)


def test_impossible(tiny: Tiny, serve: Serve) -> None:
    """The empty answer takes its place among the others, and is there only when asked for."""
    context = f"{CONTEXT} John works at a school in Madrid."
    served, reference = serve(tiny("bert", TASK), TASK), Reference(tiny("bert", TASK))
    everything = {"top_k": 10**6, "handle_impossible_answer": True}
    answers = served.ok(ask(context), **everything)
    assert_same(answers, reference.answers(QUESTION, context, **everything), context)
    assert [answer["answer"] for answer in answers].count("") == 1
    assert all(answer["answer"] for answer in served.ok(ask(context), top_k=10**6))


def test_impossible_in_every_window(tiny: Tiny, serve: Serve, tmp_path: Path) -> None:
    """Its score is the smallest of the windows', here that of a full one; the last one is shorter and so surer."""
    folder = undecided_model(tiny("bert", TASK), tmp_path)
    served = serve(folder, TASK)
    (expected,) = Reference(folder).answers(QUESTION, CONTEXT, handle_impossible_answer=True)
    assert (expected["answer"], round(expected["score"], 2)) == ("", 0.32)  # (e^5 / (e^5 + 113)) ** 2
    assert_agree(served.ok(ask(CONTEXT), handle_impossible_answer=True), expected)
    assert served.ok(ask(CONTEXT))["answer"]
    assert served({"input_data": ask(CONTEXT), "params": {"handle_impossible_answer": True}}) == (200, [""])


def undecided_model(source: Path, folder: Path) -> Path:
    """A model that finds every token alike but the first, which it finds e^5 as likely as another."""
    model, tokenizer = load_tiny(source, TASK)
    with torch.no_grad():
        for parameter in (*model.bert.embeddings.parameters(), *model.bert.encoder.parameters()):
            parameter.zero_()
        for name, parameter in model.bert.named_parameters():
            if name.endswith("LayerNorm.weight"):
                parameter.fill_(1.0)
        # Layer normalisation makes ±(1, -1, 1, -1, ...) of the position embedding and keeps it through the layers.
        signs = torch.tensor([1.0, -1.0] * 16)
        model.bert.embeddings.position_embeddings.weight.copy_(-signs.expand(128, 32))
        model.bert.embeddings.position_embeddings.weight[0] = signs
        model.qa_outputs.weight.copy_(signs.expand(2, 32) * 5 / 64)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_the_context_may_come_first(tiny: Tiny, serve: Serve, tmp_path: Path) -> None:
    """Models whose tokenizer pads on the left were trained with the context before the question."""
    model, tokenizer = load_tiny(tiny("bert", TASK), TASK)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "padding_side": "left"}))
    served = serve(tmp_path, TASK)
    (row,) = served.service.task.encode(*encodable(served, ask("Anna lives in Bern.")), 0)
    read = tokenizer.decode(row.features["input_ids"], skip_special_tokens=True)
    assert read.startswith("anna lives") and read.endswith("live?")
    answer = served.ok(ask(CONTEXT))
    assert CONTEXT[answer["start"] : answer["end"]] == answer["answer"]


def encodable(served: Any, value: Any) -> tuple[Any, Any]:
    schema = served.service.task.schema
    return schema.parse_input(value, ""), schema.parse_parameters({})


def test_a_long_question_is_cut(tiny: Tiny, serve: Serve) -> None:
    served, reference = serve(tiny("bert", TASK), TASK), Reference(tiny("bert", TASK))
    question = LONG[:400]
    offsets = reference.tokenizer(question, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    expected = reference.answers(question[: offsets[19][1]], CONTEXTS[1])
    assert_same(served.ok(ask(CONTEXTS[1], question), max_question_len=20), expected, CONTEXTS[1])
    assert served.ok(ask(CONTEXTS[1], LONG))["answer"]


def test_decoders_have_no_classification_token(tiny: Tiny, serve: Serve, tmp_path: Path) -> None:
    folder = random_model(tiny("gpt2", "text-generation"), TASK, tmp_path / "model")
    answers = serve(folder, TASK).ok([ask(context) for context in CONTEXTS], top_k=50, handle_impossible_answer=True)
    for context, found in zip(CONTEXTS, answers, strict=True):
        assert all(context[answer["start"] : answer["end"]] == answer["answer"] for answer in found)
        assert [answer["score"] for answer in found if not answer["answer"]] in ([0.0], [])


def test_azure_forms(tiny: Tiny, serve: Serve) -> None:
    served = serve(tiny("bert", TASK), TASK)
    contexts = CONTEXTS[:2]
    words = [answer["answer"] for answer in served.ok([ask(context) for context in contexts])]
    assert served({"input_data": ask(contexts[0])}) == (200, words[:1])
    columns = {"question": [QUESTION] * 2, "context": contexts}
    assert served({"input_data": columns}) == (200, words)
    assert served({"inputs": columns}) == (200, words)
    table = {"columns": ["question", "context"], "data": [[QUESTION, context] for context in contexts]}
    assert served({"input_data": table}) == (200, words)
    status, (several,) = served({"input_data": ask(contexts[1]), "params": {"top_k": 3}})
    assert (status, len(several)) == (200, 3)


@pytest.mark.parametrize(
    ("inputs", "parameters", "code", "where"),
    [
        (ask(" \t\n"), {}, "invalid_input", "inputs[0].context"),
        ([ask("Bern"), ask("\u200b\u200b")], {}, "invalid_input", "inputs[1].context"),
        ({"question": "Who?"}, {}, "invalid_input", "inputs.context"),
        (ask("", "Who?"), {}, "invalid_input", "inputs.context"),
        ("Who?", {}, "invalid_input", "inputs"),
        (ask(CONTEXT, LONG), {"max_seq_len": 60}, "prompt_too_long", "inputs[0].question"),
        (ask(CONTEXT), {"doc_stride": 120}, "invalid_parameter", "parameters.doc_stride"),
        (ask(CONTEXT * 20), {"doc_stride": 112}, "invalid_input", "inputs[0].context"),
        (ask(CONTEXT), {"max_answer_len": 0}, "invalid_parameter", "parameters.max_answer_len"),
        (ask(CONTEXT), {"top_k": 1.0}, "invalid_parameter", "parameters.top_k"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_requests(inputs: Any, parameters: dict[str, Any], code: str, where: str, tiny: Tiny, serve: Serve) -> None:
    error = serve(tiny("bert", TASK), TASK).refused(inputs, **parameters)
    assert (error["code"], error["where"]) == (code, where)


def test_more_windows_than_the_queue_holds(tiny: Tiny, serve: Serve) -> None:
    served = serve(tiny("bert", TASK), TASK, limits=Limits(queue_size=2))
    assert "the 2 that one may have" in served.refused(ask(CONTEXT * 3))["message"]
