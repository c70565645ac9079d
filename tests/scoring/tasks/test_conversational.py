"""conversational against the pipeline on chats: the model's own template, the same shape of answer."""

from __future__ import annotations

from typing import Any

import pytest
import transformers

from scoring.errors import LoadError
from tests.conftest import Packaged, Tiny
from tests.scoring.conftest import Serve, Served
from tests.tiny_models import CONTEXT, tasks_of

TASK = "conversational"
DECODERS = [family for family, task in tasks_of("decoder") if task == TASK]
CHAT = [
    {"role": "user", "content": "Hello there"},
    {"role": "assistant", "content": "Good day!"},
    {"role": "user", "content": "How are you?"},
]
#: What Llama-2's template raises, and Gemma's: roles that do not alternate, a system message.
STRICT = (
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{{ message['content'] + eos_token }}{% endfor %}"
)


@pytest.fixture
def qwen(tiny: Tiny, serve: Serve) -> Served:
    return serve(tiny("qwen2", TASK), TASK)


@pytest.mark.parametrize("family", DECODERS)
def test_the_answer_is_the_pipelines(family: str, tiny: Tiny, serve: Serve) -> None:
    folder = tiny(family, TASK)
    pipeline = transformers.pipeline("text-generation", model=str(folder), device="cpu")
    served = serve(folder, TASK)
    for chat in (CHAT, CHAT[:1]):
        expected = pipeline(chat, max_new_tokens=12, do_sample=False)
        assert served.ok(chat, max_new_tokens=12) == expected
        assert [m["role"] for m in expected[0]["generated_text"]] == [m["role"] for m in chat] + ["assistant"]
        reply = pipeline(chat, max_new_tokens=12, do_sample=False, return_full_text=False)
        assert served.ok(chat, max_new_tokens=12, return_full_text=False) == reply


def test_a_template_is_given_the_names_of_speakers(qwen: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    template = "{% for m in messages %}{{ m.name | default('nobody') }}: {{ m.content }} {% endfor %}"
    monkeypatch.setattr(qwen.service.task.tokenizer, "chat_template", template)
    named = [{"role": "user", "content": "Hello", "name": "Ann"}, {"role": "user", "content": "Hi"}]
    as_said = [{"role": "user", "content": "Hello nobody: Hi", "name": "Ann"}]
    answers = [qwen.ok(chat, max_new_tokens=6, return_full_text=False) for chat in (named, as_said)]
    assert answers[0] == answers[1]


def test_conversations_in_a_list_are_answered_as_alone(qwen: Served) -> None:
    chats = [CHAT, CHAT[:1], [{"role": "system", "content": "Be short."}, *CHAT]]
    assert qwen.ok(chats, max_new_tokens=8) == [qwen.ok(chat, max_new_tokens=8) for chat in chats]


def test_a_last_message_of_the_assistants_is_gone_on_with(tiny: Tiny, qwen: Served) -> None:
    chat = [CHAT[0], {"role": "assistant", "content": "Good"}]
    pipeline = transformers.pipeline("text-generation", model=str(tiny("qwen2", TASK)), device="cpu")
    answer = qwen.ok(chat, max_new_tokens=8)
    assert answer == pipeline(chat, max_new_tokens=8, do_sample=False)
    assert answer[0]["generated_text"][-1]["content"].startswith("Good")
    assert len(answer[0]["generated_text"]) == 2


@pytest.mark.parametrize("continued", [True, False])
@pytest.mark.parametrize("chat", [CHAT[:1], CHAT[:2]], ids=["user", "assistant"])
def test_a_full_text_is_the_pipelines_whether_or_not_the_last_message_is_continued(
    chat: list[dict[str, str]], continued: bool, tiny: Tiny, qwen: Served
) -> None:
    pipeline = transformers.pipeline("text-generation", model=str(tiny("qwen2", TASK)), device="cpu")
    wanted = pipeline(chat, max_new_tokens=8, do_sample=False, continue_final_message=continued)
    how = {"continue_final_message": continued, "add_generation_prompt": not continued}
    assert qwen.ok(chat, max_new_tokens=8, **how) == wanted
    bare = qwen({"input_data": {"input_string": chat, "parameters": {"max_new_tokens": 8, **how}}})
    assert bare == (200, {"output": wanted[0]["generated_text"][-1]["content"]})


def test_an_answer_behind_a_call_is_a_message_of_its_own(qwen: Served) -> None:
    call = {"id": "a1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    called = [CHAT[0], {"role": "assistant", "content": "", "tool_calls": [call]}]
    *before, last = qwen.ok(called, max_new_tokens=8)[0]["generated_text"]
    assert before == called
    assert last.keys() == {"role", "content"}


def test_the_template_writes_the_special_tokens(tiny: Tiny, serve: Serve) -> None:
    task = serve(tiny("llama", TASK), TASK).service.task
    [row] = task.encode([task.schema.parse_input(CHAT, "")][0], task.schema.parse_parameters({}), 0)
    ids = row.features["input_ids"]
    assert ids.count(task.tokenizer.bos_token_id) == 1
    assert ids == task.tokenizer.apply_chat_template(CHAT, add_generation_prompt=True)["input_ids"]


def test_several_replies(qwen: Served) -> None:
    answer = qwen.ok(CHAT, max_new_tokens=8, do_sample=True, temperature=1.5, seed=1, num_return_sequences=3)
    replies = [entry["generated_text"][-1]["content"] for entry in answer]
    assert len(set(replies)) == 3
    assert all(entry["generated_text"][:-1] == CHAT for entry in answer)


def test_a_stop_text_ends_the_reply(qwen: Served) -> None:
    whole = qwen.ok(CHAT, max_new_tokens=16, return_full_text=False)[0]["generated_text"]
    stopped = qwen.ok(CHAT, max_new_tokens=16, return_full_text=False, stop=whole[3:6])[0]["generated_text"]
    assert stopped == whole[: whole.index(whole[3:6])]


def test_what_the_template_refuses_is_said_in_its_own_words(qwen: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qwen.service.task.tokenizer, "chat_template", STRICT)
    error = qwen.refused([CHAT, [CHAT[0], CHAT[0]]])
    assert error["code"] == "invalid_input"
    assert "roles must alternate" in error["message"]
    assert error["where"] == "inputs[1]"


def test_a_broken_template_is_no_internal_error(qwen: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qwen.service.task.tokenizer, "chat_template", "{{ messages[0]['name'] + 1 }}")
    assert "template" in qwen.refused(CHAT)["message"]


def test_a_model_without_a_template_is_not_loaded(tiny: Tiny) -> None:
    with pytest.raises(LoadError, match="chat template") as refused:
        Served(tiny("gpt2", "text-generation"), TASK)
    assert "text-generation" in refused.value.hint


@pytest.mark.parametrize(
    ("chat", "where"),
    [
        ("Hello", "inputs"),
        ([], "inputs"),
        ([[]], "inputs[0]"),
        ([{"role": "user"}], "inputs.0.content"),
        ([{"role": "king", "content": "a"}], "inputs.0.role"),
        ([{"role": "user", "content": None}], "inputs.0.content"),
        ([{"role": "user", "content": "a", "names": "b"}], "inputs.0.names"),
        ([CHAT, "Hello"], "inputs[1]"),
        ([{"role": "user", "content": "x " * CONTEXT}], "inputs[0]"),
    ],
)
def test_bad_conversations_are_refused_with_the_place(chat: Any, where: str, qwen: Served) -> None:
    assert qwen.refused(chat)["where"] == where


@pytest.mark.real
def test_a_real_model_answers_and_streams(packaged: Packaged, serve: Serve) -> None:
    served = serve(packaged("smollm2"), TASK)
    chat = [{"role": "user", "content": "What is the capital of France? Answer in one short sentence."}]
    reply = "The capital of France is Paris."
    answer = served.ok(chat, max_new_tokens=32)
    assert answer[0]["generated_text"] == [*chat, {"role": "assistant", "content": reply}]
    azure = {"input_data": {"input_string": chat, "parameters": {"max_new_tokens": 32}}}
    assert served(azure) == (200, {"output": reply})
    status, events = served(azure | {"stream": True})
    assert status == 200
    assert [event["token"]["text"] for event in events[:-2]] == [
        "The",
        " capital",
        " of",
        " France",
        " is",
        " Paris",
        ".",
    ]
    assert events[-2] == {"answer": {"output": reply}}
