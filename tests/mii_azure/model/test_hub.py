"""Hub models, through the real hub client against a hub on loopback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from mii_azure.model.folder import files_to_copy
from mii_azure.model.profile import profile
from mii_azure.model.source import resolve
from tests.conftest import Tiny
from tests.mii_azure.model.fake_hub import COMMIT, FakeHub
from tests.mii_azure.model_folders import BERT, LLAMA, Folder
from tests.sentence_folders import HIDDEN, NORMALIZE, dense, sentence_folder

# The client reads its endpoint once, at import, so a process of its own asks: one JSON line in, one out.
ASK = """
import json, sys
from mii_azure.errors import MiiAzureError
from mii_azure.model.hub import download
from mii_azure.planning.planner import plan
for line in sys.stdin:
    wanted = json.loads(line)
    try:
        if wanted.pop("download", False):
            answer = json.dumps({"folder": str(download(**wanted))})
        else:
            answer = plan(**{"task": "fill-mask"} | wanted).model_dump_json()
    except MiiAzureError as error:
        answer = json.dumps(error.to_dict())
    print(answer, flush=True)
"""

Ask = Callable[..., dict[str, Any]]


@contextmanager
def asking(hub: FakeHub, home: Path, **environment: str) -> Iterator[Ask]:
    """`ask(model=…)` plans (or, with `download`, downloads) in another process and returns the plan or the error."""
    base = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    base |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1", "HF_TOKEN": "hf_secret"}
    base |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    errors = home / "stderr.txt"
    with errors.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-c", ASK],
            env=base | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )

        def ask(**wanted: Any) -> dict[str, Any]:
            assert process.stdin and process.stdout
            process.stdin.write(json.dumps(wanted) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
            assert line, errors.read_text()
            assert "hf_secret" not in line
            answer: dict[str, Any] = json.loads(line)
            return answer

        try:
            yield ask
        finally:
            process.communicate(timeout=30)
    assert "hf_secret" not in errors.read_text()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hf")


@pytest.fixture(scope="module")
def the_hub() -> Iterator[FakeHub]:
    with FakeHub().serving() as hub:
        yield hub


@pytest.fixture(scope="module")
def ask(the_hub: FakeHub, home: Path) -> Iterator[Ask]:
    with asking(the_hub, home) as ask:
        yield ask


@pytest.fixture
def hub(the_hub: FakeHub) -> FakeHub:
    """The hub, empty and in order again."""
    the_hub.repos.clear()
    the_hub.gated.clear()
    the_hub.sent.clear()
    the_hub.broken = False
    return the_hub


@pytest.fixture
def repo(request: pytest.FixtureRequest) -> str:
    """A repository's id that no other test uses: the client's cache outlives a test."""
    return f"me/{request.node.name}"[:90]


def big(path: Path, megabytes: int = 2) -> None:
    """Weights of some size, so that sending them would show."""
    save_file({"a.weight": np.zeros((megabytes, 512, 512), np.float32)}, path)


def test_planning_reads_headers_and_sends_no_weights(hub: FakeHub, ask: Ask, repo: str, folder: Folder) -> None:
    hub.repos[repo] = path = folder(weights=False, **{"tokenizer_config.json": {"model_max_length": 32}})
    big(path / "model.safetensors")
    plan = ask(model=repo)
    facts = plan["profile"]
    assert (facts["source"], facts["revision"], facts["model"]) == ("hub", COMMIT, repo)
    assert facts["parameters"] == 2 * 512 * 512
    assert facts["weight_bytes"] == (path / "model.safetensors").stat().st_size
    assert facts["context_length"] == 32
    assert hub.sent["model.safetensors"] <= 100_001 < facts["weight_bytes"]


def test_every_shard_is_asked_for_its_header_only(hub: FakeHub, ask: Ask, repo: str, folder: Folder) -> None:
    hub.repos[repo] = path = folder(LLAMA, weights=False)
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for name in names:
        save_file({f"{name}.weight": np.zeros((512, 512), np.float16)}, path / name)
    index = {"weight_map": {f"{name}.weight": name for name in names}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    plan = ask(model=repo, task="text-generation")
    assert plan["profile"]["parameters"] == 2 * 512 * 512
    assert all(hub.sent[name] <= 100_001 for name in names)
    (path / names[1]).unlink()
    assert ask(model=repo, task="text-generation")["error"]["code"] == "weights_missing"


def test_a_branch_is_pinned_to_its_commit(hub: FakeHub, ask: Ask, repo: str, folder: Folder) -> None:
    hub.repos[repo] = folder()
    assert ask(model=repo, revision="main")["profile"]["revision"] == COMMIT


def test_a_download_holds_what_a_bundle_needs(hub: FakeHub, ask: Ask, repo: str, folder: Folder) -> None:
    extra = {"vocab.txt": "a", "pytorch_model.bin": "x", "modeling.py": "x", "onnx__model.onnx": "x", "README.md": "x"}
    hub.repos[repo] = folder(**extra)
    found = Path(ask(model=repo, revision=COMMIT, download=True)["folder"])
    # The card is read for the licence; it does not enter the bundle.
    assert {file.name for file in found.rglob("*")} == {"config.json", "model.safetensors", "vocab.txt", "README.md"}
    assert found.name == COMMIT
    assert hub.sent["pytorch_model.bin"] == 0


def test_what_was_downloaded_is_found_again_without_the_hub(
    hub: FakeHub, ask: Ask, repo: str, folder: Folder, home: Path
) -> None:
    hub.repos[repo] = folder()
    planned = ask(model=repo)
    with asking(hub, home, HF_HUB_OFFLINE="1") as offline:
        assert offline(model=repo, revision=COMMIT)["error"]["code"] == "unknown_model"
        first = ask(model=repo, download=True)
        sent = hub.sent["model.safetensors"]
        assert ask(model=repo, revision=COMMIT, download=True) == first
        assert hub.sent["model.safetensors"] == sent
        assert offline(model=repo, revision=COMMIT) == planned
        assert offline(model=repo, revision=COMMIT, download=True) == first


def test_a_pipeline_is_planned_by_its_headers_and_downloaded_by_its_parts(
    hub: FakeHub, ask: Ask, repo: str, tiny: Tiny, tmp_path: Path, home: Path
) -> None:
    hub.repos[repo] = path = Path(shutil.copytree(tiny("stable-diffusion", "text-to-image"), tmp_path / "pipeline"))
    (path / "v1-4.ckpt").write_bytes(b"x")
    (path / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"x")
    local = profile(resolve(str(path)))
    planned = ask(model=repo, task="text-to-image")
    assert planned["profile"] == local.model_dump(mode="json") | {"model": repo, "revision": COMMIT, "source": "hub"}
    assert 0 < hub.sent["unet/diffusion_pytorch_model.safetensors"] <= 100_001
    found = Path(ask(model=repo, download=True)["folder"])
    wanted = {file.as_posix() for file in files_to_copy(path)}
    assert {file.relative_to(found).as_posix() for file in found.rglob("*") if file.is_file()} == wanted
    with asking(hub, home, HF_HUB_OFFLINE="1") as offline:
        assert offline(model=repo, revision=COMMIT, task="text-to-image") == planned


def test_pickle_only(hub: FakeHub, ask: Ask, repo: str, folder: Folder) -> None:
    hub.repos[repo] = path = folder(weights=False)
    (path / "pytorch_model.bin").write_bytes(bytes(4000))
    error = ask(model=repo)["error"]
    assert error["code"] == "pickle_refused" and "--allow-pickle" in error["hint"]
    assert ask(model=repo, allow_pickle=True)["profile"]["parameters"] == 1000
    assert hub.sent["pytorch_model.bin"] == 0


def test_not_found_gated_and_no_such_revision_are_told_apart(hub: FakeHub, ask: Ask, repo: str, folder: Folder) -> None:
    hub.repos[repo] = folder()
    hub.repos["me/closed"] = hub.repos[repo]
    hub.gated.add("me/closed")
    missing = ask(model="bert-base-uncasd")["error"]
    closed = ask(model="me/closed")["error"]
    revision = ask(model=repo, revision="nope")["error"]
    assert {error["code"] for error in (missing, closed, revision)} == {"unknown_model"}
    assert "no public model" in missing["message"] and "bert-base-uncased" in missing["hint"]
    assert "gated" in closed["message"] and "HF_TOKEN" in closed["hint"]
    assert "nope" in revision["message"]


def test_a_broken_hub_is_not_a_missing_model(hub: FakeHub, ask: Ask, repo: str) -> None:
    hub.broken = True
    error = ask(model=repo)["error"]
    assert error["code"] == "unknown_model" and "500" in error["message"]


@pytest.mark.parametrize(
    ("environment", "why"),
    [({"HF_ENDPOINT": "http://127.0.0.1:9"}, "no connection"), ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE")],
)
def test_without_a_network(hub: FakeHub, tmp_path: Path, environment: dict[str, str], why: str) -> None:
    with asking(hub, tmp_path, **environment) as ask:
        recorded = ask(model="bert-base-uncased")
        assert recorded["profile"]["source"] == "recorded"
        assert recorded["profile"]["parameters"] == 109_514_298
        error = ask(model="nobody/nothing")["error"]
        assert error["code"] == "unknown_model" and why in error["message"]
        assert "network" in error["hint"]
        assert ask(model="nobody/nothing", download=True)["error"]["code"] == "unknown_model"


def test_repositories_that_are_no_transformers_model(hub: FakeHub, ask: Ask, repo: str, folder: Folder) -> None:
    hub.repos["me/adapter"] = folder(None, name="adapter", **{"adapter_config.json": "{}"})
    hub.repos["me/empty"] = folder(None, weights=False, name="empty", **{"README.md": "x"})
    hub.repos["me/weightless"] = folder(weights=False, name="weightless")
    hub.repos["me/quantised"] = folder(BERT | {"quantization_config": {"quant_method": "aqlm"}}, name="quantised")
    assert "merge" in ask(model="me/adapter")["error"]["hint"]
    assert ask(model="me/empty")["error"]["code"] == "config_missing"
    assert ask(model="me/weightless")["error"]["code"] == "weights_missing"
    assert "aqlm" in ask(model="me/quantised")["error"]["message"]


def test_damaged_weights_on_the_hub(hub: FakeHub, ask: Ask, repo: str, folder: Folder) -> None:
    hub.repos[repo] = path = folder()
    whole = (path / "model.safetensors").read_bytes()
    for part in (whole[:20], whole[:800]):
        (path / "model.safetensors").write_bytes(part)
        assert ask(model=repo)["error"]["code"] == "weights_corrupt"


def test_the_token_goes_to_the_hub_and_nowhere_else(
    hub: FakeHub, ask: Ask, repo: str, folder: Folder, tmp_path: Path
) -> None:
    hub.repos[repo] = folder()
    assert "hf_secret" not in json.dumps(ask(model=repo))
    assert "Bearer hf_secret" in hub.tokens


def test_a_sentence_transformers_layout_is_planned_and_downloaded_whole(
    hub: FakeHub, ask: Ask, repo: str, tiny: Tiny, tmp_path: Path
) -> None:
    task = "sentence-embeddings"
    layers = [dense(HIDDEN, 24), NORMALIZE]
    path = sentence_folder(tiny("bert", task), tmp_path / "m", "cls", layers, path="0_Transformer", max_seq_length=40)
    hub.repos[repo] = path
    planned = ask(model=repo, task=task)
    assert (planned["context_length"], planned["task_options"]) == (40, {})
    assert planned["profile"]["pooling"] == "cls, then Dense 32 to 24 (Tanh), then Normalize"
    assert planned["profile"]["parameters"] == profile(resolve(str(path))).parameters
    found = Path(ask(model=repo, download=True)["folder"])
    assert files_to_copy(found) == files_to_copy(path)
