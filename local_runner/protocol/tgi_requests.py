"""Requests of text-generation-inference's clients as canonical ones, for deployments that generate text.

Its parameters have the meanings that they have there; one that cannot be honoured is refused. Source of the names: the
types that huggingface_hub generates from its OpenAPI document.
"""

from typing import Any

from scoring.errors import InvalidInput, InvalidParameter
from scoring.host_api import Deployment

TASK = "text-generation"
#: Values that ask for nothing; any other value of these parameters asks for a missing feature.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "adapter_id": (),
    "best_of": (1,),
    "watermark": (False,),
}
_RENAMED = {"details": "return_details", "truncate": "truncate_prompt_tokens"}
#: Canonical parameters for the kinds of `grammar`.
_GRAMMARS = {"json": "guided_json", "regex": "guided_regex", "json_schema": "guided_json"}


def canonical(sent: dict[str, Any], deployment: Deployment, stream: bool, full: bool) -> dict[str, Any]:
    """Canonical request for a body with "inputs" and "parameters".

    `full` is for the clients that send to /: texts have the prompt in front if unasked, and there may be several.
    Raises InvalidInput for another task or form, InvalidParameter for what is not served.
    """
    if deployment.task != TASK:
        raise InvalidInput(f"This deployment serves {deployment.task}.", "/score takes every task.")
    if unknown := sorted(set(sent) - {"inputs", "parameters", "stream"}):
        raise InvalidInput(f"Unknown field {unknown[0][:80]!r}.", 'Send "inputs" and "parameters".', unknown[0][:80])
    if not isinstance(sent.get("inputs"), str):
        raise InvalidInput("The inputs must be a text.", 'Send {"inputs": "..."}.', "inputs")
    given = sent.get("parameters")
    if not isinstance(given, dict | None):
        raise InvalidInput("Parameters must be a JSON object.", where="parameters")
    parameters = {"return_full_text": full, **_parameters(_with_adapter(given or {}, deployment))}
    if (stream or not full) and parameters.get("num_return_sequences") not in (None, 1):
        raise InvalidParameter(
            "There is one answer here.",
            "Leave it out, or ask /score for several.",
            where="parameters.num_return_sequences",
        )
    if stream:
        parameters["return_details"] = True  # each event has its token's id and log-probability
    head = {"inputs": sent["inputs"], "parameters": parameters, "options": {"usage": True}}
    return {**head, **({"stream": True} if stream else {})}


def _with_adapter(given: dict[str, Any], deployment: Deployment) -> dict[str, Any]:
    """Parameters with `adapter_id` under its name here, if the deployment has adapters beside its model."""
    named = {"adapter": given["adapter_id"]} if deployment.beside and given.get("adapter_id") else {}
    return {name: value for name, value in given.items() if not (named and name == "adapter_id")} | named


def _parameters(sent: dict[str, Any]) -> dict[str, Any]:
    given = {name: value for name, value in sent.items() if value is not None and (name, value) != ("stop", [])}
    for name, neutral in _NEUTRAL.items():
        if name in given and not any(given[name] is value for value in neutral):
            raise InvalidParameter(f"{name} is not served here.", f'Leave out "{name}".', f"parameters.{name}")
        given.pop(name, None)
    if not given.get("details"):
        given.pop("top_n_tokens", None)  # as there: told only in details
    for theirs, ours in _RENAMED.items():
        if theirs in given:
            given[ours] = given.pop(theirs)
    if given.pop("decoder_input_details", False) and given.get("return_details"):
        given["prompt_logprobs"] = 0
    if "grammar" in given:
        given |= _grammar(given.pop("grammar"))
    return given


def _grammar(grammar: Any) -> dict[str, Any]:
    kind = grammar.get("type") if isinstance(grammar, dict) else None
    if kind not in _GRAMMARS or grammar.get("value") is None:
        raise InvalidParameter(
            "A grammar has a type and a value.", f"Types are {', '.join(_GRAMMARS)}.", "parameters.grammar"
        )
    value = grammar["value"]
    if kind == "json_schema":
        if not isinstance(value, dict) or not isinstance(value.get("schema"), dict):
            raise InvalidParameter(
                'The value of a json_schema holds a "schema".', where="parameters.grammar.value.schema"
            )
        value = value["schema"]
    return {_GRAMMARS[kind]: value}
