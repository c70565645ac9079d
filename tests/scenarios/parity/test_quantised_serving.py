"""A bundle whose weights are int8, made by the command line and served as any other."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

import mii_azure
from local_runner.targets.targets import InProcess
from mii_azure.cli import app
from mii_azure.verdict.parity import parity
from tests.conftest import Packaged, Tiny
from tests.published import publish
from tests.scoring.conftest import Served
from tests.tiny_gguf import tiny_gguf

pytestmark = pytest.mark.usefixtures("forked")

Command = Callable[..., str]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Run the command line in this process and return all that it wrote to standard output."""

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["mii-azure", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            app.main()
        assert not end.value.code
        return capfd.readouterr().out

    return run


def test_it_serves_and_says_what_its_weights_are(tiny: Tiny, tmp_path: Path, command: Command) -> None:
    import transformers

    from scoring.config import Deployment
    from scoring.model.loader import load

    model, bundle = tiny("llama", "text-generation"), tmp_path / "tiny"
    given = ["--task", "text-generation", "--model", model, "--name", "tiny", "--instance-type", "Standard_F4s_v2"]
    made = json.loads(command("generate", *given, "--output", bundle, "--quantise", "int8", "--json"))
    assert made["quantisation"]["products"] == 15
    body = {"inputs": "Once upon a time", "parameters": {"max_new_tokens": 12, "do_sample": False}}
    with InProcess(bundle) as target:
        told = target.metadata()
        answer = json.loads(target.send(json.dumps(body)).body)
    assert told["quantisation"] == made["quantisation"]
    assert told["optimisations"]["static_decode"] == "applied"  # verified against the model as shipped
    plain = load(Deployment("x", "text-generation"), bundle / "model").model
    tokenizer = transformers.AutoTokenizer.from_pretrained(bundle / "model")
    inputs = tokenizer("Once upon a time", return_tensors="pt")
    wanted = plain.generate(**inputs, max_new_tokens=12, do_sample=False, pad_token_id=0)
    text = tokenizer.decode(wanted[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    assert answer[0]["generated_text"].endswith(text)


def test_what_others_quantised_is_served_as_it_is(tiny: Tiny, tmp_path: Path) -> None:
    """Generated, checked and served from the published files, it answers as the weights that they stand for."""
    import transformers

    source, bundle = tiny("llama", "text-generation"), tmp_path / "bundle"
    wide = publish(source, tmp_path / "published", "awq")
    shutil.copytree(source, tmp_path / "wide")
    save_file(wide, tmp_path / "wide" / "model.safetensors", metadata={"format": "pt"})
    given: dict[str, Any] = {"output": bundle, "instance_type": "Standard_F4s_v2"}
    mii_azure.generate("text-generation", str(tmp_path / "published"), "tiny", **given)
    assert mii_azure.check(bundle) == []
    assert "widened to float32 while it is loaded" in (bundle / "plan.md").read_text()
    body = {"inputs": "Once upon a time", "parameters": {"max_new_tokens": 12, "do_sample": False}}
    with InProcess(bundle) as target:
        assert target.metadata()["optimisations"]["static_decode"] == "applied"
        answer = json.loads(target.send(json.dumps(body)).body)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "wide", dtype="float32")
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    inputs = tokenizer("Once upon a time", return_tensors="pt")
    wanted = model.generate(**inputs, max_new_tokens=12, do_sample=False, pad_token_id=0)
    text = tokenizer.decode(wanted[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    assert answer[0]["generated_text"].endswith(text)


def test_hosts_agree_on_it_and_people_read_what_it_cost(tiny: Tiny, tmp_path: Path, command: Command) -> None:
    bundle = tmp_path / "mlm"
    given = ["--task", "fill-mask", "--model", tiny("bert", "fill-mask"), "--name", "mlm", "--output", bundle]
    given += ["--passes-off", "cpu"]  # each process would time number formats, and one of this size may choose either
    assert "int8: 12 products: weights differ by 0." in command("generate", *given, "--quantise", "int8")
    verdict = parity(bundle, targets=["in-process", "grpc"])
    assert {entry.grade for entry in verdict.comparisons} == {"bytes"}


def test_a_real_encoder(packaged: Packaged, tmp_path: Path) -> None:
    """MiniLM: its products are a quarter of 43 of its 91 MB, and its vectors point where they did."""
    texts = ["The cat sat on the mat.", "A feline rested upon a rug.", "Interest rates rose again."]
    source = packaged("minilm")
    bundle: Any = mii_azure.generate("sentence-embeddings", str(source), "mini", output=tmp_path / "b", quantise="int8")
    size, before = ((folder / "model.safetensors").stat().st_size for folder in (bundle / "model", source))
    assert 0.60 < size / before < 0.66
    vectors = [
        Served(folder, "sentence-embeddings", pooling="mean", normalize=True).ok(texts)
        for folder in (source, bundle / "model")
    ]
    for wide, int8 in zip(*vectors, strict=True):
        assert 0.995 < sum(x * y for x, y in zip(wide, int8, strict=True)) < 1


def test_gguf_is_served_as_transformers_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundle of a GGUF file is found in order, and its text is what transformers makes of the file."""
    import torch
    import transformers

    monkeypatch.setenv("MII_AZURE_MODEL_CACHE", str(tmp_path / "cache"))
    file, bundle = tiny_gguf(tmp_path / "tiny.gguf", kind="Q4_K"), tmp_path / "bundle"
    mii_azure.generate("text-generation", str(file), "tiny", output=bundle, instance_type="Standard_F4s_v2")
    assert mii_azure.check(bundle) == []
    assert "GGUF Q4_K" in (bundle / "plan.md").read_text()
    body = {"inputs": "Once upon a time", "parameters": {"max_new_tokens": 12, "do_sample": False}}
    with InProcess(bundle) as target:
        assert target.metadata()["optimisations"]["static_decode"] == "applied"
        answer = json.loads(target.send(json.dumps(body)).body)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype="bfloat16")
    torch.nn.Module.float(model)  # transformers' own refuses for what it calls a quantised model
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file=file.name)
    inputs = tokenizer("Once upon a time", return_tensors="pt")
    wanted = model.generate(**inputs, max_new_tokens=12, do_sample=False, pad_token_id=0)
    text = tokenizer.decode(wanted[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    assert text and answer[0]["generated_text"].endswith(text)
