"""huggingface_hub's InferenceClient, unmodified: images, and the options of summaries, translations and tools."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.inference._generated.types import ChatCompletionInputToolChoiceClass

Base = Callable[[str], str]
TEXT = "the quick brown fox jumps over the lazy dog"


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # it asks no hub, but this runner


def score(url: str, inputs: str, **parameters: Any) -> Any:
    body = {"inputs": inputs, "parameters": parameters}
    return httpx.post(f"{url}/score", json=body, trust_env=False, timeout=60).json()


def test_the_client_gets_an_image_file(base: Base) -> None:
    url = base("images")
    told = InferenceClient(url).text_to_image("a cat", num_inference_steps=1, seed=3, height=64, width=64)
    assert (told.format, told.size) == ("PNG", (64, 64))
    body = {"inputs": "a cat", "parameters": {"num_inference_steps": 1, "seed": 3}}
    with httpx.Client(base_url=url, trust_env=False, timeout=60, headers={"Accept": "image/png"}) as http:
        assert http.post("/", json=body).content[:4] == b"\x89PNG"
        several = http.post("/", json=body | {"parameters": {"num_inference_steps": 1, "num_images_per_prompt": 2}})
        assert several.status_code == 400
        assert several.json()["error"]["where"] == "parameters.num_images_per_prompt"
        assert http.post("/score", json=body).headers["content-type"] == "application/json"  # Azure's own form
    with pytest.raises(HfHubHTTPError, match="height"):
        InferenceClient(url).text_to_image("a cat", height=7)


@pytest.mark.parametrize(("name", "key"), [("summary", "summary_text"), ("translate", "translation_text")])
def test_the_client_generates_by_its_own_names(base: Base, name: str, key: str) -> None:
    url = base(name)
    client = InferenceClient(url)
    ask: Any = client.summarization if name == "summary" else client.translation
    [expected] = score(url, TEXT, max_new_tokens=3, num_beams=2)
    told = ask(TEXT, generate_parameters={"max_new_tokens": 3, "num_beams": 2})
    assert told[key] == expected[key]
    assert ask(TEXT, truncation="do_not_truncate")[key] == score(url, TEXT)[0][key]
    long = f"{TEXT} " * 100
    [cut] = score(url, long, truncation=True, max_new_tokens=3)
    for strategy in ("longest_first", "only_first"):
        assert ask(long, truncation=strategy, generate_parameters={"max_new_tokens": 3})[key] == cut[key]
    for options, place in (
        ({"truncation": "do_not_truncate"}, "prompt_too_long"),
        ({"truncation": "only_second"}, "parameters.truncation"),
        ({"generate_parameters": {"max_new_token": 3}}, "parameters.max_new_token"),
        ({"generate_parameters": [3]}, "parameters.generate_parameters"),
    ):
        with pytest.raises(HfHubHTTPError) as caught:
            ask(long, **options)
        assert place in caught.value.response.text


def test_the_client_names_a_tool(base: Base) -> None:
    function = {"name": "wait", "description": "waits", "parameters": {"type": "object", "properties": {}}}
    named: Any = ChatCompletionInputToolChoiceClass(function={"name": "wait"})  # type: ignore[arg-type]
    told = InferenceClient(base("tools")).chat_completion(
        [{"role": "user", "content": "hello"}],
        tools=[{"type": "function", "function": function}],
        tool_choice=named,
        max_tokens=100,
    )
    assert [call.function.name for call in told.choices[0].message.tool_calls or []][:1] == ["wait"]
