"""/v1/tokenize and /v1/detokenize over a real bundle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx

from local_runner.process.launch import Runner

SAID = [{"role": "user", "content": "the quick brown fox"}]


def test_vllms_bodies_are_taken(real: Callable[[str], Runner]) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{real('chat').http_port}", timeout=60) as http:

        def ask(path: str, **body: Any) -> httpx.Response:
            return http.post(path, json=body)

        bare = ask(
            "/v1/tokenize", model="chat", prompt="a fox", add_special_tokens=False, return_token_strs=True
        ).json()
        assert bare["count"] == len(bare["tokens"]) == len(bare["token_strs"])
        whole = ask("/tokenize", prompt="a fox", add_generation_prompt=None).json()
        assert whole["tokens"][-bare["count"] :] == bare["tokens"] and whole["token_strs"] is None
        assert ask("/v1/detokenize", model="chat", tokens=bare["tokens"]).json()["prompt"].strip() == "a fox"
        said = ask("/v1/tokenize", messages=SAID, add_generation_prompt=True, add_special_tokens=False).json()
        answer = http.post("/v1/chat/completions", json={"messages": SAID, "max_tokens": 1}).json()
        assert said["count"] == answer["usage"]["prompt_tokens"]
        for path, body, status, param in (
            ("/v1/tokenize", {"prompt": ["a"]}, 400, "prompt"),
            ("/v1/tokenize", {"messages": SAID, "add_special_tokens": True}, 400, "add_special_tokens"),
            ("/v1/tokenize", {"messages": SAID, "other": 1}, 400, "other"),
            ("/v1/tokenize", {"prompt": "a", "model": "gpt-4"}, 404, "model"),
            ("/v1/detokenize", {"tokens": [10**9]}, 400, "tokens[0]"),
            ("/v1/detokenize", {"prompt": "a"}, 400, "tokens"),
        ):
            refused = http.post(path, json=body)
            assert (refused.status_code, refused.json()["error"]["param"]) == (status, param), refused.text
