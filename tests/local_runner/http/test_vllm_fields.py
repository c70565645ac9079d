"""Fields of vLLM's clients beside OpenAI's, by the official client over real HTTP, as vLLM documents them."""

from collections.abc import Callable
from typing import Any

import openai
import pytest

from tests.local_runner.http.test_openai import HELLO, Base, Client

TEXT: dict[str, Any] = {"model": "gpt2", "prompt": "the quick brown fox", "max_tokens": 10, "temperature": 0}
CHAT: dict[str, Any] = {"model": "chat", "messages": HELLO, "max_tokens": 10, "temperature": 0}


def text(client: Client, **extra: Any) -> Any:
    [choice] = client("gpt2").completions.create(**TEXT, extra_body=extra).choices
    return choice


def ids_of(client: Client, **extra: Any) -> list[int]:
    found: list[int] = text(client, return_token_ids=True, **extra).token_ids
    return found


def test_tokens_come_with_an_answer_whole_or_streamed(client: Client, base: Base) -> None:
    choice = text(client, return_token_ids=True)
    own = client("gpt2")
    assert own.completions.create(**TEXT | {"prompt": choice.prompt_token_ids}).choices[0].text == choice.text
    told = own.post("/detokenize", body={"tokens": choice.token_ids}, cast_to=dict[str, Any])
    assert told["prompt"] == choice.text
    assert len(choice.token_ids) == 10
    parts = list(own.completions.create(**TEXT, stream=True, extra_body={"return_token_ids": True}))
    streamed: Any = [part.choices[0] for part in parts]
    assert [token for part in streamed for token in getattr(part, "token_ids", None) or ()] == choice.token_ids
    assert streamed[-1].prompt_token_ids == choice.prompt_token_ids
    chat: Any = client("chat").chat.completions.create(**CHAT, extra_body={"return_token_ids": True})
    assert (len(chat.prompt_token_ids), len(chat.choices[0].token_ids)) == (
        chat.usage.prompt_tokens,
        chat.usage.completion_tokens,
    )
    last: Any = list(client("chat").chat.completions.create(**CHAT, stream=True, extra_body={"return_token_ids": True}))
    assert last[-1].prompt_token_ids == chat.prompt_token_ids
    assert last[-1].choices[0].token_ids == chat.choices[0].token_ids


def test_only_some_tokens_may_come(client: Client) -> None:
    usual = ids_of(client)
    some = [token for token in range(20, 40) if token not in usual][:5]
    assert set(ids_of(client, allowed_token_ids=some)) <= {*some}
    assert ids_of(client, allowed_token_ids=[*some, *usual], logit_bias={str(usual[0]): 50})[0] == usual[0]
    assert ids_of(client, allowed_token_ids=[]) == usual


def test_words_that_may_not_come(client: Client) -> None:
    usual, own = ids_of(client), client("gpt2")

    def spelled(token: int) -> str:
        told: str = own.post("/detokenize", body={"tokens": [token]}, cast_to=dict[str, Any])["prompt"]
        return told

    def back(word: str) -> Any:
        return own.post("/tokenize", body={"prompt": word}, cast_to=dict[str, Any])["tokens"]

    token, word = next((each, word) for each in usual if back(word := spelled(each)) == [each])
    banned = ids_of(client, bad_words=[word])
    assert token not in banned
    assert banned[: usual.index(token)] == usual[: usual.index(token)]


@pytest.mark.parametrize("streams", [False, True])
def test_a_stop_text_may_be_part_of_the_answer(client: Client, streams: bool) -> None:
    usual = text(client).text
    stop = usual[len(usual) // 2 :][:3]
    end = usual.index(stop) + len(stop)

    def asked(**extra: Any) -> str:
        own = client("gpt2").completions
        if not streams:
            return own.create(**TEXT, stop=[stop], extra_body=extra).choices[0].text
        return "".join(part.choices[0].text for part in own.create(**TEXT, stop=[stop], stream=True, extra_body=extra))

    assert asked(include_stop_str_in_output=True) == usual[:end]
    assert asked() == usual[: end - len(stop)]


@pytest.mark.parametrize("name", ["gpt2", "chat"])
def test_each_event_of_a_stream_may_tell_the_usage_so_far(client: Client, name: str) -> None:
    own, asked = client(name), TEXT if name == "gpt2" else CHAT
    create: Callable[..., Any] = own.completions.create if name == "gpt2" else own.chat.completions.create
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = list(create(**asked, stream=True, stream_options=options))
    *parts, last = events
    assert last.choices == []
    counts = [part.usage.completion_tokens for part in parts if part.usage is not None]
    assert counts == sorted(counts)
    assert len(set(counts)) > 3
    assert counts[-1] == last.usage.completion_tokens == 10
    assert {part.usage.prompt_tokens for part in parts if part.usage} == {last.usage.prompt_tokens}
    assert len(counts) >= len(parts) - 1  # a role comes before the prompt is counted
    with pytest.raises(openai.BadRequestError, match="include_usage") as failure:
        create(**asked, stream=True, stream_options={"continuous_usage_stats": True})
    assert failure.value.param == "stream_options.continuous_usage_stats"


def test_usage_so_far_is_each_answers_own(client: Client) -> None:
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    asked = TEXT | {"temperature": 1.5, "seed": 3, "n": 2}
    *parts, last = client("gpt2").completions.create(**asked, stream=True, stream_options=options)
    final = {part.choices[0].index: part.usage for part in parts if part.choices[0].finish_reason}
    assert [used.completion_tokens for used in final.values() if used] == [10, 10]
    assert last.usage is not None
    assert last.usage.completion_tokens == 20


def test_a_prompt_cut_to_what_fits_beside_the_answer(client: Client) -> None:
    long = TEXT | {"prompt": "the quick brown fox " * 400}
    own = client("gpt2").completions
    with pytest.raises(openai.BadRequestError, match="The prompt has"):
        own.create(**long)
    told = own.create(**long, extra_body={"truncate_prompt_tokens": -1})
    assert told.usage is not None
    assert told.usage.completion_tokens == 10
    exact = own.create(**long, extra_body={"truncate_prompt_tokens": told.usage.prompt_tokens})
    assert exact.choices[0].text == told.choices[0].text
    with pytest.raises(openai.BadRequestError, match=r"only \d+ fit|takes"):
        own.create(**long, extra_body={"truncate_prompt_tokens": told.usage.prompt_tokens + 1})


def test_fields_that_change_no_answer(client: Client) -> None:
    plain = client("chat").chat.completions.create(**CHAT).choices
    marks: dict[str, Any] = {
        "user": "u",
        "metadata": {"a": "b"},
        "store": True,
        "service_tier": "flex",
        "safety_identifier": "s",
        "prediction": {"type": "content", "content": "the answer"},
        "verbosity": "medium",
        "modalities": ["text"],
        "parallel_tool_calls": False,
        "extra_body": {"cache_salt": "mine", "best_of": 1, "detokenize": True, "spaces_between_special_tokens": False},
    }
    assert client("chat").chat.completions.create(**CHAT, **marks).choices == plain
    assert (
        client("chat").chat.completions.create(**CHAT | {"max_tokens": None}, max_completion_tokens=10).choices == plain
    )
    scored = client("gpt2").completions.create(**TEXT, logprobs=0).choices[0].logprobs
    assert scored is not None
    assert (len(scored.token_logprobs or ()), scored.top_logprobs) == (10, None)


@pytest.mark.parametrize(
    ("field", "value", "remedy"),
    [
        ("prompt_embeds", "AAAA", "token ids"),
        ("skip_special_tokens", False, "return_token_ids"),
        ("detokenize", False, "return_token_ids"),
        ("best_of", 3, '"n"'),
        ("verbosity", "low", "system message"),
        ("modalities", ["text", "audio"], "texts"),
        ("use_beam_search", True, "num_beams"),
        ("allowed_token_ids", [2**30], "vocabulary"),
        ("bad_words", [""], ""),
        ("truncate_prompt_tokens", 0, ""),
        ("truncate_prompt_tokens", -2, ""),
    ],
)
def test_what_is_refused_has_its_name_and_a_remedy(client: Client, field: str, value: Any, remedy: str) -> None:
    with pytest.raises(openai.BadRequestError) as failure:
        text(client, **{field: value})
    assert str(failure.value.param).startswith(field)
    assert remedy in failure.value.message
