"""Fields of OpenAI's and vLLM's clients that choose tokens, score prompts and continue messages, at every door."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import httpx

from local_runner.http.openapi_bodies import BODIES
from local_runner.process.launch import LOOPBACK, Runner
from local_runner.protos import scoring_pb2, scoring_pb2_grpc
from scoring.schema.registry import TASKS
from tests.local_runner.http.test_openai import HELLO, Base, Client, score


def test_a_prompt_may_be_token_ids(client: Any, base: Any) -> None:
    text, own = "the quick brown fox", client("gpt2")
    ids = httpx.post(base("gpt2") + "/v1/tokenize", json={"prompt": text}, trust_env=False).json()["tokens"]
    asked: Any = {"model": "gpt2", "max_tokens": 6, "temperature": 0}
    plain = own.completions.create(prompt=text, **asked)
    for prompt in (ids, [ids, ids]):
        made = own.completions.create(prompt=prompt, **asked)
        assert {choice.text for choice in made.choices} == {plain.choices[0].text}
        assert len(made.choices) == (2 if prompt is not ids else 1)
    streamed = own.completions.create(prompt=ids, stream=True, **asked)
    assert "".join(part.choices[0].text for part in streamed) == plain.choices[0].text
    told, expected = (own.completions.create(prompt=each, echo=True, logprobs=1, **asked) for each in (ids, text))
    assert told.choices[0].model_dump() == expected.choices[0].model_dump()
    scored = [
        httpx.post(base("gpt2") + "/score", json={"inputs": each, "parameters": {"max_new_tokens": 6}}, trust_env=False)
        for each in (ids, text, [ids])
    ]
    assert scored[0].json() == scored[1].json()
    assert scored[2].json() == [scored[1].json()]


def test_log_probabilities_of_a_repeated_prompt(client: Client, base: Base) -> None:
    asked: Any = {"model": "gpt2", "prompt": ["the quick brown", "a fine day"], "max_tokens": 3, "logprobs": 2}
    plain = client("gpt2").completions.create(**asked).choices
    parameters = {"max_new_tokens": 3, "return_details": True, "prompt_logprobs": 2}
    answers = score(base("gpt2"), {"inputs": asked["prompt"], "parameters": parameters})
    for choice, own, [answer] in zip(
        client("gpt2").completions.create(**asked, echo=True).choices, plain, answers, strict=True
    ):
        told, prefill = choice.logprobs, answer["details"]["prefill"]
        assert told is not None and own.logprobs is not None
        assert told.token_logprobs == [t["logprob"] for t in prefill] + (own.logprobs.token_logprobs or [])
        assert told.token_logprobs[0] is None is (told.top_logprobs or [0])[0]
        assert "".join(told.tokens or []) == choice.text
        assert told.text_offset == [len("".join((told.tokens or [])[:at])) for at in range(len(told.tokens or []))]
    [told] = (
        client("gpt2")
        .completions.create(model="gpt2", prompt="a fine day", max_tokens=1, extra_body={"prompt_logprobs": 1})
        .choices
    )
    prompt: Any = told.model_extra
    [first, *others] = prompt["prompt_logprobs"]
    assert (first, told.logprobs) == (None, None)
    assert [next(iter(each.values()))["logprob"] for each in others] == [
        t["logprob"] for t in answers[1][0]["details"]["prefill"][1:]
    ]
    more: Any = {"logprobs": 2, "extra_body": {"prompt_logprobs": 1}}  # scored, and not repeated
    for choice in client("gpt2").completions.create(**asked | more).choices:
        assert choice.logprobs is not None
        assert "".join(choice.logprobs.tokens or []) == choice.text
    chat = client("chat").chat.completions.create(
        model="chat", messages=HELLO, max_tokens=1, extra_body={"prompt_logprobs": 0}
    )
    assert chat.usage is not None
    assert len((chat.model_extra or {})["prompt_logprobs"]) == chat.usage.prompt_tokens


#: Fields of one request that change how tokens are chosen; their names at /score.
CHOICE: dict[str, Any] = {
    "presence_penalty": 1.2,
    "frequency_penalty": 0.5,
    "repetition_penalty": 1.1,
    "logit_bias": {"9": 2.0},
    "min_p": 0.02,
    "top_k": 40,
    "top_p": 0.95,
    "temperature": 1.2,
    "seed": 11,
    "priority": -1,
    "stop_token_ids": [3],
}


def test_fields_of_choice_mean_the_same_at_every_door(
    client: Client, base: Base, real: Callable[[str], Runner]
) -> None:
    openais = ("presence_penalty", "frequency_penalty", "logit_bias", "top_p", "temperature", "seed")
    asked: Any = {name: value for name, value in CHOICE.items() if name in openais}
    asked["extra_body"] = {name: value for name, value in CHOICE.items() if name not in openais}
    asked["extra_body"]["min_tokens"] = 4
    parameters = {**CHOICE, "max_new_tokens": 12, "min_new_tokens": 4, "return_full_text": False}
    for name, inputs in (("gpt2", "the quick"), ("chat", HELLO)):
        body = {"inputs": inputs, "parameters": parameters}
        wanted = score(base(name), body)[0]["generated_text"]
        with grpc.insecure_channel(f"{LOOPBACK}:{real(name).grpc_port}") as channel:
            request = scoring_pb2.ScoreRequest(json=json.dumps(body))
            told = scoring_pb2_grpc.ScoringStub(channel).Score(request, timeout=60)
        assert json.loads(told.json)[0]["generated_text"] == wanted
        if name == "gpt2":
            found = client(name).completions.create(model=name, prompt=inputs, max_tokens=12, **asked).choices[0].text
        else:
            created = client(name).chat.completions.create(model=name, messages=HELLO, max_tokens=12, **asked)
            found = created.choices[0].message.content
        assert found == wanted
        usual = score(base(name), {"inputs": inputs, "parameters": {**parameters, "logit_bias": {"9": 90.0}}})
        assert usual[0]["generated_text"] != wanted


def test_whether_the_last_message_is_continued(client: Client) -> None:
    begun: Any = [*HELLO, {"role": "assistant", "content": "jumps over"}]

    def asked(messages: Any, **extra: bool) -> tuple[str | None, int]:
        """The answer, and the length of its prompt."""
        told = client("tools").chat.completions.create(model="tools", messages=messages, max_tokens=6, extra_body=extra)
        assert told.usage is not None
        return told.choices[0].message.content, told.usage.prompt_tokens

    continued = asked(begun)
    answered = asked(begun, add_generation_prompt=True)
    assert asked(begun, continue_final_message=True, add_generation_prompt=False) == continued
    assert asked(begun, continue_final_message=False, add_generation_prompt=True) == answered
    assert continued[1] < asked(begun, continue_final_message=False, add_generation_prompt=False)[1] < answered[1]
    assert asked(HELLO, continue_final_message=True)[1] < asked(HELLO, add_generation_prompt=False)[1]
    assert asked(HELLO, add_generation_prompt=False)[1] < asked(HELLO)[1]


def test_the_documents_table_of_fields_is_true() -> None:
    text = (Path(__file__).parents[3] / "docs" / "serving.md").read_text(encoding="utf-8")
    table = text.split("| field | `/v1/completions`", 1)[1].split("\n\n", 1)[0]
    rows = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    assert len(rows) > 20
    known = set(TASKS["conversational"].parameters.model_fields)
    for field, *served, parameter in rows:
        for path, yes in zip(("/v1/completions", "/v1/chat/completions"), served, strict=True):
            assert (field in BODIES[path]["properties"]) == (yes == "yes"), (field, path)
        assert parameter in known | {""}, field
    told = {field for field, *_ in rows}
    bound = {"response_format", "structured_outputs", "tools", "tool_choice", "parallel_tool_calls", "user", "stream"}
    others = {"model", "prompt", "messages", "guided_json", "guided_regex", "guided_choice", "guided_grammar"}
    for path in ("/v1/completions", "/v1/chat/completions"):
        assert set(BODIES[path]["properties"]) - bound - others <= told


def test_a_prompt_alone_is_repeated_and_scored(client: Client, base: Base) -> None:
    """What scores texts asks for no tokens behind them."""
    asked: Any = {"model": "gpt2", "echo": True}
    ids = httpx.post(base("gpt2") + "/v1/tokenize", json={"prompt": "a fine day"}, trust_env=False).json()["tokens"]
    for prompt in ("a fine day", ids, ["a fine day", "the quick"]):
        for logprobs in (None, 0, 2):
            own = {**asked, "prompt": prompt, "logprobs": logprobs}
            alone = client("gpt2").completions.create(**own, max_tokens=0)
            longer = client("gpt2").completions.create(**own, max_tokens=1)
            assert alone.usage is not None and alone.usage.completion_tokens == 0
            assert alone.usage.total_tokens == alone.usage.prompt_tokens
            for one, other in zip(alone.choices, longer.choices, strict=True):
                assert one.text and other.text.startswith(one.text) and one.finish_reason == "length"
                if one.logprobs is None or other.logprobs is None:
                    assert one.logprobs is other.logprobs is None
                    continue
                many = len(one.logprobs.tokens or [])
                assert "".join(one.logprobs.tokens or []) == one.text
                assert one.logprobs.token_logprobs == (other.logprobs.token_logprobs or [])[:many]
                assert one.logprobs.top_logprobs == (other.logprobs.top_logprobs and other.logprobs.top_logprobs[:many])
    for more in ({"stream": True}, {"echo": False}):
        body = {"prompt": "a", "max_tokens": 0, "echo": True, **more}
        refused = httpx.post(base("gpt2") + "/v1/completions", json=body, trust_env=False)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "max_tokens")
