"""vLLM's requests for tokens as those that the scoring script answers."""

from typing import Any

from local_runner.protocol.openai_requests import check_served
from scoring.host_api import Deployment

#: What a conversation's prompt depends on; a value that asks for nothing need not be known to the script.
_PROMPT = {
    "add_generation_prompt": True,
    "continue_final_message": False,
    "chat_template_kwargs": {},
    "tools": [],
    "reasoning_effort": None,
}
_READ = {"model", "prompt", "messages", "tokens", "add_special_tokens", "return_token_strs", *_PROMPT}


def tokenize(sent: dict[str, Any], deployment: Deployment) -> dict[str, Any]:
    """Request for a body of /v1/tokenize: a prompt, or messages."""
    check_served(sent, deployment, (deployment.task,), "/v1/tokenize")
    given = {name: value for name, value in sent.items() if value is not None}
    rest = {name: value for name, value in given.items() if name not in _READ}
    asked: dict[str, Any] = {name: given[name] for name in ("prompt", "messages", "return_token_strs") if name in given}
    if "messages" not in given:
        rest |= {name: given[name] for name in ("add_special_tokens", *_PROMPT) if name in given}
        return {"mii_azure": "tokenize", **asked, **rest}
    if given.get("add_special_tokens"):  # the template writes them
        rest["add_special_tokens"] = True
    own = {name: given[name] for name, usual in _PROMPT.items() if name in given and given[name] != usual}
    return {"mii_azure": "tokenize", **asked, **rest, "parameters": own}


def detokenize(sent: dict[str, Any], deployment: Deployment) -> dict[str, Any]:
    """Request for a body of /v1/detokenize."""
    check_served(sent, deployment, (deployment.task,), "/v1/detokenize")
    return {"mii_azure": "detokenize", **{name: value for name, value in sent.items() if name != "model"}}
