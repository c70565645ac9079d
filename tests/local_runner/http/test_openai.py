"""The official OpenAI client, unmodified, against real bundles of tiny models."""

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import httpx
import openai
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from transformers import AutoTokenizer

from local_runner.process.launch import LOOPBACK, Runner
from local_runner.protos import inference_pb2, inference_pb2_grpc, scoring_pb2, scoring_pb2_grpc

Base = Callable[[str], str]
HELLO: Any = [{"role": "user", "content": "the quick brown fox"}]


@pytest.fixture
async def chat(base: Base) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=base("chat") + "/v1", api_key="none", max_retries=0) as opened:
        yield opened


def score(url: str, body: dict[str, Any]) -> Any:
    return httpx.post(f"{url}/score", json=body, trust_env=False, timeout=60).json()


Client = Callable[[str], openai.OpenAI]


def test_models(client: Client) -> None:
    assert [model.id for model in client("gpt2").models.list()] == ["gpt2"]
    assert client("gpt2").models.retrieve("gpt2").owned_by == "mii-azure"
    with pytest.raises(openai.NotFoundError, match="No model 'other' here"):
        client("gpt2").models.retrieve("other")


def test_the_name_of_an_adapter_is_a_model(client: Client, base: Base) -> None:
    own = client("chat")
    assert [model.id for model in own.models.list()] == ["chat", "terse"]
    assert own.models.retrieve("terse").model_dump()["parent"] == "chat"
    plain, adapted = (
        own.chat.completions.create(model=name, messages=HELLO, max_tokens=8) for name in ("chat", "terse")
    )
    assert (plain.model, adapted.model) == ("chat", "terse")
    assert plain.choices[0].message.content != adapted.choices[0].message.content
    parameters = {"max_new_tokens": 8, "return_full_text": False, "adapter": "terse"}
    told = score(base("chat"), {"inputs": HELLO, "parameters": parameters})
    assert told[0]["generated_text"] == adapted.choices[0].message.content
    with pytest.raises(openai.NotFoundError, match="serves 'chat' or 'terse'"):
        own.chat.completions.create(model="formal", messages=HELLO)
    unknown = {"inputs": HELLO, "parameters": {"adapter": "formal"}}
    answer = httpx.post(f"{base('chat')}/score", json=unknown, trust_env=False, timeout=60)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "adapter_not_served")


def test_a_model_answers_by_every_name_that_it_is_served_as(client: Client, base: Base, real: Any) -> None:
    """One name was given at generation, two to the server."""
    names = ["embed", "vectors", "org/embed-1", "text-embedding-3-small"]
    own = client("embed")
    assert [model.id for model in own.models.list()] == names
    assert own.models.retrieve("org/embed-1").id == "org/embed-1"
    vectors = [own.embeddings.create(model=name, input="a fine day") for name in names]
    assert [each.model for each in vectors] == names
    assert len({tuple(each.data[0].embedding) for each in vectors}) == 1
    assert own.embeddings.create(model="", input="a").model == "embed"
    with pytest.raises(openai.NotFoundError, match="serves 'embed' or 'vectors' or 'org/embed-1'"):
        own.embeddings.create(model="text-embedding-4", input="a")
    told = httpx.get(f"{base('embed')}/v2/models/vectors", trust_env=False)
    assert told.json()["name"] == "vectors"
    with grpc.insecure_channel(f"{LOOPBACK}:{real('embed').grpc_port}") as channel:
        stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert stub.ModelReady(inference_pb2.ModelReadyRequest(name="org/embed-1"), timeout=60).ready
        with pytest.raises(grpc.RpcError, match="No model 'other' here"):
            stub.ModelReady(inference_pb2.ModelReadyRequest(name="other"), timeout=60)


def test_a_completion_is_what_score_answers(client: Client, base: Base, real: Callable[[str], Runner]) -> None:
    prompts = ["the quick brown", "a fine day and"]
    got = client("gpt2").completions.create(model="gpt2", prompt=prompts, max_tokens=7)
    parameters = {"max_new_tokens": 7, "return_full_text": False}
    expected = score(base("gpt2"), {"inputs": prompts, "parameters": parameters})
    assert [choice.text for choice in got.choices] == [answers[0]["generated_text"] for answers in expected]
    assert [choice.index for choice in got.choices] == [0, 1]
    tokenizer = AutoTokenizer.from_pretrained(real("gpt2").bundle / "model")
    assert got.usage is not None
    assert got.usage.prompt_tokens == sum(len(tokenizer(text)["input_ids"]) for text in prompts)
    assert got.usage.total_tokens == got.usage.prompt_tokens + got.usage.completion_tokens
    for choice in got.choices:
        assert choice.finish_reason in ("length", "stop")
    if all(choice.finish_reason == "length" for choice in got.choices):
        assert got.usage.completion_tokens == 14


def test_echo_stop_and_several_samples(client: Client) -> None:
    completions = client("gpt2").completions
    plain = completions.create(model="gpt2", prompt="the quick", max_tokens=12).choices[0]
    assert completions.create(model="gpt2", prompt="the quick", max_tokens=12, echo=True).choices[0].text == (
        "the quick" + plain.text
    )
    for several in ({}, {"n": 2, "seed": 3}):
        asked: Any = {"model": "gpt2", "prompt": "the quick", "max_tokens": 12, "echo": True, **several}
        whole = [choice.text for choice in completions.create(**asked).choices]
        streamed = [""] * len(whole)
        for chunk in completions.create(**asked, stream=True):
            streamed[chunk.choices[0].index] += chunk.choices[0].text
        assert streamed == whole
    stop = plain.text[3:6]
    cut = completions.create(model="gpt2", prompt="the quick", max_tokens=12, stop=stop).choices[0]
    assert (cut.text, cut.finish_reason) == (plain.text[: plain.text.index(stop)], "stop")
    many = completions.create(model="gpt2", prompt="the quick", max_tokens=12, n=3, seed=1)
    assert len({choice.text for choice in many.choices}) > 1
    assert [choice.index for choice in many.choices] == [0, 1, 2]
    again = completions.create(model="gpt2", prompt="the quick", max_tokens=12, n=3, seed=1)
    assert [choice.text for choice in again.choices] == [choice.text for choice in many.choices]


def test_a_streamed_completion(client: Client) -> None:
    whole = client("gpt2").completions.create(model="gpt2", prompt="the quick", max_tokens=9)
    stream = client("gpt2").completions.create(model="gpt2", prompt="the quick", max_tokens=9, stream=True)
    choices = [chunk.choices[0] for chunk in stream]
    assert "".join(choice.text for choice in choices) == whole.choices[0].text
    assert [choice.finish_reason for choice in choices if choice.finish_reason] == [whole.choices[0].finish_reason]


def test_a_chat_whole_and_streamed(client: Client, base: Base) -> None:
    asked: Any = {"model": "chat", "messages": HELLO, "max_completion_tokens": 10}
    whole = client("chat").chat.completions.create(**asked)
    parameters = {"max_new_tokens": 10, "return_full_text": False}
    expected = score(base("chat"), {"inputs": HELLO, "parameters": parameters})[0]["generated_text"]
    assert (whole.choices[0].message.role, whole.choices[0].message.content) == ("assistant", expected)
    stream = client("chat").chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == expected
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert (chunks[-1].choices, chunks[-1].usage) == ([], whole.usage)
    assert len({chunk.id for chunk in chunks}) == 1


def test_log_probabilities_of_a_completion(client: Client, base: Base) -> None:
    asked: Any = {"model": "gpt2", "prompt": "the quick", "max_tokens": 7}
    parameters = {"max_new_tokens": 7, "return_full_text": False, "return_details": True, "top_n_tokens": 3}
    [answer] = score(base("gpt2"), {"inputs": "the quick", "parameters": parameters})
    tokens = [token for token in answer["details"]["tokens"] if not token["special"]]
    choice = client("gpt2").completions.create(**asked, logprobs=3).choices[0]
    assert choice.logprobs is not None
    assert choice.text == answer["generated_text"] == "".join(choice.logprobs.tokens or [])
    assert choice.logprobs.token_logprobs == [token["logprob"] for token in tokens]
    told, tops = choice.logprobs.text_offset or [], choice.logprobs.top_logprobs or []
    assert [choice.text[start:].startswith(token["text"]) for start, token in zip(told, tokens, strict=True)] == (
        [True] * len(tokens)
    )
    for token, top, wanted in zip(tokens, tops, answer["details"]["top_tokens"], strict=False):
        assert top[token["text"]] == token["logprob"]
        assert max(top.values()) == wanted[0]["logprob"]
    bare = client("gpt2").completions.create(**asked, logprobs=0).choices[0].logprobs
    assert bare is not None
    assert (bare.token_logprobs, bare.top_logprobs) == (choice.logprobs.token_logprobs, None)
    chunks = list(client("gpt2").completions.create(**asked, logprobs=3, stream=True))
    parts = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices[0].logprobs]
    for name in ("tokens", "token_logprobs", "text_offset", "top_logprobs"):
        found = [value for part in parts for value in getattr(part, name)]
        assert found == getattr(choice.logprobs, name)


def test_log_probabilities_of_a_chat(client: Client) -> None:
    asked: Any = {"model": "chat", "messages": HELLO, "max_tokens": 6, "logprobs": True, "top_logprobs": 2}
    choice = client("chat").chat.completions.create(**asked).choices[0]
    assert choice.logprobs is not None
    content = choice.logprobs.content or []
    assert "".join(token.token for token in content) == choice.message.content
    for token in content:
        assert bytes(token.bytes or []).decode() == token.token
        assert [top.logprob for top in token.top_logprobs] == sorted(
            (top.logprob for top in token.top_logprobs), reverse=True
        )
        assert token.top_logprobs[0].logprob >= token.logprob
        assert len(token.top_logprobs) == 2
    chunks = list(client("chat").chat.completions.create(**asked, stream=True))
    parts = [chunk.choices[0].logprobs for chunk in chunks]
    assert [token for part in parts if part for token in part.content or []] == content


def test_several_answers_streamed(client: Client) -> None:
    asked: Any = {"model": "chat", "messages": HELLO, "max_tokens": 8, "n": 3, "seed": 5, "temperature": 1.4}
    whole = client("chat").chat.completions.create(**asked).choices
    choices = [
        choice for chunk in client("chat").chat.completions.create(**asked, stream=True) for choice in chunk.choices
    ]
    for index in range(3):
        own = [choice for choice in choices if choice.index == index]
        assert own[0].delta.role == "assistant"
        assert "".join(choice.delta.content or "" for choice in own) == whole[index].message.content
        assert [choice.finish_reason for choice in own if choice.finish_reason] == [whole[index].finish_reason]
    assert len({choice.message.content for choice in whole}) > 1


def test_parts_and_the_developers_role(client: Client) -> None:
    parts: Any = [
        {"role": "user", "content": [{"type": "text", "text": "the quick "}, {"type": "text", "text": "brown fox"}]}
    ]
    texts = {
        client("chat").chat.completions.create(model="chat", messages=messages, max_tokens=8).choices[0].message.content
        for messages in (HELLO, parts)
    }
    assert len(texts) == 1
    told = [
        client("chat").chat.completions.create(
            model="chat", messages=[{"role": role, "content": "be brief"}, *HELLO], max_tokens=8
        )
        for role in ("developer", "system")
    ]
    assert told[0].choices[0].message.content == told[1].choices[0].message.content


async def test_the_asynchronous_client(chat: openai.AsyncOpenAI) -> None:
    stream = await chat.chat.completions.create(model="chat", messages=HELLO, max_tokens=5, stream=True)
    chunks = [chunk async for chunk in stream]
    assert chunks[-1].choices[0].finish_reason in ("length", "stop")


def test_leaving_a_stream_early_leaves_the_engine_free(client: Client) -> None:
    for _ in range(3):
        with client("chat").chat.completions.create(model="chat", messages=HELLO, max_tokens=90, stream=True) as stream:
            next(iter(stream))
    assert client("chat").chat.completions.create(model="chat", messages=HELLO, max_tokens=2).choices


def test_embeddings(client: Client, base: Base) -> None:
    texts = ["a man is eating", "a fine day"]
    expected = score(base("embed"), {"inputs": texts})
    for form in ({}, {"encoding_format": "float"}, {"encoding_format": "base64"}):
        got = client("embed").embeddings.create(model="embed", input=texts, **form)  # type: ignore[arg-type]
        assert [entry.index for entry in got.data] == [0, 1]
        if form.get("encoding_format") != "base64":
            for entry, vector in zip(got.data, expected, strict=True):
                assert entry.embedding == pytest.approx(vector, rel=1e-6)
        assert got.usage.prompt_tokens == got.usage.total_tokens > 0
    assert len(client("embed").embeddings.create(model="embed", input="one").data) == 1


def test_embeddings_of_fewer_dimensions_and_of_token_ids(client: Client, real: Callable[[str], Runner]) -> None:
    embed, text = client("embed").embeddings, "a man is eating"
    whole = embed.create(model="embed", input=text).data[0].embedding
    part = embed.create(model="embed", input=text, dimensions=8).data[0].embedding
    length = sum(x * x for x in whole[:8]) ** 0.5
    assert part == pytest.approx([x / length for x in whole[:8]], abs=1e-6)
    tokenizer = AutoTokenizer.from_pretrained(real("embed").bundle / "model")
    ids = [tokenizer(text)["input_ids"], tokenizer("a fine day")["input_ids"]]
    got = embed.create(model="embed", input=ids)
    assert got.data[0].embedding == pytest.approx(whole, abs=1e-6)
    assert got.usage.prompt_tokens == sum(map(len, ids))
    assert embed.create(model="embed", input=ids[0]).data[0].embedding == pytest.approx(whole, abs=1e-6)
    many = embed.create(model="embed", input=[text, "b"] * 150)  # more than the queue holds
    assert len(many.data) == 300
    assert many.data[298].embedding == pytest.approx(whole, abs=1e-5)


def test_hugging_faces_client_is_understood(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub's InferenceClient, unmodified: it sends its parameters beside the inputs."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # it asks no hub, but this runner
    huggingface = InferenceClient(base("embed"), timeout=60)
    texts = ["a man is eating", "word " * 200]
    vectors = huggingface.feature_extraction(
        texts, normalize=False, truncate=True, truncation_direction="left", prompt_name="query", dimensions=8
    )
    parameters = {"normalize": False, "truncation": True, "truncation_direction": "left", "prompt": "query: "}
    expected = score(base("embed"), {"inputs": texts, "parameters": {**parameters, "dimensions": 8}})
    assert (vectors.shape, str(vectors.dtype)) == ((2, 8), "float32")
    assert vectors.tolist() == [pytest.approx(vector, abs=1e-5) for vector in expected]
    assert huggingface.feature_extraction(texts[0], model=base("embed") + "/score").shape == (32,)
    with pytest.raises(HfHubHTTPError, match="Bad request") as raised:
        huggingface.feature_extraction(texts[0], prompt_name="title")
    assert raised.value.response.json()["error"]["hint"] == "It has 'query'."


def test_hugging_faces_client_chats(base: Base, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """InferenceClient, unmodified: given a URL, it names every model "dummy"."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    huggingface = InferenceClient(base("chat"), timeout=60)
    asked: Any = {
        "messages": HELLO,
        "max_tokens": 5,
        "seed": 1,
        "temperature": 0.5,
        "logprobs": True,
        "top_logprobs": 2,
    }
    expected = client("chat").chat.completions.create(model="chat", **asked).choices[0]
    got = huggingface.chat_completion(**asked).choices[0]
    assert got.message.content == expected.message.content
    assert [each.logprob for each in got.logprobs.content] == [each.logprob for each in expected.logprobs.content]
    pieces = huggingface.chat_completion(**asked, stream=True)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == expected.message.content
    schema = {"type": "object", "properties": {"x": {"enum": [1, 2]}}, "required": ["x"], "additionalProperties": False}
    bound: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    told = huggingface.chat_completion(HELLO, max_tokens=40, response_format=bound).choices[0].message.content
    assert json.loads(told)["x"] in (1, 2)
    continued = huggingface.text_generation("the quick brown", model=base("gpt2"), max_new_tokens=5)
    assert (
        continued
        == score(base("gpt2"), {"inputs": "the quick brown", "parameters": {"max_new_tokens": 5}})[0]["generated_text"]
    )


def test_truncation_is_told_at_every_door(base: Base, client: Client, real: Callable[[str], Runner]) -> None:
    body = {"inputs": ["a", "word " * 200], "truncate": True}
    assert httpx.post(f"{base('embed')}/score", json=body, trust_env=False).headers["x-truncated-inputs"] == "1"
    got = client("embed").embeddings.create(model="embed", input=body["inputs"], extra_body={"truncate": True})
    assert got.usage.model_dump()["truncated"] == [1]
    with grpc.insecure_channel(f"{LOOPBACK}:{real('embed').grpc_port}") as channel:
        request = scoring_pb2.ScoreRequest(json=json.dumps(body))
        _, call = scoring_pb2_grpc.ScoringStub(channel).Score.with_call(request, timeout=60)
    assert dict(call.trailing_metadata())["x-truncated-inputs"] == "1"


def test_fields_that_ask_for_nothing_are_taken(client: Client) -> None:
    got = client("chat").chat.completions.create(
        model="chat",
        messages=HELLO,
        max_tokens=3,
        temperature=0,
        top_p=1,
        n=1,
        presence_penalty=0,
        frequency_penalty=0.0,
        logprobs=False,
        response_format={"type": "text"},
        user="someone",
        tool_choice="none",
        extra_body={"repetition_penalty": 1.5, "best_of": 1, "reasoning_effort": "none", "top_k": -1, "seed": -1},
    )
    assert got.choices[0].message.content is not None


def test_fields_of_vllms_clients_at_their_defaults_change_nothing(client: Client) -> None:
    chat, text = client("chat"), client("gpt2")
    both: dict[str, Any] = {
        "skip_special_tokens": True,
        "spaces_between_special_tokens": True,
        "include_stop_str_in_output": False,
        "use_beam_search": False,
        "detokenize": True,
        "return_token_ids": False,
        "return_tokens_as_token_ids": False,
        "bad_words": [],
        "vllm_xargs": {},
        "request_id": "one",
        "guided_decoding_backend": "auto",
    }
    own: Any = {"model": "chat", "messages": HELLO, "max_tokens": 5}
    more = {**both, "add_special_tokens": False, "echo": False, "include_reasoning": True, "documents": []}
    [told, plain] = (chat.chat.completions.create(**own, extra_body=each).choices[0] for each in (more, {}))
    assert told == plain
    own = {"model": "gpt2", "prompt": "a fine day", "max_tokens": 5}
    [said, bare] = (
        text.completions.create(**own, extra_body=each).choices[0]
        for each in ({**both, "add_special_tokens": True}, {})
    )
    assert said == bare


def test_a_thought_goes_back_under_either_name(client: Client) -> None:
    thought = "I should greet."
    [old, new] = (
        client("chat").chat.completions.create(
            model="chat",
            messages=[*HELLO, {"role": "assistant", "content": "Hi.", name: thought}, *HELLO],  # type: ignore[list-item]
            max_tokens=4,
        )
        for name in ("reasoning_content", "reasoning")
    )
    assert old.choices == new.choices


def test_an_answer_without_text_may_be_sent_back(client: Client) -> None:
    """As other servers, a null is no text; what a client's own objects add is empty."""
    empty, null = (
        [*HELLO, {"role": "assistant", "content": content, "refusal": None, "annotations": []}, *HELLO]
        for content in ("", None)
    )
    told = [
        client("chat").chat.completions.create(model="chat", messages=messages, max_tokens=4)  # type: ignore[arg-type]
        for messages in (empty, null)
    ]
    assert told[0].choices[0].message.content == told[1].choices[0].message.content


def test_other_paths_tasks_and_models(client: Client, base: Base) -> None:
    with pytest.raises(openai.BadRequestError, match="This deployment serves text-generation"):
        client("gpt2").chat.completions.create(model="gpt2", messages=HELLO)
    with pytest.raises(openai.NotFoundError, match="No model 'gpt-4' here"):
        client("gpt2").completions.create(model="gpt-4", prompt="a")
    for content in (b"{", b"[]", b"\xff"):
        answer = httpx.post(f"{base('gpt2')}/v1/completions", content=content, trust_env=False)
        assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
    assert "/v1/chat/completions" in httpx.get(f"{base('gpt2')}/openapi.json", trust_env=False).json()["paths"]


def test_usage_is_told_to_whoever_asks_for_it(base: Base) -> None:
    body = {"inputs": "the quick", "parameters": {"max_new_tokens": 4}, "options": {"usage": True}}
    told = score(base("gpt2"), body)
    assert told["answer"] == score(base("gpt2"), {**body, "options": {}})
    assert len(told["usage"]["finish_reasons"]) == 1
    text = httpx.post(f"{base('gpt2')}/score", json={**body, "stream": True}, trust_env=False).text
    assert json.loads(text.split("\n\n")[-3].removeprefix("data: ")) == told
