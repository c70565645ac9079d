"""Adapters that come and go beside a loaded model: what has a place keeps it as long as a row needs it."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import mii_azure
from scoring.api.adapter_changes import AdapterChanges
from scoring.api.service import Service
from scoring.config import Deployment
from scoring.errors import AdapterNotServed, AdapterRefused, LoadError, Overloaded
from scoring.lora.loading import AdapterRoom
from scoring.lora.served import FollowList, LoadAdapter, ServeThese, UnloadAdapter, WantedAdapter
from scoring.model.loader import load_with
from scoring.passes.registry import catalogue
from scoring.schema.registry import task_class
from tests.tiny_adapters import tiny_adapter

TASK = "text-generation"
TARGETS = ("q_proj", "v_proj", "up_proj", "down_proj")
TEXT = "The house is wonderful."

Tiny = Callable[[str, str], Path]


class Within:
    """An engine's calls, made from within one: nothing runs between them."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def call(self, work: Callable[[], Any]) -> Any:
        return work()

    def rows(self) -> Any:
        return self._service.engine.rows()


@pytest.fixture
def service(tiny: Tiny, tmp_path: Path) -> Iterator[Service]:
    base = tiny("llama", TASK)
    for seed, name in enumerate("abcd", 1):
        tiny_adapter(base, TASK, tmp_path / name, TARGETS, rank=seed, seed=seed)
    bundle = mii_azure.generate(TASK, str(base), "base", output=tmp_path / "bundle", instance_type="Standard_D4as_v4")
    deployment = Deployment.read(bundle / "code" / "deployment.json")
    loaded, chosen = load_with(catalogue(deployment), deployment, bundle / "model", AdapterRoom(2, 4))
    made = Service(deployment, loaded, task_class(TASK)(loaded, TASK), {})
    made.start(chosen)
    yield made
    made.drain(5)


def ask(service: Service, name: str, tokens: int, more: dict[str, Any], **rest: Any) -> Any:
    lengths = {"max_new_tokens": tokens, "min_new_tokens": tokens}
    parameters = {**lengths, "return_full_text": False, "adapter": name, **more}
    return service.answer(json.dumps({"inputs": TEXT, "parameters": parameters, **rest}))


def text(service: Service, name: str, tokens: int = 8, **more: Any) -> str:
    reply = ask(service, name, tokens, more)
    assert reply.status == 200, reply.body
    return str(json.loads(reply.body)[0]["generated_text"])


@pytest.mark.parametrize("more", [{}, {"num_beams": 2}], ids=["slots", "batch"])
def test_a_place_is_taken_only_once_no_row_has_it(
    service: Service, tmp_path: Path, more: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert service.metadata()["optimisations"]["static_decode"] == "applied"
    changes = AdapterChanges(service.loaded, Within(service), lambda adapters: None)
    wanted = {name: WantedAdapter(name, str(tmp_path / name)) for name in "abcd"}
    changes.make(ServeThese((wanted["a"], wanted["b"])))
    expected = [text(service, name, 90, **more) for name in "ab"]
    engine, usual, changed = service.engine, service.engine._answer_calls, threading.Event()

    def between_steps() -> None:
        usual()
        if len(engine.rows()) == 2 and (engine._held or engine._batch) and not changed.is_set():
            changed.set()
            change()

    def change() -> None:
        assert {row.parameters.adapter for row in service.engine.rows()} == {each.key for each in service.adapters}
        changes.make(ServeThese((wanted["c"],)))
        with pytest.raises(Overloaded, match="still run"):
            changes.make(ServeThese((wanted["c"], wanted["d"])))
        assert [each.name for each in service.adapters] == ["c"]

    monkeypatch.setattr(engine, "_answer_calls", between_steps)
    streams = [begin(service, name, 90, **more) for name in "ab"]
    assert [ended(stream) for stream in streams] == expected
    assert changed.is_set()
    assert [each.name for each in service.adapters] == ["c"]
    changes.make(ServeThese((wanted["c"], wanted["d"])))  # now there is room
    texts = [text(service, name) for name in "cd"]
    changes.make(ServeThese(tuple(WantedAdapter(f"{name}2", str(tmp_path / name)) for name in "dc")))
    assert [text(service, name) for name in ("c2", "d2")] == texts
    assert len({*texts, *(each[: len(texts[0])] for each in expected)}) == 4


def begin(service: Service, name: str, tokens: int, **more: Any) -> Iterator[bytes]:
    body = ask(service, name, tokens, more, stream=True).body
    assert not isinstance(body, bytes)
    return body


def ended(stream: Iterator[bytes]) -> str:
    events = [json.loads(each.removeprefix(b"data: ")) for each in b"".join(stream).split(b"\n\n") if b"{" in each]
    return str(events[-1]["answer"][0]["generated_text"])


def test_a_row_that_was_made_before_its_adapter_went_is_refused(service: Service, tmp_path: Path) -> None:
    """A front end may send one that it made before it was told."""
    service.change_adapters(LoadAdapter("mine", str(tmp_path / "a")))
    call = service.task.schema.parse_parameters({"adapter": "mine"})
    rows = (
        service.task.encode(TEXT, call, 0),
        service.task.encode(TEXT, service.task.schema.parse_parameters({"adapter": "mine", "num_beams": 2}), 0),
    )
    service.change_adapters(UnloadAdapter("mine"))
    for each in rows:  # its place is still its own
        assert service.engine.submit(each).finished(30)
    for name in "bcd":
        these = (WantedAdapter("x", str(tmp_path / name)), WantedAdapter("y", str(tmp_path / "b")))
        service.change_adapters(ServeThese(these))
    for each in rows:
        with pytest.raises(AdapterNotServed, match="unloaded before"):
            service.engine.submit(each).finished(30)


def test_a_change_is_whole_or_none(service: Service, tmp_path: Path) -> None:
    service.change_adapters(LoadAdapter("mine", str(tmp_path / "a")))
    before = text(service, "mine"), service.adapters
    (tmp_path / "bad").mkdir()
    with pytest.raises(AdapterRefused, match=r"bad.*has no adapter_config"):
        service.change_adapters(FollowList({"mine": str(tmp_path / "b"), "bad": str(tmp_path / "bad")}))
    changed = WantedAdapter("mine", str(tmp_path / "b"), sha256=service.adapters[0].sha256[::-1])
    with pytest.raises(AdapterRefused, match="have changed"):
        service.change_adapters(ServeThese((changed,)))
    assert (text(service, "mine"), service.adapters) == before
    assert service.adapters is before[1]
    service.change_adapters(FollowList({"mine": str(tmp_path / "b")}))
    assert text(service, "mine") != before[0]
    service.change_adapters(FollowList({}))
    assert service.adapters == ()


def test_room_is_refused_where_no_adapter_goes(tiny: Tiny, tmp_path: Path) -> None:
    bundle = mii_azure.generate("fill-mask", str(tiny("bert", "fill-mask")), "base", output=tmp_path / "bundle")
    deployment = Deployment.read(bundle / "code" / "deployment.json")
    with pytest.raises(LoadError, match="beside a model of fill-mask") as caught:
        load_with(catalogue(deployment), deployment, bundle / "model", AdapterRoom(1, 1))
    assert "--adapter-root" in caught.value.hint


def test_broken_adapters_are_refused_in_words_while_others_are_answered(
    service: Service, tiny: Tiny, tmp_path: Path
) -> None:
    weights, config = "adapter_model.safetensors", "adapter_config.json"
    made = {name: Path(shutil.copytree(tmp_path / "a", tmp_path / name)) for name in ("nan", "header", "half", "zero")}
    tensors = load_file(made["nan"] / weights)
    save_file({name: torch.full_like(tensor, torch.nan) for name, tensor in tensors.items()}, made["nan"] / weights)
    (made["header"] / weights).write_bytes((2**60).to_bytes(8, "little") + b"{}")
    (made["half"] / weights).write_bytes((tmp_path / "a" / weights).read_bytes()[:100])
    told = json.loads((made["zero"] / config).read_text())
    (made["zero"] / config).write_text(json.dumps({**told, "r": 0}))
    made["other"] = tiny_adapter(tiny("gpt2", TASK), TASK, tmp_path / "other", ("c_attn",), rank=1)
    service.change_adapters(LoadAdapter("mine", str(tmp_path / "b")))
    before = text(service, "mine", 90)
    running = begin(service, "mine", 90)
    for name, folder in made.items():
        with pytest.raises(AdapterRefused, match=f"The adapter {name} cannot be") as caught:
            service.change_adapters(LoadAdapter(name, str(folder)))
        assert caught.value.hint
        assert caught.value.where == "lora_path"
    assert ended(running) == before
    assert [each.name for each in service.adapters] == ["mine"]


def test_of_eight_callers_who_load_one_name_one_does(service: Service, tmp_path: Path) -> None:
    def load(number: int) -> str:
        try:
            service.change_adapters(LoadAdapter("mine", str(tmp_path / "abcd"[number % 4])))
        except AdapterRefused as refused:
            return refused.message
        return ""

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(load, range(8)))
    assert sorted(answers) == ["", *["The adapter mine is loaded already."] * 7]
    assert text(service, "mine")
