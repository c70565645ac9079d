"""Requests of the Hub's inference clients for summaries and translations as canonical ones.

Source of the names: the types that huggingface_hub generates from its API's description.
"""

import json
from typing import Any

from scoring.errors import InvalidJson, InvalidParameter
from scoring.host_api import read_json

TASKS = ("summarization", "translation")
#: Strategies of truncation: there is one text, so that it is the first and the longest.
_TRUNCATIONS = {"do_not_truncate": False, "longest_first": True, "only_first": True}


def canonical(raw: str, task: str) -> str:
    """Body with that API's parameters under their names here; as it is where it has none of them.

    Raises InvalidParameter for a value that has no meaning here.
    """
    try:
        sent = read_json(raw)
    except InvalidJson:
        return raw
    given = sent.get("parameters") if isinstance(sent, dict) else None
    if not isinstance(given, dict) or not {"generate_parameters", "truncation"} & given.keys():
        return raw
    return json.dumps({**sent, "parameters": _parameters(given, task)}, ensure_ascii=False)


def _parameters(given: dict[str, Any], task: str) -> dict[str, Any]:
    parameters = dict(given)
    inner = parameters.pop("generate_parameters", None)
    if not isinstance(inner, dict | None):
        raise InvalidParameter("They are a JSON object.", where="parameters.generate_parameters")
    strategy = parameters.get("truncation")
    if strategy == "only_second":
        raise InvalidParameter(
            f"There is no second text in {task}.", "Choose longest_first.", where="parameters.truncation"
        )
    if isinstance(strategy, str) and strategy in _TRUNCATIONS:
        parameters["truncation"] = _TRUNCATIONS[strategy]
    return {**(inner or {}), **parameters}
