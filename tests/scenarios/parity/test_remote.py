"""Parity with servers that run already, behind each of their interfaces, and with another bundle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import mii_azure
from local_runner.process.launch import LOOPBACK, Runner
from mii_azure.errors import NotABundle, SpecError
from mii_azure.verdict.outcome import TargetRun, Verdict, require_compared
from mii_azure.verdict.parity import parity
from mii_azure.verdict.sides import Side
from mii_azure.verdict.verdict_file import require_verdict, write_verdict

pytestmark = pytest.mark.usefixtures("forked")


@pytest.fixture(scope="module")
def bundle(tiny: Callable[[str, str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mii_azure.generate(
        task="text-generation",
        model=str(tiny("gpt2", "text-generation")),
        deployment_name="remote",
        output=tmp_path_factory.mktemp("remote") / "bundle",
        dtype="float32",
    )


@pytest.fixture
def verdict(bundle: Path) -> Verdict:
    with Runner(bundle) as runner:
        host = f"url:http://{LOOPBACK}:{runner.http_port}"
        urls = [f"{host}/score", f"{host}/v1", f"{host}/v2/models/remote"]
        return parity(bundle, targets=[f"bundle:{bundle}", *urls], load=4)


def test_every_interface_of_a_running_server_agrees(verdict: Verdict, tmp_path: Path) -> None:
    assert verdict.agree, [entry for entry in verdict.comparisons if entry.grade not in ("bytes", "values")]
    _, raw, openai, oip = verdict.targets
    assert sum(verdict.counts[raw].values()) == sum(verdict.counts[oip].values()) == verdict.requests
    assert 0 < sum(verdict.counts[openai].values()) < verdict.requests  # the rest has no form there
    assert f"of which have a form there: {openai} {verdict.compared[openai]}" in verdict.headline()
    assert verdict.environment[raw] == []
    assert verdict.environment[openai] == ["it tells nothing of its environment"]
    file = tmp_path / "verdict.json"
    write_verdict(verdict, file)
    assert require_verdict(file, verdict.bundle_hash) == verdict
    with pytest.raises(SpecError, match="is on bundle"):
        require_verdict(file, "0" * 64)
    write_verdict(verdict.model_copy(update={"agree": False}), file)
    with pytest.raises(SpecError, match=r"is no: .* answered differently"):
        require_verdict(file, verdict.bundle_hash)
    file.write_text("{}", encoding="utf-8")
    with pytest.raises(SpecError, match="holds no verdict"):
        require_verdict(file, verdict.bundle_hash)
    with pytest.raises(SpecError, match="cannot be read"):
        require_verdict(tmp_path / "none.json", verdict.bundle_hash)
    with pytest.raises(SpecError, match="cannot be written"):
        write_verdict(verdict, tmp_path / "no" / "folder.json")


def test_vectors_agree_behind_openais_interface(tiny: Callable[[str, str], Path], tmp_path: Path) -> None:
    model = str(tiny("bert", "sentence-embeddings"))
    vectors = mii_azure.generate("sentence-embeddings", model, "vectors", output=tmp_path / "vectors", dtype="float32")
    with Runner(vectors) as runner:
        host = f"url:http://{LOOPBACK}:{runner.http_port}"
        verdict = parity(vectors, targets=[f"{host}/score", f"{host}/v1"])
    assert verdict.agree, [entry for entry in verdict.comparisons if entry.grade not in ("bytes", "values")]
    assert sum(verdict.counts[f"{host}/v1"].values()) > 1


@pytest.mark.parametrize(
    ("target", "told"),
    [("url:http://127.0.0.1", "is no scoring URL: it has no path"), ("url:ftp://x/score", "is no scoring URL")],
)
def test_odd_urls(target: str, told: str, bundle: Path) -> None:
    with pytest.raises(SpecError, match=told):
        parity(bundle, targets=[target, "grpc"])


def test_a_key_is_for_one_host(bundle: Path) -> None:
    urls = ["url:https://ours.example/v1", "url:https://theirs.example/v1"]
    with pytest.raises(SpecError, match="The key would go to several hosts"):
        parity(bundle, targets=urls, api_key="secret")


def test_nothing_compared_is_no_verdict() -> None:
    whole = TargetRun([(200, b"1")], {}, Side(target="grpc", where="here"))
    none = TargetRun([None], {}, Side(target="url:x/v1", where="x"), own_form=False)
    require_compared({"grpc": whole, "http": whole}, 1)
    with pytest.raises(SpecError, match="None of 1 requests has a form at both grpc and url:x/v1"):
        require_compared({"grpc": whole, "url:x/v1": none}, 1)


def test_a_folder_that_is_no_bundle(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(NotABundle):
        parity(bundle, targets=[f"bundle:{tmp_path}", "grpc"])


def test_tokens_of_a_task_that_generates_none(tiny: Callable[[str, str], Path], tmp_path: Path) -> None:
    model = str(tiny("bert", "text-classification"))
    folder = mii_azure.generate(
        task="text-classification", model=model, deployment_name="labels", output=tmp_path / "bundle"
    )
    with pytest.raises(SpecError, match="text-classification has no tokens to judge"):
        parity(folder, targets=["grpc"], tokens=100)
