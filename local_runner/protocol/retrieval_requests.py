"""Rerank requests of Cohere's and Jina's clients and score requests of vLLM's, as canonical ones."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from local_runner.protocol.openai_errors import in_callers_words
from local_runner.protocol.openai_requests import check_served, cut_at_context
from scoring.errors import InvalidInput, InvalidParameter, MiiAzureError
from scoring.host_api import Deployment

TASKS = ("text-ranking", "sentence-similarity")
_PATHS = ("/v1/rerank", "/v1/score")
_RANKS = TASKS[0]
#: Fields that change no answer.
_MARKS = {"user", "priority"}
#: Values that request nothing; any other value of these fields requests a missing feature.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "rank_fields": (["text"],),
    "max_chunks_per_doc": (),
    "relevant_spans": (),
    "overlap_tokens": (),
}
#: The two fields of a score request, by each of vLLM's names.
_SIDES = (("text_1", "text_2"), ("queries", "documents"), ("data_1", "data_2"))
_RENAMED = {"top_n": "top_k", "instruct": "instruction"}
_PLACE = re.compile(r"inputs(?:\[(\d+)\])?(?:\.(query|source_sentence|texts|sentences))?(?:[.\[](\d+)\]?)?")


def handed_on(path: str, task: str, names: Iterable[str]) -> list[str]:
    """Parameters of a task that a body of this path may name at its top level, as the task names them."""
    return [name for name in names if path in _PATHS and task in TASKS and name not in _MARKS | _NEUTRAL.keys()]


def rerank(sent: dict[str, Any], deployment: Deployment) -> dict[str, Any]:
    """Canonical request for a body of /v1/rerank; long documents are cut unless it says not to, as at Cohere."""
    check_served(sent, deployment, TASKS, "/v1/rerank")
    for name, neutral in _NEUTRAL.items():
        if sent.get(name) is not None and sent[name] not in neutral:
            raise InvalidParameter(f"{name} is not served here.", f'Leave out "{name}".', name)
    if not isinstance(sent.get("return_documents", False), bool | None):
        raise InvalidParameter('"return_documents" must be true or false.', where="return_documents")
    query, documents = sent.get("query"), sent.get("documents")
    if not isinstance(query, str):
        raise InvalidInput("The query must be a text.", where="query")
    if not isinstance(documents, list) or not documents:
        raise InvalidInput("The documents are missing.", 'Send a list of texts, or of {"text": "..."}.', "documents")
    texts = [_text(document, f"documents[{at}]") for at, document in enumerate(documents)]
    parameters = _parameters(sent, {"query", "documents", "return_documents"})
    if not {"truncation", "truncate"} & set(parameters):
        parameters["truncation"] = True
    if deployment.task != _RANKS:
        _best_of(parameters.pop("top_k", None), "top_n")
    return _canonical(_compared(query, texts, deployment), parameters)


def score(sent: dict[str, Any], deployment: Deployment) -> dict[str, Any]:
    """Canonical request for a body of /v1/score: one text with each of a list, or two lists text by text."""
    check_served(sent, deployment, TASKS, "/v1/score")
    names = sides(sent)
    first, second = (_texts(sent.get(name), name) for name in names)
    if len(first) not in (1, len(second)):
        raise InvalidInput(
            f"There are {len(first)} and {len(second)} texts.",
            f"Send one text, or as many as of {names[1]}.",
            names[0],
        )
    parameters = _parameters(sent, set(names))
    if len(first) == 1:
        return _canonical(_compared(first[0], second, deployment), parameters)
    return _canonical(
        [_compared(one, [other], deployment) for one, other in zip(first, second, strict=True)], parameters
    )


def sides(sent: dict[str, Any]) -> tuple[str, str]:
    """Names of the two fields whose texts a body of /v1/score compares."""
    return next((names for names in _SIDES if any(sent.get(name) is not None for name in names)), _SIDES[0])


def _compared(text: str, others: list[str], deployment: Deployment) -> dict[str, Any]:
    """One input of the task: a text, and those that are compared with it."""
    if deployment.task == _RANKS:
        return {"query": text, "texts": others}
    return {"source_sentence": text, "sentences": others}


def _canonical(inputs: Any, parameters: dict[str, Any]) -> dict[str, Any]:
    return {"inputs": inputs, "parameters": parameters, "options": {"usage": True}}


def _best_of(most: Any, where: str) -> int | None:
    if most is not None and (type(most) is not int or most < 1):
        raise InvalidParameter(f"{where} is a number from 1.", where=where)
    return most


def ranked(answer: list[Any], sent: dict[str, Any]) -> list[dict[str, Any]]:
    """Entries of an answer to a rerank request, the best first; cosines come in the documents' order."""
    if isinstance(answer[0], dict):
        return answer
    entries = [{"index": index, "score": score} for index, score in enumerate(answer)]
    return sorted(entries, key=lambda entry: -entry["score"])[: sent.get("top_n")]


def in_order(answer: list[Any]) -> list[float]:
    """Scores of an answer to a score request, in the order of the texts."""
    if isinstance(answer[0], list):  # text by text, each an input with one other text
        return [score for one in answer for score in in_order(one)]
    if isinstance(answer[0], dict):
        return [entry["score"] for entry in sorted(answer, key=lambda entry: entry["index"])]
    return answer


def document(sent: dict[str, Any], index: int) -> dict[str, Any]:
    """A document as an answer returns it."""
    found = sent["documents"][index]
    return found if isinstance(found, dict) else {"text": found}


@contextmanager
def in_words_of(first: str, second: str, paired: bool = False) -> Iterator[None]:
    """Name the caller's fields in errors raised inside: the text's, and that of the texts compared with it.

    `paired`: each text of the one field is compared with one of the other.
    """
    try:
        yield
    except MiiAzureError as error:
        name = error.where.removeprefix("parameters.")
        if name != error.where:
            error.where = "top_n" if name == "top_k" else name
            error.hint = in_callers_words(error.hint)
        elif found := _PLACE.match(error.where):
            error.hint = in_callers_words(error.hint)
            item, part, index = found.groups()
            number = item if paired else index
            own = first if part in ("query", "source_sentence") else second
            bare = number is None or (own == first and not paired)
            error.where = own if bare else f"{own}[{number}]"
        raise


def _parameters(sent: dict[str, Any], read: set[str]) -> dict[str, Any]:
    done = {"model", "truncate_prompt_tokens", *read, *_MARKS, *_NEUTRAL}
    own = {_RENAMED.get(name, name): value for name, value in sent.items() if value is not None and name not in done}
    return own | cut_at_context(sent)


def _text(document: Any, where: str) -> str:
    text = document.get("text") if isinstance(document, dict) else document
    if not isinstance(text, str):
        raise InvalidInput('A document is a text, or an object with one under "text".', where=where)
    return text


def _texts(value: Any, where: str) -> list[str]:
    texts = value if isinstance(value, list) else [value]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise InvalidInput(f"{where} must be a text, or a list of texts.", where=where)
    return texts
