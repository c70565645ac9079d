"""Chats of a model whose tokens include marks of calls and thoughts, over HTTP: as plain transformers answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, AutoTokenizer

import mii_azure
from local_runner.process.launch import LOOPBACK, Runner
from tests import tiny_tokenizers
from tests.tiny_causal import tiny_causal

TASK = "conversational"
MARKS = ("<|tool_call>", "<tool_call|>", '<|"|>', "<|channel>", "<channel|>")
TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}<|tool_call>call:f{}<tool_call|>{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    "{% if enable_thinking is defined and enable_thinking %}<|channel>thought\n<channel|>{% endif %}"
)
TOKENS, CHATS = 24, 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Gemma 4 that often generates marks where none belongs."""
    target = tmp_path_factory.mktemp("marks") / "model"
    tokenizer = tiny_tokenizers.gemma(128)
    tokenizer.add_tokens([AddedToken(mark, special=True, normalized=False) for mark in MARKS], special_tokens=True)
    tokenizer.chat_template = TEMPLATE
    size, ids = len(tokenizer), ("pad_token_id", "bos_token_id", "eos_token_id")
    named = {name: getattr(tokenizer, name) for name in ids}
    model = tiny_causal("gemma4_text", vocab_size=size, vocab_size_per_layer_input=size, **named)
    model.get_output_embeddings().weight.data[-len(MARKS) :] *= 3
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return target


@pytest.fixture(scope="module")
def url(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    bundle = mii_azure.generate(TASK, str(folder), "marks", output=tmp_path_factory.mktemp("bundle") / "marks")
    with Runner(bundle, arguments=("--drain-seconds", "1")) as runner:
        yield f"http://{LOOPBACK}:{runner.http_port}"


def chats() -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": f"{'word ' * (number % 5)}{number}"}] for number in range(CHATS)]


def expected(folder: Path) -> tuple[list[str], int]:
    """What `generate` answers, and the number of answers with marks."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    marks, texts, marked = set(tokenizer.convert_tokens_to_ids(list(MARKS))), [], 0
    for chat in chats():
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        with torch.inference_mode():
            made = model.generate(**ids, max_new_tokens=TOKENS, do_sample=False)[0, ids["input_ids"].shape[1] :]
        marked += bool(marks & set(made.tolist()))
        texts.append(tokenizer.decode(made, skip_special_tokens=True))
    return texts, marked


def asked(url: str, chat: list[dict[str, str]], stream: bool, **more: Any) -> str:
    body = {"model": "marks", "messages": chat, "max_tokens": TOKENS, "temperature": 0, "stream": stream, **more}
    reply = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)
    assert reply.status_code == 200, reply.text
    if not stream:
        return str(reply.json()["choices"][0]["message"]["content"] or "")
    lines = [line.removeprefix("data: ") for line in reply.text.splitlines() if line.startswith("data: {")]
    return "".join(json.loads(line)["choices"][0]["delta"].get("content") or "" for line in lines)


@pytest.mark.parametrize("thinks", [True, False])
def test_stray_marks_are_in_no_answer(folder: Path, url: str, thinks: bool) -> None:
    """Half of the chats streamed; `thinks` tells whether an answer is parsed for a thought."""
    texts, marked = expected(folder)
    assert marked >= CHATS // 4
    more = {} if thinks else {"chat_template_kwargs": {"enable_thinking": False}}
    with ThreadPoolExecutor(CHATS) as pool:
        sent = [pool.submit(asked, url, chat, number % 2 == 1, **more) for number, chat in enumerate(chats())]
        answers = [each.result() for each in sent]
    assert answers == texts
