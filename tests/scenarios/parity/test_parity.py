"""Parity over real hosts, and verdicts that must say no."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import mii_azure
from local_runner.targets.load import TargetReply
from local_runner.targets.targets import make_target
from mii_azure.errors import SpecError
from mii_azure.platform.target_names import TARGETS
from mii_azure.verdict.outcome import Verdict
from mii_azure.verdict.parity import parity
from tests.scoring.generating import PROMPTS, continuation

pytestmark = pytest.mark.usefixtures("forked")

Tiny = Callable[[str, str], Path]


def bundle(tiny: Tiny, family: str, task: str, folder: Path) -> Path:
    """In float32: in half precision the beams of a random model part over the rounding of a shared batch.

    Without the pass for encoders on CPUs: each process times it, and for one of this size may choose otherwise.
    """
    return mii_azure.generate(
        task=task,
        model=str(tiny(family, task)),
        deployment_name="under-test",
        output=folder / "bundle",
        dtype="float32",
        passes_off=("cpu",) if family in ("bert", "roberta") else (),
    )


@pytest.mark.parametrize(
    ("family", "task"),
    [("roberta", "question-answering"), ("gpt2", "text-generation"), ("marian", "translation")],
)
def test_every_host_answers_alike(family: str, task: str, tiny: Tiny, tmp_path: Path) -> None:
    verdict = parity(bundle(tiny, family, task, tmp_path), load=8)
    assert verdict.agree, [entry for entry in verdict.comparisons if entry.grade not in ("bytes", "values")]
    assert verdict.targets == TARGETS
    # One script and one engine: not a byte may differ between hosts of one machine.
    alone = [entry for entry in verdict.comparisons if not entry.under_load]
    assert {entry.grade for entry in alone} == {"bytes"}
    assert len(verdict.comparisons) - len(alone) == verdict.requests * len(TARGETS)
    statuses = {entry.request: entry.status for entry in alone}
    assert statuses["sample"] == statuses["unicode"] == statuses["list of three"] == 200
    assert statuses["empty body"] == statuses["NaN"] == statuses["unknown parameter"] == 400
    assert not any(verdict.environment.values())


@pytest.mark.parametrize("family", ["gpt_oss", "mixtral", "qwen3_moe"])
def test_mixtures_of_experts_are_served_as_transformers_answers(family: str, tiny: Tiny, tmp_path: Path) -> None:
    task, text = "text-generation", PROMPTS[0]
    folder = mii_azure.generate(
        task,
        str(tiny(family, task)),
        "experts",
        output=tmp_path / "b",
        instance_type="Standard_F4s_v2",
        dtype="float32",
    )
    assert "Fused tier" in (folder / "plan.md").read_text(encoding="utf-8")
    with make_target("http", folder) as target:
        told = target.metadata()["optimisations"]
        reply = target.send(json.dumps({"inputs": text, "parameters": {"max_new_tokens": 12}}))
    assert told["static_decode"] == "applied"
    [wanted] = continuation(tiny(family, task), task, text, max_new_tokens=12)
    assert wanted and json.loads(reply.body)[0]["generated_text"] == text + wanted


def test_the_command_exits_0_when_hosts_agree(tiny: Tiny, tmp_path: Path) -> None:
    folder = bundle(tiny, "bert", "fill-mask", tmp_path)
    requests = tmp_path / "requests.jsonl"
    requests.write_text('{"inputs": "a [MASK] b"}\n{"inputs": 1}\n', encoding="utf-8")
    command = [sys.executable, "-m", "mii_azure.cli.app", "parity", str(folder), "--targets", "in-process,azmlinfsrv"]
    done = subprocess.run([*command, "--requests", str(requests), "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["requests"] == 2


class FakeTarget:
    """A target that answers what it is told to."""

    def __init__(self, body: bytes, facts: dict[str, Any], loaded: bytes = b"") -> None:
        self.body, self.facts, self.loaded = body, facts, loaded

    def __enter__(self) -> "FakeTarget":
        return self

    def __exit__(self, *exception: object) -> None: ...

    def send(self, raw: str) -> TargetReply:
        return TargetReply(200, self.body, 0.0)

    def together(self, bodies: Sequence[str], clients: int) -> list[list[TargetReply]]:
        return [[TargetReply(200, self.body, 0.0), TargetReply(200, self.loaded or self.body, 0.0)] for _ in bodies]

    own_form = True

    def takes(self, raw: str) -> bool:
        return True

    def metadata(self) -> dict[str, Any]:
        return {"context_length": 64, **self.facts}

    def billed(self) -> tuple[str, int]:
        return "", 0


@pytest.fixture
def disagreement(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Verdict:
    fakes = {
        "in-process": FakeTarget(b'[{"label":"A","score":0.9}]', {"versions": {"torch": "2.13.0"}, "threads": 2}),
        "grpc": FakeTarget(b'[{"label":"B","score":0.9}]', {"versions": {"torch": "2.12.0"}, "threads": 8}),
        "http": FakeTarget(b'[{"label":"A","score":0.9000001}]', {"versions": {"torch": "2.13.0"}, "threads": 2}),
    }
    monkeypatch.setattr("local_runner.targets.targets.make_target", lambda name, folder: fakes[name])
    return parity(bundle(tiny, "bert", "text-classification", tmp_path), targets=("in-process", "grpc", "http"))


def test_a_disagreement_is_graded_and_explained(disagreement: Verdict) -> None:
    assert not disagreement.agree
    assert set(disagreement.counts["grpc"]) == {"different"}
    assert set(disagreement.counts["http"]) == {"values"}
    assert disagreement.environment["grpc"][0] == "torch 2.13.0 against 2.12.0"
    assert disagreement.environment["http"] == []


def test_a_disagreement_is_told_with_its_cause(disagreement: Verdict, capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    from mii_azure.cli.report import show_verdict

    show_verdict(Console(width=200, markup=False), disagreement)
    shown = capsys.readouterr().out
    assert '$[0].label is "A" against "B" (torch 2.13.0 against 2.12.0)' in shown
    assert "disagree: in-process, grpc, http" in shown


def test_an_answer_that_another_caller_changes(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rich.console import Console

    from mii_azure.cli.report import show_verdict

    answer = b'[{"label":"A","score":0.9}]'
    fakes = {
        "grpc": FakeTarget(answer, {}, loaded=b'[{"label":"A","score":0.90001}]'),
        "http": FakeTarget(answer, {}, loaded=b'[{"label":"B","score":0.9}]'),
    }
    monkeypatch.setattr("local_runner.targets.targets.make_target", lambda name, folder: fakes[name])
    folder = bundle(tiny, "bert", "text-classification", tmp_path)
    assert parity(folder, targets=("grpc", "http")).agree
    verdict = parity(folder, targets=("grpc", "http"), load=3)
    assert not verdict.agree
    assert verdict.moved == {"grpc": 0, "http": verdict.requests}
    show_verdict(Console(width=200, markup=False), verdict)
    shown = capsys.readouterr().out
    assert 'http, sample: $[0].label is "A" against "B" (alone it answered otherwise)' in shown
    assert f"otherwise than alone: grpc 0, http {verdict.requests}" in shown


def test_a_load_below_none(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="No -1 requests can be in flight"):
        parity(bundle(tiny, "bert", "fill-mask", tmp_path), load=-1)


@pytest.mark.parametrize("targets", [("grpc",), ("grpc", "grpc"), ("grpc", "carrier-pigeon")])
def test_targets_that_cannot_be_compared(targets: tuple[str, ...], tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(SpecError):
        parity(bundle(tiny, "bert", "fill-mask", tmp_path), targets=targets)
