"""Requests for tokens, against plain transformers' tokenizers."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoTokenizer

from scoring.config import Limits
from scoring.decoder.decoder import Decoder
from scoring.schema.requests import MOST_TOKENS
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


def test_a_conversation_that_asks_for_several_answers_has_one_prompt(
    tiny: Tiny, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve(tiny("llama", "conversational"), "conversational")
    loaded = served.service.loaded
    monkeypatch.setattr(loaded.runtime, "decoder", Decoder(loaded.model, 2, loaded.context_length))
    one = {"mii_azure": "tokenize", "messages": SAID}
    status, told = served(one | {"parameters": {"do_sample": True, "num_return_sequences": 2}})
    assert (status, told) == (200, served(one)[1])


def test_tokens_of_a_text_are_bounded(tiny: Tiny, serve: Serve) -> None:
    served = serve(tiny("bert", "text-classification"), "text-classification")
    status, told = served({"mii_azure": "tokenize", "prompt": ". " * (MOST_TOKENS + 2000)})
    assert (status, told["error"]["code"], told["error"]["where"]) == (400, "prompt_too_long", "prompt")
    assert f"more than {MOST_TOKENS:,} tokens" in told["error"]["message"]


def test_an_answer_of_tokens_takes_no_more_bytes_than_a_reply_may(tiny: Tiny, serve: Serve) -> None:
    served = serve(tiny("bert", "text-classification"), "text-classification", Limits(max_answer_bytes=1000))
    text = {"mii_azure": "tokenize", "prompt": "a " * 150}
    status, told = served(text)
    assert status == 200
    for asked in (text | {"return_token_strs": True}, {"mii_azure": "detokenize", "tokens": told["tokens"] * 10}):
        status, answer = served(asked)
        assert (status, answer["error"]["code"]) == (413, "payload_too_large")
        assert "shorter text" in answer["error"]["hint"]


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
