"""A server that adapters come to and leave, and the answers of peft that it is held to."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import openai
import torch

from local_runner.process.launch import LOOPBACK, Runner
from tests.tiny_models import load_tiny
from tests.waiting import until

TASK, KEY = "text-generation", "a-key-of-the-tests-0123456789abcdef"
#: Long enough for what is held of its beginning to be used again.
PROMPT = "The house is wonderful and the old bridge over the river was closed until noon on Monday."
TOKENS = 12


@dataclass(frozen=True)
class Models:
    """A base, adapters of it under one root, and its bundle, which has one adapter of its own."""

    base: Path
    root: Path
    bundle: Path

    def text(self, name: str, tokens: int = TOKENS) -> str:
        """What peft makes of the prompt with the adapter of a folder, or the base without one."""
        return text_by_peft(self.base, self.root / name if name else None, tokens)


@cache
def text_by_peft(base: Path, adapter: Path | None, tokens: int) -> str:
    import peft

    model, tokenizer = load_tiny(base, TASK)
    if adapter is not None:
        model = peft.PeftModel.from_pretrained(model, adapter)
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        made = model.eval().generate(input_ids=ids, max_new_tokens=tokens, do_sample=False, pad_token_id=0)
    return str(tokenizer.decode(made[0][ids.shape[1] :], skip_special_tokens=True))


@dataclass
class Server:
    """A server that takes calls, and its operator's settings."""

    runner: Runner
    settings: Path

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.runner.http_port}"

    def post(self, path: str, body: Mapping[str, Any], key: str = KEY) -> httpx.Response:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return httpx.post(self.url + path, json=body, headers=headers, timeout=120, trust_env=False)

    def load(self, name: str, path: str, **more: Any) -> httpx.Response:
        return self.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": path, **more})

    def unload(self, name: str) -> httpx.Response:
        return self.post("/v1/unload_lora_adapter", {"lora_name": name})

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url + "/v1", api_key=KEY, max_retries=0, timeout=120)

    def text(self, model: str, tokens: int = TOKENS) -> str:
        made = self.client().completions.create(model=model, prompt=PROMPT, max_tokens=tokens, temperature=0)
        return made.choices[0].text

    def names(self) -> list[str]:
        return [model.id for model in self.client().models.list()]

    def metadata(self) -> Any:
        return self.post("/score", {"mii_azure": "metadata"}).json()

    def everywhere(self, ask: Callable[[], Any]) -> list[Any]:
        """What several calls give, which all processes behind the port are asked by."""
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(lambda _: ask(), range(8)))

    def hang_up(self, settings: Mapping[str, Any]) -> str:
        """Send SIGHUP with these settings; return what the server then says."""
        self.settings.write_text(json.dumps(settings))
        before = len(self._lines())
        os.kill(self.runner.process.pid, signal.SIGHUP)
        words = ("reloaded:", "not reloaded:")
        return until(lambda: next((line for line in self._lines()[before:] if line.startswith(words)), ""))

    def _lines(self) -> list[str]:
        return self.runner.log.read_text(encoding="utf-8").splitlines()
