"""Adapters loaded and unloaded by calls, in the shape of vLLM's clients; there only where the operator allows them."""

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse

from local_runner.host.host import Host
from scoring.errors import InvalidInput, InvalidParameter
from scoring.host_api import UnloadAdapter

#: Fields of vLLM's that name an adapter by a number, or say what kind it is, which is read from its files.
_IDLE = ("lora_int_id", "base_model_name", "is_3d_lora_weight")


def add(app: FastAPI, host: Host, body: Callable[[Request], Any]) -> None:
    """Add the routes, if this server takes such calls; `body` reads a request's JSON object within the limits."""
    if not host.adapter_policy.calls:
        return

    @app.post("/v1/load_lora_adapter", summary="Load a LoRA adapter")
    async def load(request: Request) -> PlainTextResponse:
        name, path, again = _asked(await body(request), "lora_name", "lora_path")
        await host.change_adapters(host.adapter_policy.load(host.deployment, name, path, again))
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    @app.post("/v1/unload_lora_adapter", summary="Unload a LoRA adapter")
    async def unload(request: Request) -> PlainTextResponse:
        name, *_ = _asked(await body(request), "lora_name")
        await host.change_adapters(UnloadAdapter(name))
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")


def _asked(sent: dict[str, Any], *fields: str) -> tuple[str, str, bool]:
    """Name, path and whether it replaces one of its name; raises InvalidInput or InvalidParameter with the field."""
    known = {*fields, *_IDLE, *(("load_inplace",) if "lora_path" in fields else ())}
    if unknown := next((name for name in sent if name not in known), ""):
        raise InvalidParameter(f"Unknown parameter {unknown[:80]!r}.", f"There are {', '.join(fields)}.", unknown[:80])
    for field in fields:
        if not isinstance(sent.get(field), str) or not sent[field]:
            raise InvalidInput(f"{field} is not a text.", f"Send {' and '.join(fields)}.", field)
    again = sent.get("load_inplace", False)
    if not isinstance(again, bool):
        raise InvalidParameter("load_inplace is neither true nor false.", where="load_inplace")
    return sent["lora_name"], sent.get("lora_path", ""), again
