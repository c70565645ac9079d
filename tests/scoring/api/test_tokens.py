"""Requests for tokens, against plain transformers' tokenizers."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.conftest import Tiny
from tests.scoring.conftest import Serve
from tests.scoring.encoders import LONG, TEXTS

MODELS = [
    ("bert", "text-classification"),
    ("llama", "conversational"),
    ("t5", "translation"),
    ("gpt2", "text-generation"),
]
SAID = [{"role": "user", "content": "the quick brown fox"}]


@pytest.mark.parametrize(("family", "task"), MODELS)
def test_tokens_are_the_tokenizers_and_come_back_as_text(family: str, task: str, tiny: Tiny, serve: Serve) -> None:
    served, tokenizer = serve(tiny(family, task), task), AutoTokenizer.from_pretrained(tiny(family, task))
    for text in (*TEXTS, "", LONG * 40):
        for special in (True, False):
            status, told = served({"mii_azure": "tokenize", "prompt": text, "add_special_tokens": special})
            ids = tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
            assert (status, told["tokens"], told["count"], told["token_strs"]) == (200, ids, len(ids), None)
            assert told["max_model_len"] == served.service.loaded.context_length
        assert served({"mii_azure": "detokenize", "tokens": ids})[1] == {"prompt": tokenizer.decode(ids)}
    named = served({"mii_azure": "tokenize", "prompt": TEXTS[1], "return_token_strs": True})[1]
    assert named["token_strs"] == tokenizer.convert_ids_to_tokens(named["tokens"])


def test_a_conversation_is_the_prompt_that_the_model_gets(tiny: Tiny, serve: Serve) -> None:
    served = serve(tiny("llama", "conversational"), "conversational")
    tokenizer = AutoTokenizer.from_pretrained(tiny("llama", "conversational"))
    ids = tokenizer.apply_chat_template(SAID, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert served({"mii_azure": "tokenize", "messages": SAID})[1]["tokens"] == ids
    usage = served({"inputs": SAID, "parameters": {"max_new_tokens": 1}, "options": {"usage": True}})[1]["usage"]
    assert usage["prompt_tokens"] == len(ids)


@pytest.mark.parametrize(
    ("payload", "where"),
    [
        ({"mii_azure": "tokenize"}, "prompt"),
        ({"mii_azure": "tokenize", "prompt": 5}, "prompt"),
        ({"mii_azure": "tokenize", "prompt": "a", "messages": SAID}, "prompt"),
        ({"mii_azure": "tokenize", "prompt": "a", "other": 1}, "other"),
        ({"mii_azure": "tokenize", "messages": SAID}, "messages"),
        ({"mii_azure": "tokenize", "messages": []}, "messages"),
        ({"mii_azure": "detokenize", "tokens": [-1]}, "tokens.0"),
        ({"mii_azure": "detokenize", "tokens": [1, 10**9]}, "tokens[1]"),
        ({"mii_azure": "detokenize", "tokens": "1"}, "tokens"),
        ({"mii_azure": "detokenise", "tokens": [1]}, "mii_azure"),
    ],
    ids=str,
)
def test_bad_requests(payload: dict[str, Any], where: str, tiny: Tiny, serve: Serve) -> None:
    status, told = serve(tiny("bert", "text-classification"), "text-classification")(payload)
    assert (status, told["error"]["where"]) == (400, where)
