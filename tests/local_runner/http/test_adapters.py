"""Adapters loaded and unloaded while a server runs, over HTTP: by one process, by front ends, by replicas."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

import mii_azure
from local_runner.process.launch import LOOPBACK, Runner
from mii_azure.errors import MiiAzureError, RunnerFailed
from mii_azure.sdk.deployment_records import LocalDeployment
from mii_azure.sdk.running import running
from scoring.errors import LoadError
from tests.local_runner.http.adapter_server import KEY, PROMPT, TASK, TOKENS, Models, Server, text_by_peft
from tests.tiny_adapters import tiny_adapter
from tests.waiting import until

pytestmark = [
    pytest.mark.usefixtures("forked"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]

KINDS = {"one": (), "front-ends": ("--front-ends", "2"), "replicas": ("--replicas", "2")}
MOST, RANK = 2, 4


@pytest.fixture(scope="module")
def models(tiny: Callable[[str, str], Path], tmp_path_factory: pytest.TempPathFactory) -> Models:
    pytest.importorskip("peft")
    base, root = tiny("llama", TASK), tmp_path_factory.mktemp("adapters")
    tiny_adapter(base, TASK, root / "one", ("q_proj", "v_proj", "down_proj"), rank=4, seed=1)
    tiny_adapter(base, TASK, root / "two", ("k_proj", "o_proj", "up_proj"), rank=2, seed=2)
    tiny_adapter(base, TASK, root / "deep" / "three", ("q_proj",), rank=3, seed=3)
    tiny_adapter(base, TASK, root / "wide", ("q_proj",), rank=8)
    tiny_adapter(base, TASK, root / "head", ("q_proj", "lm_head"), rank=2)
    tiny_adapter(base, TASK, root / "kind", ("q_proj",), rank=2, peft_type="IA3")
    (root / "text").mkdir()
    (root / "text" / "adapter_config.json").write_text("{")
    (root / "text" / "adapter_model.safetensors").write_bytes(b"no weights")
    cut = tiny_adapter(base, TASK, root / "cut", ("q_proj",), rank=2) / "adapter_model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-8])
    large = tiny_adapter(base, TASK, root / "large", ("q_proj",), rank=2) / "adapter_model.safetensors"
    with large.open("ab") as file:
        file.truncate(1 << 30)  # a hole: no byte is written
    own = tiny_adapter(base, TASK, tmp_path_factory.mktemp("own") / "terse", ("q_proj",), rank=2, seed=7)
    (root / "out").symlink_to(own)
    linked = tiny_adapter(base, TASK, root / "linked", ("q_proj",), rank=2) / "adapter_model.safetensors"
    linked.unlink()
    linked.symlink_to(own / linked.name)
    bundle = mii_azure.generate(
        TASK, str(base), "base", output=tmp_path_factory.mktemp("bundle") / "b", adapters=[f"terse={own}"],
        instance_type="Standard_D4as_v4",
    )  # fmt: skip
    return Models(base, root, bundle)


@pytest.fixture(scope="module", params=KINDS)
def server(
    models: Models, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "keys").write_text(KEY + "\n")
    (folder / "settings.json").write_text("{}")
    arguments = (
        *("--adapter-root", str(models.root), "--allow-adapters", "--api-key-file", str(folder / "keys")),
        *("--max-adapters", str(MOST), "--max-adapter-rank", str(RANK)),
        *("--settings-file", str(folder / "settings.json")),
        *("--drain-seconds", "1", *KINDS[request.param]),
    )  # fmt: skip
    with Runner(models.bundle, arguments=arguments) as runner:
        made = Server(runner, folder / "settings.json")
        if request.param == "replicas":
            _wait_for_replicas(made)
        yield made


def _wait_for_replicas(server: Server) -> None:
    until(lambda: httpx.get(server.url + "/readyz", trust_env=False).json()["replicas"]["ready"] == 2)


@pytest.fixture
def fresh(server: Server) -> Iterator[Server]:
    """The server with the bundle's adapter alone."""
    yield server
    for name in [name for name in server.names() if name not in ("base", "terse")]:
        assert server.unload(name).status_code == 200


def test_an_adapter_comes_and_goes_and_comes_anew(fresh: Server, models: Models) -> None:
    own = fresh.text("terse")
    assert fresh.metadata()["optimisations"]["static_decode"] == "applied"
    loaded = fresh.load("mine", "one")
    assert (loaded.status_code, loaded.text) == (200, "Success: LoRA adapter 'mine' added successfully.")
    assert fresh.everywhere(fresh.names) == [["base", "terse", "mine"]] * 8
    told = {each["name"]: each for each in fresh.metadata()["adapters"]}
    assert (told["mine"]["rank"], told["mine"]["merged"], len(told["mine"]["sha256"])) == (4, False, 64)
    assert fresh.everywhere(lambda: fresh.text("mine")) == [models.text("one")] * 8
    again = fresh.load("mine", "two")
    assert (again.status_code, again.json()["error"]["param"]) == (400, "lora_name")
    assert "load_inplace" in again.json()["error"]["message"]
    assert fresh.load("mine", "two", load_inplace=True).status_code == 200
    assert fresh.everywhere(lambda: fresh.text("mine")) == [models.text("two")] * 8  # nothing of the old is held
    assert fresh.everywhere(lambda: fresh.text("base")) == [models.text("")] * 8
    assert fresh.text("terse") == own
    gone = fresh.unload("mine")
    assert (gone.status_code, gone.text) == (200, "Success: LoRA adapter 'mine' removed successfully.")
    assert fresh.everywhere(fresh.names) == [["base", "terse"]] * 8
    with pytest.raises(openai.NotFoundError, match="'mine'"):
        fresh.text("mine")
    assert fresh.unload("mine").json()["error"]["code"] == "adapter_not_served"
    assert fresh.load("mine", str(models.root / "deep" / "three")).status_code == 200  # a whole path, below the root
    assert fresh.everywhere(lambda: fresh.text("mine")) == [models.text("deep/three")] * 8
    assert len({models.text(name) for name in ("", "one", "two", "deep/three")}) == 4


def test_what_runs_ends_with_the_adapter_that_it_began_with(fresh: Server, models: Models) -> None:
    assert fresh.load("mine", "one").status_code == 200
    count, tokens = 6, 75
    streams = [
        fresh.client().completions.create(model="mine", prompt=PROMPT, max_tokens=tokens, temperature=0, stream=True)
        for _ in range(count)
    ]
    begun = [next(iter(stream)).choices[0].text for stream in streams]
    assert fresh.unload("mine").status_code == 200
    assert fresh.load("mine", "two").status_code == 200
    assert fresh.text("mine") == models.text("two")
    ends = ["".join(part.choices[0].text for part in stream) for stream in streams]
    whole = [begin + end for begin, end in zip(begun, ends, strict=True)]
    assert whole == [models.text("one", tokens)] * count


BAD = {
    "../adapters": "is not below",
    "/etc": "is not below",
    ".": "is not below",
    "out": "is not below",
    "nowhere": "is no folder",
    "a\0b": "is no folder",
    "a" * 300: "is no folder",
    "one/" * 2000: "is no folder",
    "deep": "has no adapter_config.json",
    "linked": "a link that leads out",
    "wide": "there is room for rank 4",
    "head": "the output matrix",
    "kind": "of the kind 'IA3'",
    "text": "adapter_config.json cannot be read",
    "cut": "is damaged",
    "large": "bytes that there is room for",
}


def test_a_bad_adapter_is_refused_in_words_and_harms_nobody(fresh: Server, models: Models) -> None:
    tokens = 75
    stream = fresh.client().completions.create(
        model="terse", prompt=PROMPT, max_tokens=tokens, temperature=0, stream=True
    )
    for path, sentence in BAD.items():
        answer = fresh.load("bad", path)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (400, "adapter_refused", "lora_path"), path
        assert sentence in error["message"], path
        assert "/tmp" not in error["message"].replace(str(models.root), "")
    for name in ("base", "a/b", "", "x" * 65):
        answer = fresh.load(name, "one")
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "lora_name"), name
    assert fresh.post("/v1/load_lora_adapter", {"lora_name": "a"}).json()["error"]["param"] == "lora_path"
    assert fresh.post("/v1/load_lora_adapter", {"lora_name": 1, "lora_path": "one"}).status_code == 400
    assert fresh.load("a", "one", rank=3).json()["error"]["param"] == "rank"
    assert fresh.load("a", "one", load_inplace="yes").json()["error"]["param"] == "load_inplace"
    for number in range(MOST - 1):
        assert fresh.load(f"a{number}", "one").status_code == 200
    full = fresh.load("one-more", "two")
    assert (full.status_code, full.json()["error"]["code"]) == (400, "adapter_refused")
    assert f"room for {MOST} adapters" in full.json()["error"]["message"]
    assert fresh.names() == ["base", "terse", *(f"a{number}" for number in range(MOST - 1))]
    assert len("".join(part.choices[0].text for part in stream)) > 0
    assert fresh.text("terse", tokens) == fresh.text("terse", tokens)


def test_only_who_has_a_key_may(fresh: Server) -> None:
    for key in ("", "another"):
        for path in ("load", "unload"):
            answer = fresh.post(f"/v1/{path}_lora_adapter", {"lora_name": "a", "lora_path": "one"}, key)
            assert answer.status_code == 401
    assert fresh.names() == ["base", "terse"]
    assert "/v1/load_lora_adapter" in httpx.get(fresh.url + "/openapi.json", headers={"x-api-key": KEY}).json()["paths"]


def test_the_operators_list_is_followed_at_sighup(fresh: Server, models: Models) -> None:
    assert fresh.hang_up({"adapters": {"mine": "one"}}) == "reloaded: 1 API keys, adapters mine"
    assert fresh.everywhere(lambda: fresh.text("mine")) == [models.text("one")] * 8
    wrong = fresh.hang_up({"adapters": {"mine": "two", "other": "wide"}, "drain_seconds": 2})
    assert wrong.startswith("not reloaded:")
    assert "room for" in wrong
    assert fresh.hang_up({"adapters": {"mine": "/etc"}}).startswith("not reloaded:")
    assert fresh.hang_up({"adapters": ["mine"]}).startswith("not reloaded:")
    assert fresh.everywhere(lambda: fresh.text("mine")) == [models.text("one")] * 8
    assert fresh.hang_up({"adapters": {"mine": "two"}}).startswith("reloaded:")
    assert fresh.everywhere(lambda: fresh.text("mine")) == [models.text("two")] * 8
    assert fresh.hang_up({}).startswith("reloaded:")  # no list says nothing of adapters
    assert fresh.names() == ["base", "terse", "mine"]
    assert fresh.hang_up({"adapters": {}}).endswith("adapters none")
    assert fresh.everywhere(fresh.names) == [["base", "terse"]] * 8


def test_a_process_that_is_started_again_has_the_adapters_of_the_others(
    fresh: Server, models: Models, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    kind = request.node.callspec.params["server"]
    if kind == "one":
        pytest.skip("it is one process")
    folder = tiny_adapter(models.base, TASK, models.root / f"moved-{kind}", ("q_proj", "v_proj"), rank=4, seed=9)
    expected = text_by_peft(models.base, folder, TOKENS)
    assert fresh.load("mine", folder.name).status_code == 200
    folder.rename(tmp_path / "gone")  # what is served does not depend on where it came from
    first, *others = sorted(each.pid for each in psutil.Process(fresh.runner.process.pid).children())
    parts = [pid for pid in (first, *others) if _is_part(pid)]
    os.kill(parts[0], signal.SIGKILL)
    until(lambda: parts[0] not in _parts(fresh) and len(_parts(fresh)) == len(parts))
    if kind == "replicas":
        _wait_for_replicas(fresh)
    found = fresh.everywhere(lambda: fresh.text("mine"))
    assert found == [expected] * 8
    if kind == "replicas":
        later = tiny_adapter(models.base, TASK, models.root / "later", ("v_proj",), rank=4, seed=10)
        assert fresh.load("later", "later").status_code == 400  # both places are taken
        assert fresh.unload("mine").status_code == 200
        assert fresh.load("later", "later").status_code == 200
        assert fresh.everywhere(lambda: fresh.text("later")) == [text_by_peft(models.base, later, TOKENS)] * 8


def test_a_folder_that_is_still_being_written_is_refused_until_it_is_whole(
    fresh: Server, models: Models, request: pytest.FixtureRequest
) -> None:
    folder = models.root / f"written-{request.node.callspec.params['server']}"
    folder.mkdir()
    files = {path.name: path.read_bytes() for path in (models.root / "one").iterdir()}
    assert fresh.load("mine", folder.name).status_code == 400
    for name, content in files.items():
        for size in (0, 7, len(content) // 2, len(content) - 1, len(content)):
            (folder / name).write_bytes(content[:size])
            answer = fresh.load("mine", folder.name)
            if all((folder / each).is_file() and (folder / each).read_bytes() == files[each] for each in files):
                break
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "adapter_refused"), (name, size)
            assert fresh.names() == ["base", "terse"]
    assert answer.status_code == 200
    assert fresh.everywhere(lambda: fresh.text("mine")) == [models.text("one")] * 8


def test_eight_callers_are_answered_while_adapters_come_and_go(
    fresh: Server, models: Models, request: pytest.FixtureRequest
) -> None:
    """Calls, a folder whose files are replaced by those of another rank, and SIGHUPs without an end, all at once."""
    folder, ended = models.root / f"changing-{request.node.callspec.params['server']}", threading.Event()
    own = fresh.text("terse")
    right = {"base": {models.text("")}, "terse": {own}, "mine": {models.text("one"), models.text("two")}}
    body = {"prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0}

    def call(model: str) -> list[tuple[int, str]]:
        told = []
        while not ended.is_set():
            answer = fresh.post("/v1/completions", {"model": model, **body})
            found = answer.json()
            text = found["choices"][0]["text"] if answer.status_code == 200 else found["error"]["code"]
            told.append((answer.status_code, text))
        return told

    def change() -> list[tuple[int, str]]:
        told = []
        for source in ("one", "two") * 2:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(models.root / source, folder)
            for _ in range(5):
                os.kill(fresh.runner.process.pid, signal.SIGHUP)
            answer = until(lambda: (found := fresh.load("mine", folder.name)).status_code != 429 and found)
            told.append((answer.status_code, fresh.text("mine")))
            assert fresh.load("more", "deep/three").status_code in (400, 429)  # there is no room
            assert fresh.unload("mine").status_code == 200
        return told

    models_asked = ("base", "terse", "mine", "mine") * 2
    fresh.settings.write_text("{}")
    with ThreadPoolExecutor(9) as pool:
        callers = [pool.submit(call, model) for model in models_asked]
        changing = pool.submit(change)
        try:
            changes = changing.result(120)
        finally:
            ended.set()
        answers = [caller.result(120) for caller in callers]
    assert changes == [(200, models.text(source)) for source in ("one", "two") * 2]
    for model, told in zip(models_asked, answers, strict=True):
        assert {text for status, text in told if status == 200} <= right[model]
        gone = {(404, code) for code in ("model_not_served", "adapter_not_served")} if model == "mine" else set()
        assert {each for each in told if each[0] != 200} <= gone
        assert model == "mine" or told
    assert fresh.names() == ["base", "terse"]


def _is_part(pid: int) -> bool:
    from tests.fork_server import STAND_BY

    try:
        return psutil.Process(pid).name() != STAND_BY
    except psutil.NoSuchProcess:  # it ended since it was listed
        return False


def _parts(server: Server) -> list[int]:
    return [each.pid for each in psutil.Process(server.runner.process.pid).children() if _is_part(each.pid)]


def test_a_server_is_closed_by_default(models: Models, tmp_path: Path) -> None:
    """Adapters of a list alone open no calls; a list at the start is served from the first request on."""
    (tmp_path / "settings.json").write_text(json.dumps({"adapters": {"mine": "one"}}))
    listed = ("--adapter-root", str(models.root), "--settings-file", str(tmp_path / "settings.json"))
    with Runner(models.bundle, arguments=listed) as runner:
        made = Server(runner, tmp_path / "settings.json")
        assert made.text("mine") == models.text("one")
        for path in ("load", "unload"):
            assert made.post(f"/v1/{path}_lora_adapter", {"lora_name": "mine", "lora_path": "one"}).status_code == 404
        assert "/v1/load_lora_adapter" not in httpx.get(made.url + "/openapi.json", trust_env=False).json()["paths"]
        (told,) = [each for each in running() if each.pid == runner.process.pid]
        assert told.adapters == ("terse", "mine")  # not the bundle's own alone
        assert made.hang_up({"adapters": {"mine": "two"}}) == "reloaded: adapters mine"
        assert made.text("mine") == models.text("two")


@pytest.mark.parametrize(
    ("arguments", "settings", "sentence"),
    [
        (("--allow-adapters", "--adapter-root", "ROOT"), {}, "would let anybody load adapters"),
        (("--allow-adapters",), {}, "no folder to load from"),
        (("--adapter-root", "ROOT/nowhere"), {}, "is no folder"),
        (("--adapter-root", "ROOT/" + "a" * 300), {}, "is no folder"),
        (("--adapter-root", "ROOT"), {"adapters": {"mine": "wide"}}, "room for rank 16"),
        (
            ("--adapter-root", "ROOT", "--max-adapter-rank", "1"),
            {"adapters": {"mine": "one"}},
            "there is room for rank",
        ),
        ((), {"adapters": {"mine": "one"}}, "loads no adapters while it serves"),
    ],
    ids=str,
)
def test_starts_that_are_refused(
    models: Models, tmp_path: Path, arguments: tuple[str, ...], settings: dict[str, Any], sentence: str
) -> None:
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    if "16" in sentence:
        tiny_adapter(models.base, TASK, tmp_path / "root" / "wide", ("q_proj",), rank=17)
    root = tmp_path / "root" if "16" in sentence else models.root
    given = [each.replace("ROOT", str(root)) for each in arguments]
    with (
        pytest.raises(MiiAzureError, match=sentence) as caught,
        Runner(models.bundle, arguments=(*given, "--settings-file", str(tmp_path / "settings.json"))),
    ):
        pass
    assert not isinstance(caught.value, LoadError) or isinstance(caught.value, RunnerFailed)
    assert caught.value.hint


def test_what_the_sdk_deploys_takes_the_settings_of_the_environment(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keys").write_text(KEY)
    told = {"HOME": tmp_path / "home", "ADAPTER_ROOT": models.root, "API_KEY_FILE": tmp_path / "keys"}
    for name, value in {**told, "ALLOW_ADAPTERS": "true"}.items():
        monkeypatch.setenv(f"MII_AZURE_{name}", str(value))
    deployed = mii_azure.deploy(TASK, str(models.base), "adapted", instance_type="Standard_D4as_v4")
    assert isinstance(deployed, LocalDeployment)
    try:
        url, headers = f"http://{LOOPBACK}:{deployed.http_port}", {"authorization": f"Bearer {KEY}"}
        body = {"lora_name": "mine", "lora_path": "one"}
        answer = httpx.post(f"{url}/v1/load_lora_adapter", json=body, headers=headers, timeout=60, trust_env=False)
        assert answer.status_code == 200
        asked = {"model": "mine", "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0}
        made = httpx.post(f"{url}/v1/completions", json=asked, headers=headers, timeout=60, trust_env=False).json()
        assert made["choices"][0]["text"] == models.text("one")
    finally:
        mii_azure.terminate("adapted")
