"""text-embeddings-inference's requests as canonical ones; what is not read here goes on as a parameter of the task."""

from typing import Any

from local_runner.protocol.openai_requests import check_served
from scoring.errors import InvalidInput, InvalidParameter
from scoring.host_api import Deployment

#: Routes of its own; errors there take its shape.
PATHS = ("/embed", "/embed_sparse", "/rerank", "/predict", "/similarity")
_EMBEDDING = ("sentence-embeddings", "feature-extraction")
_RANKING, _CLASSIFYING, _COMPARING = "text-ranking", "text-classification", "sentence-similarity"


def embed(sent: dict[str, Any], deployment: Deployment) -> dict[str, Any]:
    """Canonical request for a body of /embed; as there, vectors have unit length unless it says not."""
    check_served(sent, deployment, _EMBEDDING, "/embed")
    if deployment.task_options.get("form"):
        raise InvalidInput(
            "This model's vectors are no lists of numbers.",
            "Send the texts to /score, or sparse ones to /embed_sparse.",
            "inputs",
        )
    usual: dict[str, Any] = {"normalize": True}
    if deployment.task == "feature-extraction":
        usual["pooling"] = "model"
    return {"inputs": _embedded(sent), "parameters": usual | _others(sent, "inputs")}


def embed_sparse(sent: dict[str, Any], deployment: Deployment) -> dict[str, Any]:
    """Canonical request for a body of /embed_sparse."""
    check_served(sent, deployment, _EMBEDDING, "/embed_sparse")
    if deployment.task_options.get("form") != "sparse":
        raise InvalidInput("This model's vectors are not sparse.", "Send the texts to /embed or /score.", "inputs")
    others = _others(sent, "inputs")
    if others.get("sparse_keys", "index") != "index":
        raise InvalidParameter("The weights here are told by their indices.", "Use /score.", "sparse_keys")
    return {"inputs": _embedded(sent), "parameters": others}


def sparse_values(vector: dict[str, float]) -> list[dict[str, Any]]:
    """Weights of a sparse vector in that server's form, by index."""
    return sorted(({"index": int(index), "value": value} for index, value in vector.items()), key=lambda w: w["index"])


def _embedded(sent: dict[str, Any]) -> list[Any]:
    """Texts of a body, or their token ids; raises InvalidInput for anything else."""
    given = sent.get("inputs")
    inputs = given if isinstance(given, list) and not _is_tokens(given) else [given]
    if not inputs or not all(isinstance(each, str) or _is_tokens(each) for each in inputs):
        raise InvalidInput("The inputs must be a text, its token ids, or a list of either.", where="inputs")
    return inputs


def rerank(sent: dict[str, Any], deployment: Deployment) -> dict[str, Any]:
    """Canonical request for a body of /rerank."""
    check_served(sent, deployment, (_RANKING,), "/rerank")
    texts = sent.get("texts")
    if not isinstance(texts, list) or not texts:
        raise InvalidInput("The texts are missing.", 'Send {"query": "...", "texts": ["..."]}.', "texts")
    return {
        "inputs": {"query": sent.get("query"), "texts": texts},
        "parameters": _cut_right(_others(sent, "query", "texts")),
    }


def predict(sent: dict[str, Any], deployment: Deployment) -> dict[str, Any]:
    """Canonical request for a body of /predict: a text, a pair of texts, or a list of lists of one or two."""
    check_served(sent, deployment, (_CLASSIFYING,), "/predict")
    given = sent.get("inputs")
    several = isinstance(given, list) and bool(given) and all(isinstance(each, list) for each in given)
    parts = [_classified(each, f"inputs[{at}]") for at, each in enumerate(given)] if several and given else None
    others = _cut_right(_others(sent, "inputs"))
    if (raw := others.pop("raw_scores", None)) is not None:
        if not isinstance(raw, bool):
            raise InvalidParameter('"raw_scores" must be true or false.', where="raw_scores")
        others |= {"function_to_apply": "none"} if raw else {}
    if "truncate" in others:
        others["truncation"] = others.pop("truncate")
    return {"inputs": parts or _classified(given, "inputs"), "parameters": {"top_k": None, **others}}


def similarity(sent: dict[str, Any], deployment: Deployment) -> dict[str, Any]:
    """Canonical request for a body of /similarity, which is one already."""
    check_served(sent, deployment, (_COMPARING,), "/similarity")
    return {"inputs": sent.get("inputs"), "parameters": sent.get("parameters") or {}}


def _classified(given: Any, where: str) -> Any:
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or len(texts) not in (1, 2) or not all(isinstance(text, str) for text in texts):
        raise InvalidInput("An input is a text, or a list of one or two.", where=where)
    return texts[0] if len(texts) == 1 else {"text": texts[0], "text_pair": texts[1]}


def _others(sent: dict[str, Any], *read: str) -> dict[str, Any]:
    return {name: value for name, value in sent.items() if name not in ("model", *read) and value is not None}


def _cut_right(others: dict[str, Any]) -> dict[str, Any]:
    """Parameters without the side at which texts are cut, where that is the usual one; another is refused later."""
    usual = others.get("truncation_direction") in ("Right", "right")
    return {name: value for name, value in others.items() if not (usual and name == "truncation_direction")}


def _is_tokens(given: Any) -> bool:
    return isinstance(given, list) and bool(given) and all(type(each) is int for each in given)
